//! Listening to many documents at once: mailboxes, gaps, handlers.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{config, document, in_memory, laser, note, number, over};
use async_trait::async_trait;
use futures_util::FutureExt;
use parking_lot::Mutex;
use relay_bus::{
    BlockingHandler, Bus, BusConfig, BusParts, EventHandler, Filter, FullPolicy, HandlerError, MailboxConfig,
    MultiSubscription, Received,
};
use relay_core::testing::{ManualClock, ManualOwnership, MemoryLog};
use relay_core::{Actor, Event, NotOwner, OwnershipError, ReadLimit, Retention, UserId};
use tokio::sync::mpsc;

fn small(on_full: FullPolicy) -> MailboxConfig {
    mailbox(3, 5, on_full)
}

fn mailbox(capacity: usize, max_gaps: usize, on_full: FullPolicy) -> MailboxConfig {
    let mut mailbox = MailboxConfig::default();
    mailbox.capacity = NonZeroUsize::new(capacity).unwrap();
    mailbox.max_gaps = max_gaps;
    mailbox.on_full = on_full;
    mailbox
}

fn available(events: &mut MultiSubscription) -> Vec<Received> {
    std::iter::from_fn(|| events.next().now_or_never().flatten()).map(Result::unwrap).collect()
}

fn numbers(received: &[Received]) -> Vec<u64> {
    received
        .iter()
        .map(|received| match received {
            Received::Event(event) => number(event),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test]
async fn a_listener_gets_what_its_filter_says_from_all_documents() {
    let bus = in_memory(BusConfig::default());
    let ada = Actor::User(UserId::new("ada").unwrap());
    let filter = Filter::all()
        .kind(relay_events::kind("x-note").unwrap())
        .actor(ada.clone())
        .document_prefix("reports/")
        .predicate(|event| number(event) != 3);
    let mut events = bus.subscribe_all(filter, MailboxConfig::default());
    for (number, name) in [(1, "reports/a"), (2, "notes/a"), (3, "reports/a"), (4, "reports/b")] {
        bus.publish(note(&document(name), number).actor(ada.clone())).await.unwrap();
        bus.publish(note(&document(name), 100 + number)).await.unwrap();
        bus.publish(laser(&document(name), "ada", 200 + number)).await.unwrap();
    }
    assert_eq!(numbers(&available(&mut events)), [1, 4]);
}

#[tokio::test]
async fn a_full_mailbox_leaves_gaps_that_are_filled_from_history_in_order() {
    let one_by_one = ReadLimit { events: 1, bytes: usize::MAX };
    let config = config(|c| {
        c.cache_events = 4;
        c.replay_page = one_by_one;
    });
    for bus in [in_memory(config.clone()), over(MemoryLog::new(), config)] {
        let mut events = bus.subscribe_all(Filter::all(), small(FullPolicy::Refill));
        let (a, b) = (document("a"), document("b"));
        for number in 1..=200 {
            bus.publish(note(&a, number)).await.unwrap();
            bus.publish(note(&b, 1000 + number)).await.unwrap();
        }
        let mut received = Vec::new();
        // While the gap is being filled, more happens.
        for number in 201..=400 {
            received.push(number_of(events.next().await));
            bus.publish(note(&a, number)).await.unwrap();
        }
        received.extend(numbers(&available(&mut events)));
        let (in_a, in_b): (Vec<u64>, Vec<u64>) = received.into_iter().partition(|&number| number < 1000);
        assert_eq!(in_a, (1..=400).collect::<Vec<_>>());
        assert_eq!(in_b, (1001..=1200).collect::<Vec<_>>());
        assert!(bus.stats().mailbox_gaps >= 2);
    }
}

fn number_of(received: Option<Result<Received, relay_core::LogError>>) -> u64 {
    numbers(&[received.unwrap().unwrap()])[0]
}

#[tokio::test]
async fn what_history_no_longer_keeps_is_told() {
    let retention = Retention { max_events: 5, ..Retention::default() };
    let bus = in_memory(config(|c| c.retention = retention));
    let mut events = bus.subscribe_all(Filter::all(), small(FullPolicy::Refill));
    for number in 1..=20 {
        bus.publish(note(&document("a"), number)).await.unwrap();
    }
    let received = available(&mut events);
    assert_eq!(numbers(&received[..3]), [1, 2, 3]);
    let Received::Missed { after, through, .. } = &received[3] else { panic!("{received:?}") };
    assert_eq!((after.get(), through.get()), (3, 15));
    assert_eq!(numbers(&received[4..]), [16, 17, 18, 19, 20]);
}

#[tokio::test]
async fn a_gap_of_an_epoch_that_is_gone_is_told_and_hides_no_event_of_the_next_epoch() {
    let authority = ManualOwnership::default();
    let mut parts = BusParts::new(Arc::new(ManualClock::new()));
    parts.ownership = Arc::new(authority.clone());
    let bus = Bus::with_parts(BusConfig::default(), parts).unwrap();
    let mut events = bus.subscribe_all(Filter::all(), mailbox(1, 5, FullPolicy::Refill));
    let doc = document("a");
    let mut epochs = Vec::new();
    // Without a log each opening of the document begins a new history.
    for first in [1, 11, 21] {
        for number in first..first + 3 {
            epochs.push(bus.publish(note(&doc, number)).await.unwrap().epoch);
        }
        if first == 1 {
            // The queue has space again, and yet what comes next stays behind the gap.
            assert_eq!(number_of(events.next().await), 1);
        }
        authority.take_away(OwnershipError::NotOwner(NotOwner::new(doc.clone(), None)));
        authority.grant();
        bus.sweep();
    }
    bus.publish(note(&doc, 31)).await.unwrap();
    epochs.dedup();
    let received = available(&mut events);
    let missed: Vec<_> = received[..received.len() - 1]
        .iter()
        .map(|received| match received {
            Received::Missed { document, epoch, after, through, .. } if *document == doc => {
                (*epoch, after.get(), through.get())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(missed, [(epochs[0], 1, 3), (epochs[1], 0, 3), (epochs[2], 0, 3)]);
    assert_eq!(numbers(&received[received.len() - 1..]), [31]);
    // All gaps are filled: events queue again.
    bus.publish(note(&doc, 32)).await.unwrap();
    assert_eq!(numbers(&available(&mut events)), [32]);
}

#[tokio::test]
async fn a_listener_that_wants_to_be_cut_off_is() {
    let bus = in_memory(BusConfig::default());
    let mut events = bus.subscribe_all(Filter::all(), small(FullPolicy::Disconnect));
    for number in 1..=4 {
        bus.publish(note(&document("a"), number)).await.unwrap();
    }
    let received = available(&mut events);
    assert_eq!(numbers(&received[..3]), [1, 2, 3]);
    assert!(matches!(received[3], Received::Overrun));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn more_documents_with_gaps_than_are_tracked_end_the_subscription() {
    let bus = in_memory(BusConfig::default());
    let mut events = bus.subscribe_all(Filter::all(), mailbox(1, 2, FullPolicy::Refill));
    for name in ["a", "b", "c", "d"] {
        bus.publish(note(&document(name), 1)).await.unwrap();
    }
    let received = available(&mut events);
    assert!(matches!(received.last(), Some(Received::Overrun)), "{received:?}");
    assert_eq!(bus.stats().readers_lagged, 1);
}

#[tokio::test]
async fn a_listener_that_is_busy_gets_the_newest_ephemeral_events() {
    let bus = in_memory(BusConfig::default());
    let mut events = bus.subscribe_all(Filter::all(), small(FullPolicy::Refill));
    for number in 1..=20 {
        bus.publish(laser(&document("a"), "ada", number)).await.unwrap();
        bus.publish(laser(&document("b"), "ada", 100 + number)).await.unwrap();
    }
    assert_eq!(numbers(&available(&mut events)), [20, 120]);
}

/// Does with each event what its number says, and tells.
struct Moody(mpsc::UnboundedSender<u64>);

const FAIL: u64 = 1;
const PANIC: u64 = 2;
const HANG: u64 = 3;

impl Moody {
    fn act(&self, event: &Event) -> Result<(), HandlerError> {
        match number(event) {
            FAIL => Err("told to fail".into()),
            PANIC => panic!("told to panic"),
            other => Ok(self.0.send(other)?),
        }
    }
}

#[async_trait]
impl EventHandler for Moody {
    async fn handle(&self, event: Arc<Event>) -> Result<(), HandlerError> {
        if number(&event) == HANG {
            std::future::pending::<()>().await;
        }
        self.act(&event)
    }
}

impl BlockingHandler for Moody {
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        self.act(event)
    }
}

async fn publish_moods(bus: &Bus, moods: &[u64]) {
    for &mood in moods {
        bus.publish(note(&document("a"), mood)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_panics_or_hangs_spoils_that_call_alone() {
    let bus = in_memory(BusConfig::default());
    let (sender, mut handled) = mpsc::unbounded_channel();
    let timeout = Duration::from_secs(1);
    bus.handle("moody", Filter::all(), MailboxConfig::default(), timeout, Arc::new(Moody(sender)));
    publish_moods(&bus, &[10, FAIL, 11, PANIC, 12, HANG, 13]).await;
    for expected in 10..=13 {
        assert_eq!(handled.recv().await, Some(expected));
    }
    let stats = bus.stats();
    assert_eq!((stats.handler_errors, stats.handler_panics, stats.handler_timeouts), (1, 1, 1));
    assert!(bus.shutdown(Duration::from_secs(10)).await.complete);
    assert_eq!(bus.stats().handler_successes, 4);
    assert_eq!(handled.recv().await, None, "the handler is gone with the bus");
}

#[tokio::test]
async fn stopping_lets_handlers_finish_what_they_have() {
    let bus = in_memory(BusConfig::default());
    let (sender, mut handled) = mpsc::unbounded_channel();
    let timeout = Duration::from_secs(1);
    bus.handle("moody", Filter::all(), MailboxConfig::default(), timeout, Arc::new(Moody(sender.clone())));
    let threads = NonZeroUsize::new(2).unwrap();
    let blocking: Arc<dyn BlockingHandler> = Arc::new(Moody(sender));
    bus.handle_blocking("moody", Filter::all(), MailboxConfig::default(), threads, &blocking).unwrap();
    publish_moods(&bus, &(100..200).collect::<Vec<_>>()).await;
    drop(blocking);
    assert!(bus.shutdown(Duration::from_secs(60)).await.complete);
    let mut all = Vec::new();
    while let Some(number) = handled.recv().await {
        all.push(number);
    }
    all.sort_unstable();
    assert_eq!(all, (100..200).flat_map(|number| [number, number]).collect::<Vec<_>>());
}

/// Notes which numbers came in which order, per document.
#[derive(Default)]
struct Recorder(Mutex<HashMap<String, Vec<u64>>>);

impl BlockingHandler for Recorder {
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        assert!(number(event) != PANIC, "told to panic");
        std::thread::yield_now();
        self.0.lock().entry(event.document.to_string()).or_default().push(number(event));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_handlers_get_each_documents_events_in_order_though_they_run_on_several_threads() {
    let bus = in_memory(BusConfig::default());
    let recorder = Arc::new(Recorder::default());
    let handler: Arc<dyn BlockingHandler> = recorder.clone();
    let threads = NonZeroUsize::new(4).unwrap();
    bus.handle_blocking("recorder", Filter::all(), small(FullPolicy::Refill), threads, &handler).unwrap();
    for number in 10..310 {
        for name in ["a", "b", "c", "d", "e"] {
            bus.publish(note(&document(name), number)).await.unwrap();
        }
        if number == 20 {
            bus.publish(note(&document("a"), PANIC)).await.unwrap();
        }
    }
    assert!(bus.shutdown(Duration::from_secs(60)).await.complete);
    assert_eq!(bus.stats().handler_panics, 1);
    let by_document = recorder.0.lock();
    assert_eq!(by_document.len(), 5);
    for (name, numbers) in &*by_document {
        assert_eq!(*numbers, (10..310).collect::<Vec<_>>(), "document {name}");
    }
}
