//! The facts about a bus that show in its channels alone.

use futures_util::future::try_join_all;
use relay_core::testing::{ManualClock, MemoryLog};
use relay_core::{Draft, Payload, Retention};

use super::*;
use crate::channel::Channel;

fn document() -> DocumentId {
    DocumentId::new("doc").unwrap()
}

fn note(number: u64) -> CheckedDraft {
    let kind = relay_events::kind("x-note").unwrap();
    relay_events::check(Draft::new(document(), kind, Payload::json(&number).unwrap())).unwrap()
}

async fn subscribe(bus: &Bus) -> Result<Subscription, SubscribeError> {
    let subscribed = bus.subscribe(&document(), StartPosition::Live, Filter::all(), LagPolicy::Refill).await;
    subscribed.map(|(_, events)| events)
}

fn only_channel(bus: &Bus) -> Arc<Channel> {
    let [channel] = &bus.channels.channels()[..] else { panic!("not one document is open") };
    Arc::clone(channel)
}

fn cached_events(bus: &Bus) -> u64 {
    let Head { first, last, .. } = only_channel(bus).head();
    last.next().since(first)
}

#[tokio::test]
async fn memory_holds_no_more_than_retention_allows_beside_a_log_too() {
    let clock = Arc::new(ManualClock::new());
    let retention = Retention { max_events: 5, max_age: Some(Duration::from_secs(60)), max_bytes: None };
    let config = BusConfig { retention, ..BusConfig::default() };
    let bus =
        Bus::new(config, Some(Arc::new(MemoryLog::new())), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    for number in 1..=12 {
        bus.publish(note(number)).await.unwrap();
    }
    assert_eq!(cached_events(&bus), 5);
    clock.advance(Duration::from_secs(61));
    let _in_use = subscribe(&bus).await.unwrap();
    bus.sweep();
    assert_eq!(cached_events(&bus), 0);
}

#[tokio::test]
async fn a_document_that_many_want_at_once_is_opened_once() {
    let log = MemoryLog::new();
    log.hold();
    let bus = Bus::new(BusConfig::default(), Some(Arc::new(log)), Arc::new(ManualClock::new())).unwrap();
    let readers = try_join_all((0..20).map(|_| subscribe(&bus))).await.unwrap();
    assert_eq!(bus.stats().channels_opened, 1);
    assert_eq!(only_channel(&bus).subscribers(), 20);
    drop(readers);
    assert_eq!(only_channel(&bus).subscribers(), 0);
}
