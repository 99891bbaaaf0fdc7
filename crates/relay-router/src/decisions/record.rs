//! One decision: as it is recorded, and as it is kept.

use std::sync::Arc;
use std::time::Duration;

use relay_core::{DocumentId, Event, EventId, Kind, Offset, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::records::QueuedEvent;
use crate::rules::{RuleVerdict, VerdictReason};

/// The most bytes of a decision's verdicts, by [`verdict_bytes`].
const MAX_VERDICT_BYTES: usize = 16 * 1024;

/// The most characters of an error, in the decision and in each verdict.
const MAX_ERROR_CHARS: usize = 1024;

/// A decision about an event: the route by a rule, or the result of an attempt.
pub(crate) struct Decision {
    /// The time of the decision.
    pub(crate) at: Timestamp,
    pub(crate) event: DecidedEvent,
    /// The version of the rules.
    pub(crate) rules_version: u64,
    /// The rule that matched; `None` if none did, and for events that were sent to one target on request.
    pub(crate) rule: Option<Arc<str>>,
    /// The chosen target.
    pub(crate) target: Option<ServiceName>,
    /// True if the target is one of the rule's fallbacks.
    pub(crate) is_fallback: bool,
    /// True if the event was sent again on request.
    pub(crate) is_replay: bool,
    /// The outcome.
    pub(crate) outcome: Outcome,
    /// The attempt, from 1; 0 without an attempt.
    pub(crate) attempt: u32,
    /// The duration of the attempt.
    pub(crate) duration: Duration,
    /// The error.
    pub(crate) error: Option<String>,
    /// Explains every rule; called on the log's thread if the decision is kept.
    pub(crate) verdicts: Box<dyn FnOnce() -> Vec<RuleVerdict> + Send>,
}

/// Events that the log dropped before they were routed. No rule was asked about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gap {
    /// The offset of the last of them. Some events in between may have been kept.
    pub through: Offset,
    /// The number of these events.
    pub events: u64,
}

/// The event of a decision, or a gap between events.
#[derive(Debug, Clone)]
pub(crate) struct DecidedEvent {
    /// The id; `None` for a gap.
    pub(crate) id: Option<EventId>,
    /// The document; `None` for a gap.
    pub(crate) document: Option<DocumentId>,
    /// The kind; `None` where the log no longer has the event.
    pub(crate) kind: Option<Kind>,
    pub(crate) offset: Option<Offset>,
    /// The events from `offset` on that the log dropped before they were routed.
    pub(crate) gap: Option<Gap>,
    /// The size of the event, which the decision keeps in memory while it waits.
    pub(crate) bytes: usize,
}

impl DecidedEvent {
    /// An event that waits and was not read.
    pub(crate) fn unread(queued: &QueuedEvent, offset: Offset) -> Self {
        Self {
            id: Some(queued.event),
            document: Some(queued.document.clone()),
            kind: None,
            offset: Some(offset),
            gap: None,
            bytes: 0,
        }
    }

    /// The events from `offset` on that the log dropped before they were routed.
    pub(crate) fn of_gap(offset: Offset, gap: Gap) -> Self {
        Self { id: None, document: None, kind: None, offset: Some(offset), gap: Some(gap), bytes: 0 }
    }
}

impl From<&Event> for DecidedEvent {
    fn from(event: &Event) -> Self {
        Self {
            id: Some(event.id),
            document: Some(event.document.clone()),
            kind: Some(event.kind.clone()),
            offset: event.offset,
            gap: None,
            bytes: event.approx_bytes(),
        }
    }
}

/// The outcome of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The target accepted the event.
    Delivered,
    /// The attempt failed, and the event is tried again.
    Retrying,
    /// The attempt failed, and the event became a dead letter.
    DeadLettered,
    /// The event's time to live was over.
    Expired,
    /// The target never gets the event: the log does not have it or cannot read it, too many events wait, or the target is
    /// gone. Or the log dropped events before they were routed: a [gap](DecisionRecord::gap).
    Lost,
    /// No rule matches.
    NoMatch,
    /// A rule matches, but has no target to send to.
    NoTarget,
    /// The rule is in the event's chain already, so applying it would make a loop.
    Cycle,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 8] = [
        Self::Delivered,
        Self::Retrying,
        Self::DeadLettered,
        Self::Expired,
        Self::Lost,
        Self::NoMatch,
        Self::NoTarget,
        Self::Cycle,
    ];

    /// Returns the name in JSON and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retrying => "retrying",
            Self::DeadLettered => "dead_lettered",
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::NoMatch => "no_match",
            Self::NoTarget => "no_target",
            Self::Cycle => "cycle",
        }
    }

    /// True for failures, which are kept whatever is sampled.
    pub(crate) const fn is_trouble(self) -> bool {
        matches!(self, Self::Retrying | Self::DeadLettered | Self::Expired | Self::Lost | Self::Cycle)
    }
}

/// A decision as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DecisionRecord {
    /// The number, which grows from record to record, also across restarts.
    pub number: u64,
    /// The time of the decision.
    pub at: Timestamp,
    /// The event; `None` for a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    /// Its document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentId>,
    /// Its kind; `None` where the log no longer has the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its offset in the log; for a gap that of the first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// The extent of a gap, if the decision is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// The version of the rules.
    pub rules_version: u64,
    /// The rule that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// The chosen target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ServiceName>,
    /// True if the target is one of the rule's fallbacks.
    pub fallback: bool,
    /// True if the event was sent again on request.
    pub replay: bool,
    /// The outcome.
    pub outcome: Outcome,
    /// The attempt, from 1; 0 without an attempt.
    pub attempt: u32,
    /// The duration of the attempt, in seconds.
    pub duration_seconds: f64,
    /// The error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The verdict of each rule; empty if the rules have changed since they selected the event.
    pub verdicts: Vec<RuleVerdict>,
    /// The number of rules whose verdicts are left out, because those of the rules before them fill the record.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub verdicts_left_out: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The memory that a verdict takes, at most about its size in JSON.
fn verdict_bytes(verdict: &RuleVerdict) -> usize {
    let message = match &verdict.reason {
        VerdictReason::ConditionError { message } => message.len(),
        VerdictReason::NotReached { after } => after.len(),
        _ => 0,
    };
    64 + verdict.rule.len() + message
}

fn text_bytes(document: Option<&DocumentId>) -> usize {
    document.map_or(0, |document| document.as_str().len())
}

/// Shortens `text` to the characters that are kept of an error.
fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_ERROR_CHARS) {
        text.truncate(end);
    }
}

impl Decision {
    /// The decision that no target gets an event. The caller adds what it knows of its way.
    pub(crate) fn lost(
        at: Timestamp,
        event: DecidedEvent,
        target: Option<ServiceName>,
        reason: String,
    ) -> Self {
        Self {
            at,
            event,
            rules_version: 0,
            rule: None,
            target,
            is_fallback: false,
            is_replay: false,
            outcome: Outcome::Lost,
            attempt: 0,
            duration: Duration::ZERO,
            error: Some(reason),
            verdicts: Box::new(Vec::new),
        }
    }

    /// The memory that the decision takes while it waits to be kept.
    pub(super) fn bytes(&self) -> usize {
        let error = self.error.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.event.bytes + text_bytes(self.event.document.as_ref()) + error
    }

    pub(crate) fn into_record(mut self, number: u64) -> DecisionRecord {
        self.error.as_mut().map(shorten).unwrap_or_default();
        let mut verdicts = (self.verdicts)();
        for verdict in &mut verdicts {
            if let VerdictReason::ConditionError { message } = &mut verdict.reason {
                shorten(message);
            }
        }
        let mut bytes = 0;
        let fits = |verdict: &&RuleVerdict| {
            bytes += verdict_bytes(verdict);
            bytes <= MAX_VERDICT_BYTES
        };
        let kept = verdicts.iter().take_while(fits).count();
        let verdicts_left_out = verdicts.len() - kept;
        verdicts.truncate(kept);
        verdicts.shrink_to_fit();
        DecisionRecord {
            number,
            at: self.at,
            event: self.event.id,
            document: self.event.document,
            kind: self.event.kind.map(|kind| kind.as_str().to_owned()),
            offset: self.event.offset,
            gap: self.event.gap,
            rules_version: self.rules_version,
            rule: self.rule,
            target: self.target,
            fallback: self.is_fallback,
            replay: self.is_replay,
            outcome: self.outcome,
            attempt: self.attempt,
            duration_seconds: self.duration.as_secs_f64(),
            error: self.error,
            verdicts,
            verdicts_left_out,
        }
    }
}

impl DecisionRecord {
    /// The number of events that the decision is about.
    pub(crate) fn events(&self) -> u64 {
        self.gap.map_or(1, |gap| gap.events)
    }

    /// The memory that the record takes.
    pub(super) fn bytes(&self) -> usize {
        let error = self.error.as_ref().map_or(0, String::len);
        let verdicts: usize = self.verdicts.iter().map(verdict_bytes).sum();
        size_of::<Self>() + text_bytes(self.document.as_ref()) + error + verdicts
    }
}

/// A selection of decisions: those that match every given field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DecisionFilter {
    /// Selects decisions about events of this document.
    pub document: Option<DocumentId>,
    /// Selects decisions about this event.
    pub event: Option<EventId>,
    /// Selects decisions for this target.
    pub target: Option<ServiceName>,
    /// Selects decisions by this rule.
    pub rule: Option<String>,
    /// Selects decisions with this outcome.
    pub outcome: Option<Outcome>,
    /// Selects decisions made at this time or later.
    pub from: Option<Timestamp>,
    /// Selects decisions made before this time.
    pub to: Option<Timestamp>,
}

impl DecisionFilter {
    /// Returns true if `record` is selected.
    pub(crate) fn matches(&self, record: &DecisionRecord) -> bool {
        let Self { document, event, target, rule, outcome, from, to } = self;
        document.as_ref().is_none_or(|document| record.document.as_ref() == Some(document))
            && event.is_none_or(|event| record.event == Some(event))
            && target.as_ref().is_none_or(|target| record.target.as_ref() == Some(target))
            && rule.as_ref().is_none_or(|rule| record.rule.as_deref() == Some(rule.as_str()))
            && outcome.is_none_or(|outcome| outcome == record.outcome)
            && from.is_none_or(|from| record.at >= from)
            && to.is_none_or(|to| record.at < to)
    }
}
