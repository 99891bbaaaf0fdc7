//! Events that wait in a route, and the attempts to deliver them.

use std::sync::Arc;
use std::time::Duration;

use relay_core::{Actor, DeliveryError, DocumentId, Event, EventId, ServiceName, Timestamp};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

/// An event that waits in a route, as memory has it. Its content is in the log, or for a requeued dead letter in its
/// [`QueuedRecord`], which also has its attempts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct QueuedEvent {
    pub(crate) event: EventId,
    pub(crate) document: DocumentId,
    /// The event's time in its document.
    pub(crate) time: Timestamp,
    /// The service that published the event. It never gets the event back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) publisher: Option<ServiceName>,
    /// The rule that selects the event for a route of no rule. Other routes have theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<Arc<str>>,
    /// The version of the rules that routed the event.
    pub(crate) rules: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_replay: bool,
    /// The target of the last failed attempt. The store alone has the attempts, whose errors can be long.
    #[serde(default, rename = "attempts", deserialize_with = "last_target", skip_serializing)]
    pub(crate) failed: Option<ServiceName>,
    /// The number of failed attempts.
    #[serde(default)]
    pub(crate) tried: u32,
    /// True for a requeued dead letter. The store alone has its body, which can be large.
    #[serde(default, rename = "body", deserialize_with = "is_present", skip_serializing)]
    pub(crate) is_requeued: bool,
}

/// The bytes that an event in a queue takes beside its texts, the entry and its place in the queue included.
const ENTRY_BYTES: usize = 448;

impl QueuedEvent {
    /// The bytes that the event takes in a queue, roughly. They are the same for all attempts to deliver it.
    pub(crate) fn approx_bytes(&self) -> usize {
        ENTRY_BYTES + self.document.as_str().len()
    }
}

/// A waiting event as the store keeps it.
#[derive(Serialize)]
pub(crate) struct QueuedRecord<'a> {
    #[serde(flatten)]
    pub(crate) queued: &'a QueuedEvent,
    /// The last failed attempts, oldest first.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) attempts: &'a [Attempt],
    /// The event's JSON envelope, for a requeued dead letter: the log may no longer have the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<&'a str>,
}

/// The body in the record of a requeued dead letter.
#[derive(Deserialize)]
pub(crate) struct RequeuedBody {
    pub(crate) body: Option<String>,
}

/// The attempts in the record of a waiting event.
#[derive(Default, Deserialize)]
pub(crate) struct FailedAttempts {
    #[serde(default)]
    pub(crate) attempts: Vec<Attempt>,
}

impl FailedAttempts {
    /// The most attempts that are kept in detail.
    const MAX_KEPT: usize = 32;

    /// Adds an attempt, and drops the oldest ones beyond those that are kept.
    pub(crate) fn push(&mut self, attempt: Attempt) {
        self.attempts.push(attempt);
        let excess = self.attempts.len().saturating_sub(Self::MAX_KEPT);
        self.attempts.drain(..excess);
    }
}

/// Reads the target of the last attempt alone.
fn last_target<'de, D: Deserializer<'de>>(value: D) -> Result<Option<ServiceName>, D::Error> {
    #[derive(Deserialize)]
    struct Tried {
        target: ServiceName,
    }
    Ok(Vec::<Tried>::deserialize(value)?.pop().map(|last| last.target))
}

/// Passes over a value, and tells that it is there.
fn is_present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(value)?.is_some())
}

impl QueuedEvent {
    /// An event that was routed by the rules of version `rules` and not yet tried.
    pub(crate) fn new(event: &Event, rules: u64) -> Self {
        Self {
            event: event.id,
            document: event.document.clone(),
            time: event.time,
            publisher: publisher_of(event).cloned(),
            rule: None,
            rules,
            is_replay: false,
            failed: None,
            tried: 0,
            is_requeued: false,
        }
    }

    /// Counts a failed attempt at `target`.
    pub(crate) fn count_failure(&mut self, target: ServiceName) {
        self.failed = Some(target);
        self.tried = self.tried.saturating_add(1);
    }
}

/// The service that published the event, if a service did.
pub(crate) fn publisher_of(event: &Event) -> Option<&ServiceName> {
    match &event.actor {
        Actor::Service(name) => Some(name),
        Actor::User(_) | Actor::System => None,
    }
}

/// One attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// The time at which the attempt began.
    pub at: Timestamp,
    /// The target that did not take the event.
    pub target: ServiceName,
    /// The status that the target answered with, if it has one: for HTTP, 100 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The failure, in words.
    pub error: String,
    /// The duration of the attempt, in milliseconds.
    pub duration_ms: u64,
}

impl Attempt {
    /// The most bytes of an error that are kept.
    const MAX_ERROR_BYTES: usize = 512;

    pub(crate) fn new(at: Timestamp, target: ServiceName, error: &DeliveryError, duration: Duration) -> Self {
        let mut error_bytes = error.detail.len().min(Self::MAX_ERROR_BYTES);
        while !error.detail.is_char_boundary(error_bytes) {
            error_bytes -= 1;
        }
        Self {
            at,
            target,
            status: error.status,
            error: error.detail[..error_bytes].to_owned(),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use relay_core::{Epoch, FailureKind, Seq};

    use super::*;
    use crate::test_support::{name, note};

    #[test]
    fn the_attempts_of_an_event_are_bounded_in_bytes_on_disk_and_absent_in_memory() {
        let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
        let (mut queued, mut failed) = (QueuedEvent::new(&event, 1), FailedAttempts::default());
        // Characters of three bytes each, which do not end at the limit.
        let error = DeliveryError::new(FailureKind::Retry, "\u{20ac}".repeat(10_000));
        for n in 0..100 {
            let target = name(if n == 99 { "last" } else { "a" });
            failed.push(Attempt::new(Timestamp::from_micros(n), target.clone(), &error, Duration::ZERO));
            queued.count_failure(target);
        }
        let record = QueuedRecord { queued: &queued, attempts: &failed.attempts, body: None };
        let stored = serde_json::to_string(&record).unwrap();
        assert!(stored.len() < 32 * 700, "{} bytes", stored.len());
        assert_eq!(serde_json::from_str::<FailedAttempts>(&stored).unwrap().attempts, failed.attempts);
        assert_eq!((failed.attempts.len(), failed.attempts[0].at), (32, Timestamp::from_micros(68)));
        // Memory has the last target and the number.
        let read: QueuedEvent = serde_json::from_str(&stored).unwrap();
        assert_eq!((&read, read.failed.as_ref(), read.tried), (&queued, Some(&name("last")), 100));
    }
}
