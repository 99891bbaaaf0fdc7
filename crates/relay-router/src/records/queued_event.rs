//! Events that wait in a route, and the attempts to deliver them.

use std::sync::Arc;
use std::time::Duration;

use relay_core::{Actor, DeliveryError, DocumentId, Event, EventId, ServiceName, Timestamp};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

/// An event that waits in a route. Its content is in the log, or for a requeued dead letter in its [`RequeuedRecord`].
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
    /// The last failed attempts, oldest first, at most [`QueuedEvent::MAX_KEPT_ATTEMPTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) attempts: Vec<Attempt>,
    /// The number of failed attempts, including those that `attempts` has dropped.
    #[serde(default)]
    pub(crate) tried: u32,
    /// True for a requeued dead letter. The store alone has its body, which can be large.
    #[serde(default, rename = "body", deserialize_with = "is_present", skip_serializing)]
    pub(crate) is_requeued: bool,
}

/// A requeued dead letter as the store keeps it.
#[derive(Serialize)]
pub(crate) struct RequeuedRecord<'a> {
    #[serde(flatten)]
    pub(crate) queued: &'a QueuedEvent,
    /// The event's JSON envelope, since the log may no longer have the event.
    pub(crate) body: &'a str,
}

/// The body in the record of a requeued dead letter.
#[derive(Deserialize)]
pub(crate) struct RequeuedBody {
    pub(crate) body: Option<String>,
}

/// Passes over a value, and tells that it is there.
fn is_present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(value)?.is_some())
}

impl QueuedEvent {
    /// The most attempts that are kept in detail.
    const MAX_KEPT_ATTEMPTS: usize = 32;

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
            attempts: Vec::new(),
            tried: 0,
            is_requeued: false,
        }
    }

    /// Adds a failed attempt, and drops the oldest one when there are too many.
    pub(crate) fn push(&mut self, attempt: Attempt) {
        if self.attempts.len() == Self::MAX_KEPT_ATTEMPTS {
            self.attempts.remove(0);
        }
        self.attempts.push(attempt);
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
    /// The most characters of an error that are kept.
    const MAX_ERROR_CHARS: usize = 512;

    pub(crate) fn new(at: Timestamp, target: ServiceName, error: &DeliveryError, duration: Duration) -> Self {
        Self {
            at,
            target,
            status: error.status,
            error: error.detail.chars().take(Self::MAX_ERROR_CHARS).collect(),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
