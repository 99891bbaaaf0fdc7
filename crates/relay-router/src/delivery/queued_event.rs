//! What waits to be delivered, and what is known of each attempt: the values that survive a crash.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use relay_core::{Actor, DocumentId, Event, EventId, FailureKind, Offset, ServiceName, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where events wait: for whichever target a rule chooses, or for one target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RouteKey {
    /// For the target that the rule of this name chooses.
    Rule(Arc<str>),
    /// For one of the targets that the rule of this name sends everything to.
    Each(Arc<str>, ServiceName),
    /// For this target, whatever the rules say: replays, dead letters that are tried again, and what a rule that is
    /// no more has left behind.
    Direct(ServiceName),
}

impl RouteKey {
    /// The rule's name, where a rule decides.
    pub(crate) fn rule(&self) -> Option<&Arc<str>> {
        match self {
            Self::Rule(rule) | Self::Each(rule, _) => Some(rule),
            Self::Direct(_) => None,
        }
    }
}

/// Stands for a [`RouteKey`] in the store's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RouteId(pub(crate) u32);

/// An event that waits in a route. Its content is in the log, unless it was a dead letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct QueuedEvent {
    pub(crate) event: EventId,
    pub(crate) document: DocumentId,
    /// When the event got its place.
    pub(crate) time: Timestamp,
    /// The service that published it, to which it never goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) publisher: Option<ServiceName>,
    /// The version of the rules that put it here.
    pub(crate) rules: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_replay: bool,
    /// What was tried, oldest first; the first ones make room when there are very many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) attempts: Vec<Attempt>,
    /// How many attempts there were, those included that are no longer told.
    #[serde(default)]
    pub(crate) tried: u32,
    /// The event as JSON, where the log may no longer have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<Arc<str>>,
}

impl QueuedEvent {
    /// How many attempts are told at most.
    const MAX_TOLD: usize = 32;

    pub(crate) fn new(event: &Event, rules: u64) -> Self {
        let publisher = match &event.actor {
            Actor::Service(name) => Some(name.clone()),
            Actor::User(_) | Actor::System => None,
        };
        Self {
            event: event.id,
            document: event.document.clone(),
            time: event.time,
            publisher,
            rules,
            is_replay: false,
            attempts: Vec::new(),
            tried: 0,
            body: None,
        }
    }

    pub(crate) fn push(&mut self, attempt: Attempt) {
        if self.attempts.len() == Self::MAX_TOLD {
            self.attempts.remove(0);
        }
        self.attempts.push(attempt);
        self.tried = self.tried.saturating_add(1);
    }
}

/// One attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// When it began.
    pub at: Timestamp,
    /// Who was to take the event.
    pub target: ServiceName,
    /// What the target answered with, where it has such: of HTTP, 100 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong.
    pub error: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

impl Attempt {
    /// How much of an error is kept.
    const MAX_ERROR_CHARS: usize = 512;

    pub(crate) fn new(
        at: Timestamp,
        target: ServiceName,
        error: &relay_core::DeliveryError,
        duration: Duration,
    ) -> Self {
        Self {
            at,
            target,
            status: error.status,
            error: error.detail.chars().take(Self::MAX_ERROR_CHARS).collect(),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Names a dead letter among those of its target. Its text form is two numbers with a dash between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId {
    pub(crate) offset: Offset,
    pub(crate) route: RouteId,
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.offset, self.route.0)
    }
}

impl FromStr for DeadLetterId {
    type Err = InvalidDeadLetterId;

    fn from_str(text: &str) -> Result<Self, InvalidDeadLetterId> {
        let invalid = || InvalidDeadLetterId(text.chars().take(64).collect());
        let (offset, route) = text.split_once('-').ok_or_else(invalid)?;
        let offset = Offset::new(offset.parse().map_err(|_| invalid())?);
        Ok(Self { offset, route: RouteId(route.parse().map_err(|_| invalid())?) })
    }
}

impl Serialize for DeadLetterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeadLetterId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no [`DeadLetterId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no dead letter's id; take one from the list of dead letters, for instance `4711-3`")]
pub struct InvalidDeadLetterId(String);

/// An event that a target did not take, however often it was tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Names it among the target's dead letters.
    pub id: DeadLetterId,
    /// The target that was tried last.
    pub target: ServiceName,
    /// The rule that led there; none for replays and for what was tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// The event's id.
    pub event_id: EventId,
    /// Its document.
    pub document: DocumentId,
    /// When it was given up.
    pub at: Timestamp,
    /// Why.
    pub reason: DeadReason,
    /// Every attempt; of more than 32 the last ones.
    pub attempts: Vec<Attempt>,
    /// The event's JSON envelope.
    pub event: Box<serde_json::value::RawValue>,
}

/// Why an event was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeadReason {
    /// The last retry failed.
    Exhausted,
    /// The target answered that it will never take it.
    Rejected,
}

impl DeadReason {
    pub(crate) fn of(kind: FailureKind) -> Self {
        if kind == FailureKind::Reject { Self::Rejected } else { Self::Exhausted }
    }
}
