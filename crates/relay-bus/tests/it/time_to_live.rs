//! Events after their time to live: their content goes to nobody, whatever way they take, and their places stay.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{checked, config, document, laser, note, number};
use async_trait::async_trait;
use futures_util::FutureExt;
use relay_bus::{
    BlockingHandler, Bus, BusConfig, EventHandler, Filter, HandlerError, LagPolicy, MailboxConfig, Received,
    Subscription,
};
use relay_core::testing::{ManualClock, MemoryLog};
use relay_core::{
    Absence, CheckedDraft, Draft, Event, EventLog, EventSource, EventStream, Metadata, Payload, ReadLimit,
    Seq, StartPosition,
};
use tokio::sync::mpsc;

const TTL: Duration = Duration::from_millis(50);
const EVERYTHING: StartPosition = StartPosition::After { epoch: None, seq: Seq::ZERO };

/// A bus without a log, one whose memory holds everything, and one whose readers read from the log.
fn buses(clock: &Arc<ManualClock>) -> [Bus; 3] {
    let small = config(|c| {
        (c.cache_events, c.preload_events) = (1, 1);
        c.replay_page = ReadLimit { events: 2, bytes: usize::MAX };
    });
    let bus = |config, log| Bus::new(config, log, Arc::clone(clock) as _).unwrap();
    let log = || Some(Arc::new(MemoryLog::new()) as Arc<dyn EventLog>);
    [bus(BusConfig::default(), None), bus(BusConfig::default(), log()), bus(small, log())]
}

fn short_lived(number: u64) -> CheckedDraft {
    let draft =
        Draft::new(document("doc"), relay_events::kind("x-note").unwrap(), Payload::json(&number).unwrap());
    let mut metadata = Metadata::default();
    metadata.insert("secret", "yes").unwrap();
    checked(draft.ttl(TTL).metadata(metadata))
}

/// Publishes a lasting event, a short-lived one, and another lasting one.
async fn publish_three(bus: &Bus) {
    bus.publish(note(&document("doc"), 1)).await.unwrap();
    bus.publish(short_lived(2)).await.unwrap();
    bus.publish(note(&document("doc"), 3)).await.unwrap();
}

async fn subscribe(bus: &Bus) -> Subscription {
    let subscribed = bus.subscribe(&document("doc"), EVERYTHING, Filter::all(), LagPolicy::Refill).await;
    let mut events = subscribed.unwrap().1;
    // Publishers would wait for it where memory holds one event.
    events.stand_for(0);
    events
}

async fn take(events: &mut Subscription, count: usize) -> Vec<Arc<Event>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(events.next().await.unwrap().unwrap());
    }
    taken
}

/// Checks that the events are the three, the second one without its content.
fn assert_expired(events: &[Arc<Event>]) {
    let [first, second, third] = events else { panic!("three events, not {events:?}") };
    assert_eq!((number(first), number(third)), (1, 3));
    assert_eq!(second.payload, Payload::Absent(Absence::Expired));
    assert!(second.metadata.is_empty());
    assert_eq!((second.seq, second.ttl), (Some(Seq::new(2)), Some(TTL)));
    assert_eq!(second.offset.is_some(), first.offset.is_some());
}

#[tokio::test]
async fn a_reader_gets_an_expired_event_in_its_place_without_its_content() {
    let clock = Arc::new(ManualClock::new());
    for bus in buses(&clock) {
        let mut in_time = subscribe(&bus).await;
        let mut late = subscribe(&bus).await;
        publish_three(&bus).await;
        let fresh = take(&mut in_time, 3).await;
        assert_eq!(fresh.iter().map(|event| number(event)).collect::<Vec<_>>(), [1, 2, 3]);
        // The late reader and its fork hold the events already.
        assert_eq!(number(&take(&mut late, 1).await[0]), 1);
        let mut fork = late.fork();
        clock.advance(TTL * 2);
        let mut rest = take(&mut late, 2).await;
        rest.insert(0, Arc::clone(&fresh[0]));
        assert_expired(&rest);
        let forked = std::future::poll_fn(|cx| fork.poll_next(cx)).await.unwrap().unwrap();
        assert_eq!(forked.payload, Payload::Absent(Absence::Expired));
        // Whoever comes now.
        assert_expired(&take(&mut subscribe(&bus).await, 3).await);
        let page = bus.history(&document("doc"), Seq::ZERO, ReadLimit::default()).await.unwrap().1;
        assert_expired(&page);
    }
}

#[tokio::test]
async fn an_expired_ephemeral_event_does_not_come_at_all() {
    let clock = Arc::new(ManualClock::new());
    let [bus, ..] = buses(&clock);
    let mut events = subscribe(&bus).await;
    let mut all = bus.subscribe_all(Filter::all(), MailboxConfig::default());
    let kind = relay_events::kind("x-ephemeral-laser").unwrap();
    let short = Draft::new(document("doc"), kind, Payload::json(&1).unwrap()).ttl(TTL);
    bus.publish(checked(short)).await.unwrap();
    clock.advance(TTL * 2);
    bus.publish(laser(&document("doc"), "ada", 2)).await.unwrap();
    assert_eq!(number(&take(&mut events, 1).await[0]), 2);
    let Some(Ok(Received::Event(event))) = all.next().await else { panic!("the second event comes") };
    assert_eq!(number(&event), 2);
}

#[tokio::test]
async fn subscriptions_to_all_documents_keep_to_it_in_the_queue_and_after_a_gap() {
    for capacity in [1, 10] {
        let clock = Arc::new(ManualClock::new());
        for bus in buses(&clock) {
            let mut mailbox = MailboxConfig::default();
            mailbox.capacity = NonZeroUsize::new(capacity).unwrap();
            let mut all = bus.subscribe_all(Filter::all(), mailbox);
            publish_three(&bus).await;
            clock.advance(TTL * 2);
            let mut events = Vec::new();
            while events.len() < 3 {
                let Some(Ok(Received::Event(event))) = all.next().await else { panic!("an event comes") };
                events.push(event);
            }
            assert!(all.next().now_or_never().is_none());
            assert_expired(&events);
        }
    }
}

/// Sends each event that it is called with, after a call for the first one has let the others expire.
struct Slow {
    clock: Arc<ManualClock>,
    events: mpsc::UnboundedSender<Arc<Event>>,
}

impl Slow {
    fn take(&self, event: &Event) -> Result<(), HandlerError> {
        self.clock.advance(TTL * 2);
        Ok(self.events.send(Arc::new(event.clone()))?)
    }
}

#[async_trait]
impl EventHandler for Slow {
    async fn handle(&self, event: Arc<Event>) -> Result<(), HandlerError> {
        self.take(&event)
    }
}

impl BlockingHandler for Slow {
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        self.take(event)
    }
}

#[tokio::test]
async fn handlers_keep_to_it_at_the_moment_of_the_call() {
    for is_blocking in [false, true] {
        let clock = Arc::new(ManualClock::new());
        let [_, bus, _] = buses(&clock);
        let (events, mut received) = mpsc::unbounded_channel();
        let handler = Arc::new(Slow { clock: Arc::clone(&clock), events });
        if is_blocking {
            let handler: Arc<dyn BlockingHandler> = handler;
            bus.handle_blocking("slow", Filter::all(), MailboxConfig::default(), NonZeroUsize::MIN, &handler)
                .unwrap();
        } else {
            bus.handle("slow", Filter::all(), MailboxConfig::default(), Duration::from_secs(5), handler);
        }
        let three = async {
            let (one, two, three) = (note(&document("doc"), 1), short_lived(2), note(&document("doc"), 3));
            futures_util::try_join!(bus.publish(one), bus.publish(two), bus.publish(three)).unwrap()
        };
        three.await;
        let mut events = Vec::new();
        while events.len() < 3 {
            events.push(received.recv().await.unwrap());
        }
        assert_expired(&events);
    }
}
