//! Dead letters: events that a target did not take.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use relay_core::{Absence, DocumentId, Event, EventId, FailureKind, Offset, ServiceName, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Attempt, RouteId};

/// The id of a dead letter among those of its target. Its text form is two numbers with a dash between them.
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
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is not a [`DeadLetterId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the id of a dead letter; take one from the list of dead letters, for instance `4711-3`"
)]
pub struct InvalidDeadLetterId(String);

/// An event that a target did not take in any attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The id among the target's dead letters.
    pub id: DeadLetterId,
    /// The target that was tried last.
    pub target: ServiceName,
    /// The rule that led to the target, also by a replay or an earlier dead letter. Those of earlier versions may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// The event's id.
    pub event_id: EventId,
    /// The event's document.
    pub document: DocumentId,
    /// The time of the last attempt's end.
    pub at: Timestamp,
    /// The reason for giving up.
    pub reason: DeadReason,
    /// The attempts, oldest first; the last 32 if there were more.
    pub attempts: Vec<Attempt>,
    /// The event's JSON envelope.
    pub event: Box<RawValue>,
}

impl DeadLetter {
    /// The letter as operators get it at `now`: without the content of an event whose time to live is over.
    pub(crate) fn at(mut self, now: Timestamp) -> Self {
        // A letter that cannot be decoded is shown as it is, so that its damage can be seen.
        if let Ok(event) = relay_events::json::decode(self.event.get().as_bytes())
            && event.is_expired(now)
            && let Ok(event) = RawValue::from_string(json_of(&event.without_content(Absence::Expired)))
        {
            self.event = event;
        }
        self
    }
}

/// The event's JSON envelope.
pub(crate) fn json_of(event: &Event) -> String {
    String::from_utf8_lossy(&relay_events::json::encode(event)).into_owned()
}

/// The reason for giving an event up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeadReason {
    /// The last retry failed.
    Exhausted,
    /// The target answered that it will never take the event.
    Rejected,
}

impl DeadReason {
    pub(crate) fn of(kind: FailureKind) -> Self {
        if kind == FailureKind::Reject { Self::Rejected } else { Self::Exhausted }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use relay_core::{Draft, Epoch, Payload, Seq};

    use super::*;

    #[test]
    fn after_its_time_to_live_an_event_is_shown_without_its_content() {
        let document = DocumentId::new("d").unwrap();
        let kind = relay_events::kind("x-note").unwrap();
        let draft = Draft::new(document.clone(), kind, Payload::json(&"secret").unwrap());
        let time = Timestamp::from_micros(0);
        let event = draft.ttl(Duration::from_secs(1)).into_event(Epoch::from_u64(1), Some(Seq::FIRST), time);
        let letter = DeadLetter {
            id: DeadLetterId { offset: Offset::new(1), route: RouteId(1) },
            target: ServiceName::new("a").unwrap(),
            rule: None,
            event_id: event.id,
            document,
            at: time,
            reason: DeadReason::Rejected,
            attempts: Vec::new(),
            event: RawValue::from_string(json_of(&event)).unwrap(),
        };
        let shown = letter.clone().at(Timestamp::from_micros(1_000_000)).event;
        assert!(shown.get().contains("secret"), "{shown}");
        let shown = letter.at(Timestamp::from_micros(1_000_001)).event;
        assert!(!shown.get().contains("secret") && shown.get().contains("\"expired\":true"), "{shown}");
        // Sent again, it is found to be expired.
        let requeued = relay_events::json::decode(shown.get().as_bytes()).unwrap();
        assert!(requeued.is_expired(Timestamp::from_micros(1_000_001)));
    }
}
