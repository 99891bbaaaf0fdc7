//! The end of what a killed server left open: by the next server, once, whenever the last checkpoint was written.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use relay_core::testing::{ManualClock, MemoryLog};
use relay_core::{
    CheckedDraft, Clock, ConnectionId, DocumentId, Event, EventLog, EventSink, JoinOptions, Lease,
    LeaveReason, LockScope, Membership, Offset, Payload, Presence, PublishAck, PublishError, ReadLimit,
    Timestamp, UserId,
};
use relay_presence::{AcquireRequest, LocalPresence, LockConfig, Locks, MemoryTokens, PresenceConfig};
use serde_json::Value;

use crate::support::PATIENCE;

const EVERYTHING: ReadLimit = ReadLimit { events: usize::MAX, bytes: usize::MAX };

/// A sink that appends to a log.
struct LogSink(MemoryLog);

#[async_trait]
impl EventSink for LogSink {
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        let head = self.0.head(&draft.document).await?;
        let seq = draft.kind.is_sequenced().then(|| head.last.next());
        let is_stored = !draft.kind.is_ephemeral();
        let mut event = draft.into_event(head.epoch, seq, Timestamp::UNIX_EPOCH);
        if is_stored {
            event.offset = self.0.append(&event.document, std::slice::from_ref(&event)).await?.pop();
        }
        Ok(PublishAck::of(&event, false))
    }
}

/// Waits until the last offset was asked for so many times more. Each checkpoint asks for it once.
async fn until_asked(log: &MemoryLog, times: u64) {
    let target = log.last_offset_questions() + times;
    let waiting = async {
        while log.last_offset_questions() < target {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("a checkpoint is made");
}

/// A server over `log`. It has ended what the log shows as open.
async fn start(log: &MemoryLog, checkpoint: &Path, interval: Duration) -> LocalPresence {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new());
    let mut config = PresenceConfig::default();
    config.checkpoint_interval = interval;
    let tokens = Arc::new(MemoryTokens::new(&relay_core::SystemClock::new()));
    let locks = Locks::new(LockConfig::default(), Arc::clone(&clock), tokens).unwrap();
    let presence = LocalPresence::new(config, Arc::new(LogSink(log.clone())), locks, clock).unwrap();
    presence.end_leftovers(Arc::new(log.clone()), checkpoint.to_owned(), false).await.unwrap();
    presence
}

fn document(number: usize) -> DocumentId {
    DocumentId::new(format!("d{number}")).unwrap()
}

fn user(number: usize) -> UserId {
    UserId::new(format!("user {number}")).unwrap()
}

async fn events(log: &MemoryLog) -> Vec<Event> {
    log.read(Offset::ZERO, EVERYTHING).await.unwrap()
}

/// Checks that everything begins once and ends once by the events of the log.
fn check_ended(events: &[Event]) {
    let mut open: BTreeMap<String, i32> = BTreeMap::new();
    for event in events {
        let Payload::Json(payload) = &event.payload else { panic!("{event:?}") };
        let payload: Value = serde_json::from_str(payload.as_str()).unwrap();
        let (what, change) = match event.kind.as_str() {
            "session.started" => (format!("{:?}", event.session), 1),
            "session.ended" => (format!("{:?}", event.session), -1),
            "user.joined" => (format!("{:?} {}", event.session, payload["user"]), 1),
            "user.left" => (format!("{:?} {}", event.session, payload["user"]), -1),
            "document.locked" => (format!("{} {}", event.document, payload["token"]), 1),
            "document.unlocked" => (format!("{} {}", event.document, payload["token"]), -1),
            _ => continue,
        };
        let count = open.entry(what.clone()).or_default();
        *count += change;
        assert!((0..=1).contains(count), "{what}: {count}");
    }
    open.retain(|_, count| *count != 0);
    assert_eq!(open, BTreeMap::new());
}

/// A server over `log` that makes no checkpoint by itself, and in which user 1 has joined document 1 and locked it.
async fn start_with_a_lock(log: &MemoryLog, checkpoint: &Path) -> (LocalPresence, Lease) {
    let presence = start(log, checkpoint, Duration::from_secs(3600)).await;
    let membership = Membership { document: document(1), user: user(1), connection: ConnectionId::new() };
    let _joined = presence.join(&membership, JoinOptions::default()).await.unwrap();
    let request = AcquireRequest::new(LockScope::Document);
    let lease = presence.locks().acquire(&document(1), &user(1), request).await.unwrap();
    (presence, lease)
}

#[tokio::test]
async fn a_lock_and_a_session_that_a_crash_left_open_are_ended_by_the_next_server() {
    let (directory, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
    let file = directory.path().join("open");
    let (presence, lease) = start_with_a_lock(&log, &file).await;
    let before = events(&log).await.len();
    // The server is killed: its log goes on without it.
    let log = log.reopen();
    drop(presence);

    let presence = start(&log, &file, Duration::from_secs(3600)).await;
    let after = events(&log).await;
    let told = |event: &Event| {
        let Payload::Json(payload) = &event.payload else { panic!("{event:?}") };
        (event.kind.to_string(), payload.as_str().to_owned())
    };
    let ended: Vec<_> = after[before..].iter().map(told).collect();
    let unlocked = format!(r#"{{"holder":"user 1","token":{},"reason":"crashed"}}"#, lease.token.get());
    let expected = [
        ("document.unlocked", unlocked.as_str()),
        ("user.left", r#"{"user":"user 1","reason":"crashed"}"#),
        ("session.ended", r#"{"reason":"crashed"}"#),
    ];
    assert_eq!(ended, expected.map(|(kind, payload)| (kind.to_owned(), payload.to_owned())));
    let log = log.reopen();
    drop(presence);
    start(&log, &file, Duration::from_secs(3600)).await;
    assert_eq!(events(&log).await.len(), after.len(), "nothing is ended twice");
}

#[tokio::test]
async fn a_damaged_checkpoint_or_one_of_another_log_costs_nothing_but_time() {
    let (directory, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
    let file = directory.path().join("open");
    for content in
        ["", "{", r#"{"version":1,"checkpoint":{"offset":999,"leftovers":{}}}"#, r#"{"version":2}"#]
    {
        let presence = start(&log, &file, Duration::from_secs(3600)).await;
        let membership = Membership { document: document(1), user: user(1), connection: ConnectionId::new() };
        let _joined = presence.join(&membership, JoinOptions::default()).await.unwrap();
        std::fs::write(&file, content).unwrap();
    }
    start(&log, &file, Duration::from_secs(3600)).await;
    check_ended(&events(&log).await);
}

#[tokio::test]
async fn a_checkpoint_that_does_not_end_does_not_keep_a_server_from_stopping() {
    let (directory, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
    let file = directory.path().join("open");
    for interval in [Duration::from_micros(1), Duration::from_secs(3600)] {
        let log = log.reopen();
        let presence = start(&log, &file, interval).await;
        log.hang_last_offset(true);
        if interval < Duration::from_secs(1) {
            // The periodic one is stuck. Otherwise it is that of the stop.
            until_asked(&log, 1).await;
        }
        let stopped = tokio::time::timeout(PATIENCE, presence.shutdown(Duration::from_millis(100))).await;
        assert!(stopped.is_ok(), "the stop does not end");
    }
}

#[tokio::test]
async fn a_stop_whose_events_the_log_does_not_take_writes_its_checkpoint() {
    let (directory, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
    let file = directory.path().join("open");
    let (presence, _) = start_with_a_lock(&log, &file).await;
    let last = log.last_offset().await.unwrap();
    log.hold();
    assert!(!presence.shutdown(Duration::from_secs(2)).await);
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(saved["checkpoint"]["offset"], last.get());
    // The next server ends what this one could not.
    let log = log.reopen();
    drop(presence);
    start(&log, &file, Duration::from_secs(3600)).await;
    check_ended(&events(&log).await);
}

#[derive(Debug, Clone)]
enum Step {
    Join(usize, usize),
    Leave(usize),
    Lock(usize, usize),
    Checkpoint,
    Crash,
    Stop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3_usize, 0..4_usize).prop_map(|(document, user)| Step::Join(document, user)),
        3 => any::<usize>().prop_map(Step::Leave),
        3 => (0..3_usize, 0..4_usize).prop_map(|(document, user)| Step::Lock(document, user)),
        2 => Just(Step::Checkpoint),
        2 => Just(Step::Crash),
        1 => Just(Step::Stop),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Checkpoints are written as often as possible, so that crashes come at any moment between two of them.
    #[test]
    fn whatever_a_crash_leaves_open_is_ended_once(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let mut file = directory.path().join("0");
            let mut log = MemoryLog::new();
            let interval = Duration::from_micros(1);
            let mut presence = start(&log, &file, interval).await;
            let mut members: Vec<Membership> = Vec::new();
            for (number, step) in (1..).zip(steps) {
                match step {
                    Step::Join(document, user) => {
                        let membership = Membership {
                            document: self::document(document), user: self::user(user), connection: ConnectionId::new(),
                        };
                        presence.join(&membership, JoinOptions::default()).await.unwrap();
                        members.push(membership);
                    }
                    Step::Leave(which) if !members.is_empty() => {
                        let member = members.swap_remove(which % members.len());
                        presence.leave(&member, LeaveReason::Left);
                    }
                    Step::Leave(_) => {}
                    Step::Lock(document, user) => {
                        let request = AcquireRequest::new(LockScope::Document);
                        let _ = presence.locks().acquire(&self::document(document), &self::user(user), request).await;
                    }
                    // The one that is being made ends before the next begins.
                    Step::Checkpoint => until_asked(&log, 2).await,
                    Step::Crash => {
                        // The killed server goes on with its own log and file, and the next one with what was there.
                        log = log.reopen();
                        let next = directory.path().join(format!("{number}"));
                        if file.exists() {
                            std::fs::copy(&file, &next).unwrap();
                        }
                        file = next;
                        members.clear();
                        presence = start(&log, &file, interval).await;
                        check_ended(&events(&log).await);
                    }
                    Step::Stop => {
                        assert!(presence.shutdown(Duration::from_secs(20)).await);
                        members.clear();
                        check_ended(&events(&log).await);
                        log = log.reopen();
                        presence = start(&log, &file, interval).await;
                    }
                }
            }
        });
    }
}
