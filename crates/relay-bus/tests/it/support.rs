//! The helpers that the tests share: drafts, buses, and a log that is held.

use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt;
use relay_bus::{Bus, BusConfig, Subscription};
use relay_core::testing::{ManualClock, MemoryLog};
use relay_core::{Actor, CheckedDraft, DocumentId, Draft, Event, EventLog, Payload, StreamError, UserId};

pub(crate) fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap()
}

/// A sequenced draft that carries a number.
pub(crate) fn note(document: &DocumentId, number: u64) -> CheckedDraft {
    let payload = Payload::json(&number).unwrap();
    checked(Draft::new(document.clone(), relay_events::kind("x-note").unwrap(), payload))
}

pub(crate) fn checked(draft: Draft) -> CheckedDraft {
    relay_events::check(draft).unwrap()
}

/// An ephemeral draft that carries a number.
pub(crate) fn laser(document: &DocumentId, user: &str, number: u64) -> CheckedDraft {
    checked(Draft::new(
        document.clone(),
        relay_events::kind("x-ephemeral-laser").unwrap(),
        Payload::json(&number).unwrap(),
    ))
    .actor(Actor::User(UserId::new(user).unwrap()))
}

pub(crate) fn number(event: &Event) -> u64 {
    payload_number(&event.payload)
}

pub(crate) fn draft_number(draft: &Draft) -> u64 {
    payload_number(&draft.payload)
}

fn payload_number(payload: &Payload) -> u64 {
    match payload {
        Payload::Json(text) => text.as_str().parse().unwrap(),
        Payload::Binary(_) | Payload::Absent(_) => panic!("{payload:?} carries no number"),
    }
}

pub(crate) fn seq(event: &Event) -> u64 {
    event.seq.unwrap().get()
}

/// The default configuration with some fields set.
pub(crate) fn config(set: impl FnOnce(&mut BusConfig)) -> BusConfig {
    let mut config = BusConfig::default();
    set(&mut config);
    config
}

pub(crate) fn in_memory(config: BusConfig) -> Bus {
    Bus::new(config, None, Arc::new(ManualClock::new())).unwrap()
}

pub(crate) fn over(log: impl EventLog, config: BusConfig) -> Bus {
    Bus::new(config, Some(Arc::new(log)), Arc::new(ManualClock::new())).unwrap()
}

/// Receives everything that is there without waiting.
pub(crate) fn available(events: &mut Subscription) -> Vec<Result<Arc<Event>, StreamError>> {
    std::iter::from_fn(|| events.next().now_or_never().flatten()).collect()
}

/// Receives everything that is there without waiting, and returns its seqs.
pub(crate) fn available_seqs(events: &mut Subscription) -> Vec<u64> {
    available(events).into_iter().map(|event| seq(&event.unwrap())).collect()
}

/// Lets every other task run until it waits for something.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Returns the output of `future`, which must come as soon as every other task waits. A test that would wait for ever fails
/// instead.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..50 {
        if let Some(output) = future.as_mut().now_or_never() {
            return output;
        }
        tokio::task::yield_now().await;
    }
    panic!("the future still waits, as every other task does");
}

/// A log whose appends wait until they are let through.
pub(crate) fn held_log() -> MemoryLog {
    let log = MemoryLog::new();
    log.hold();
    log
}
