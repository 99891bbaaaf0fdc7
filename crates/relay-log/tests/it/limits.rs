//! Limits of a log: requests that it refuses, and events that retention drops.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::testing::ManualClock;
use relay_core::{Clock, EventLog, LogError, Monotonic, Offset, Retention, Seq, Timestamp};
use relay_log::{EmbeddedLog, LogConfig};

use crate::common::{append, document, event, next_event, texts};

fn open_with(clock: Arc<dyn Clock>, change: impl FnOnce(&mut LogConfig)) -> (tempfile::TempDir, EmbeddedLog) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = LogConfig::new(directory.path());
    change(&mut config);
    let (log, _) = EmbeddedLog::open(config, clock).unwrap();
    (directory, log)
}

#[tokio::test]
async fn two_owners_cannot_both_append() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |_| {});
    let id = document("d");
    let mine = next_event(&log, &id, "mine").await;
    let theirs = next_event(&log, &id, "theirs").await;
    let (a, b) = tokio::join!(
        log.append(&id, std::slice::from_ref(&mine)),
        log.append(&id, std::slice::from_ref(&theirs))
    );
    assert!(a.is_ok() && matches!(b, Err(LogError::Conflict { head, .. }) if head.last == Seq::new(1)));
    let elsewhere = event(&document("other"), mine.epoch, Seq::new(2), "of another document", mine.time);
    assert!(matches!(log.append(&id, &[elsewhere]).await, Err(LogError::Conflict { .. })));
    assert_eq!(texts(&log, "d").await, ["mine"]);
    assert_eq!(log.stats().conflicts, 2);
    log.close().await.unwrap();
}

#[tokio::test]
async fn an_event_over_the_limit_is_refused_with_both_sizes() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |config| config.max_event_bytes = 1000);
    let large = next_event(&log, &document("d"), &"x".repeat(1000)).await;
    let refused = log.append(&document("d"), &[large]).await;
    assert!(matches!(refused, Err(LogError::TooLarge { bytes, max: 1000 }) if bytes > 1000));
    append(&log, "d", "small").await;
    log.close().await.unwrap();
}

/// A clock that blocks its callers while the gate is closed. The writer reads it around each commit.
#[derive(Debug)]
struct Gate {
    closed: Mutex<()>,
    arrived: Mutex<mpsc::Sender<()>>,
}

impl Clock for Gate {
    fn wall(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> Monotonic {
        // The receiver is dropped once the test has what it waited for; ignore the send error.
        let _ = self.arrived.lock().send(());
        let _open = self.closed.lock();
        Monotonic::ZERO
    }
}

#[tokio::test(start_paused = true)]
#[allow(clippy::await_holding_lock, reason = "the writer's thread waits for it, no task does")]
async fn a_publisher_that_outruns_the_log_is_told_so_and_nothing_is_lost() {
    let (arrived, _arrivals) = mpsc::channel();
    let gate = Arc::new(Gate { closed: Mutex::new(()), arrived: Mutex::new(arrived) });
    let clock: Arc<dyn Clock> = Arc::clone(&gate) as _;
    let (_directory, log) = open_with(clock, |config| {
        config.queue_requests = 2;
        config.queue_timeout = Duration::from_secs(7);
    });
    let (a, b, c) = (document("a"), document("b"), document("c"));
    let events = [
        next_event(&log, &a, "first").await,
        next_event(&log, &b, "second").await,
        next_event(&log, &c, "third").await,
    ];
    let closed = gate.closed.lock();
    let waiting = [(a, events[0].clone()), (b, events[1].clone())].map(|(document, event)| {
        let log = log.clone();
        tokio::spawn(async move { log.append(&document, &[event]).await })
    });
    // Both requests are in the queue before the third comes.
    while log.stats().queued_requests < 2 {
        tokio::task::yield_now().await;
    }
    let refused = log.append(&c, &events[2..]).await;
    assert!(matches!(refused, Err(LogError::Overloaded { waited }) if waited == Duration::from_secs(7)));
    assert_eq!(log.stats().overloads, 1);
    drop(closed);
    for append in waiting {
        append.await.unwrap().unwrap();
    }
    log.append(&c, &events[2..]).await.unwrap();
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_document_keeps_its_newest_events() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |config| {
        config.retention = Retention { max_events: 16, ..Retention::default() };
    });
    for n in 0..100 {
        append(&log, "d", &n.to_string()).await;
        let head = log.head(&document("d")).await.unwrap();
        let kept = head.last.get() + 1 - head.first.get();
        assert!(kept <= 20, "{kept} events are kept");
    }
    log.sweep().await.unwrap();
    let expected: Vec<String> = (84..100).map(|n| n.to_string()).collect();
    assert_eq!(texts(&log, "d").await, expected);
    assert_eq!(log.stats().dropped_events, 84);
    assert_eq!(append(&log, "d", "next").await.0, Seq::new(101));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_batch_larger_than_retention_is_cut_back_too() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |config| {
        config.retention = Retention { max_events: 10, ..Retention::default() };
    });
    let id = document("d");
    let first = next_event(&log, &id, "1").await;
    let batch: Vec<_> =
        (1..=3000).map(|n| event(&id, first.epoch, Seq::new(n), &n.to_string(), first.time)).collect();
    log.append(&id, &batch).await.unwrap();
    log.sweep().await.unwrap();
    let head = log.head(&id).await.unwrap();
    assert_eq!((head.first, head.last), (Seq::new(2991), Seq::new(3000)));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_document_keeps_no_more_bytes_than_allowed() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |config| {
        config.retention = Retention { max_bytes: Some(20_000), ..Retention::default() };
    });
    for n in 0..50 {
        append(&log, "d", &format!("{n}{}", "x".repeat(1000))).await;
    }
    log.sweep().await.unwrap();
    let kept = texts(&log, "d").await.len();
    assert!((15..=19).contains(&kept), "{kept} events of a good 1,000 bytes are kept");
    log.close().await.unwrap();
}

#[tokio::test]
async fn old_events_of_an_idle_document_go_and_its_place_stays() {
    let clock = Arc::new(ManualClock::new());
    let (_directory, log) = open_with(Arc::clone(&clock) as _, |config| {
        config.retention = Retention { max_age: Some(Duration::from_secs(3600)), ..Retention::default() };
    });
    let id = document("idle");
    let first = next_event(&log, &id, "old").await;
    log.append(&id, std::slice::from_ref(&first)).await.unwrap();
    clock.advance(Duration::from_secs(3000));
    log.append(&id, &[event(&id, first.epoch, Seq::new(2), "newer", clock.wall())]).await.unwrap();
    log.sweep().await.unwrap();
    assert_eq!(texts(&log, "idle").await, ["old", "newer"]);
    clock.advance(Duration::from_secs(601));
    log.sweep().await.unwrap();
    assert_eq!(texts(&log, "idle").await, ["newer"]);
    clock.advance(Duration::from_secs(3600));
    log.sweep().await.unwrap();
    let head = log.head(&id).await.unwrap();
    assert_eq!((head.first, head.last), (Seq::new(3), Seq::new(2)));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_hold_keeps_events_within_its_bound_and_those_beyond_are_counted() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |config| {
        config.retention = Retention { max_events: 16, ..Retention::default() };
        config.max_held_bytes = 60_000;
        config.initial_hold = Some(Offset::new(10));
    });
    for n in 0..50 {
        append(&log, "d", &format!("{n}{}", "x".repeat(1000))).await;
    }
    log.sweep().await.unwrap();
    assert_eq!(log.head(&document("d")).await.unwrap().first, Seq::new(11), "the rest is held");
    for n in 0..50 {
        append(&log, if n < 25 { "d" } else { "e" }, &format!("{n}{}", "x".repeat(1000))).await;
    }
    log.sweep().await.unwrap();
    let mut kept = 0;
    for name in ["d", "e"] {
        let head = log.head(&document(name)).await.unwrap();
        kept += head.last.get() + 1 - head.first.get();
        assert!(head.last.get() + 1 - head.first.get() >= 16, "{name}: {head:?}");
    }
    // The one that is held has a good 50 of 1,000 bytes, and the other one is within its limits.
    assert!((64..=76).contains(&kept), "{kept} events are kept");
    let stats = log.stats();
    assert_eq!((stats.dropped_events, stats.dropped_held_events), (100 - kept, 90 - kept));
    log.hold(Some(Offset::new(100)));
    log.sweep().await.unwrap();
    assert_eq!((texts(&log, "d").await.len(), texts(&log, "e").await.len()), (16, 16));
    assert_eq!(log.stats().dropped_held_events, 90 - kept);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_document_that_was_held_is_cut_back_when_the_hold_moves_on() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |config| {
        config.retention = Retention { max_events: 16, ..Retention::default() };
        config.initial_hold = Some(Offset::ZERO);
    });
    for n in 0..50 {
        append(&log, "d", &n.to_string()).await;
    }
    assert_eq!(texts(&log, "d").await.len(), 50);
    log.hold(Some(Offset::new(40)));
    // The writer looks at the hold when it is woken. Without that this loop does not end.
    while log.head(&document("d")).await.unwrap().first < Seq::new(35) {
        append(&log, "other", "wakes the writer").await;
    }
    log.close().await.unwrap();
}

#[tokio::test]
async fn the_log_sweeps_by_itself_when_the_interval_is_over() {
    let clock = Arc::new(ManualClock::new());
    let (_directory, log) = open_with(Arc::clone(&clock) as _, |config| {
        config.retention = Retention { max_age: Some(Duration::from_secs(3600)), ..Retention::default() };
        config.sweep_interval = Duration::from_secs(60);
    });
    append(&log, "idle", "old").await;
    clock.advance(Duration::from_secs(4000));
    // The writer reads the clock at each wake-up. Without a scan of its own this loop does not end.
    while log.head(&document("idle")).await.unwrap().first == Seq::FIRST {
        append(&log, "lively", "wakes the writer").await;
    }
    assert!(log.stats().dropped_events >= 1);
    log.close().await.unwrap();
}

#[tokio::test]
async fn appends_that_wait_share_a_commit_and_are_counted() {
    let (_directory, log) = open_with(Arc::new(ManualClock::new()), |_| {});
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let id = document(&format!("d{n}"));
        let event = next_event(&log, &id, "x").await;
        let log = log.clone();
        tasks.spawn(async move { log.append(&id, &[event]).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let stats = log.stats();
    assert_eq!(
        (stats.appends, stats.appended_events, stats.queued_requests, stats.queued_bytes),
        (64, 64, 0, 0)
    );
    assert!(stats.commits < 64 && stats.largest_group > 1, "{stats:?}");
    assert!(stats.disk_bytes > 0 && stats.appended_bytes > 64 * 36);
    log.close().await.unwrap();
}

#[test]
fn a_value_out_of_range_is_refused_by_name() {
    let mut config = LogConfig::new("somewhere");
    config.retention.max_events = 0;
    assert_eq!(config.validate().unwrap_err().field, "retention.max_events");
}
