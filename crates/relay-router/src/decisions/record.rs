//! One decision: as it is handed in, and as it is kept.

use std::sync::Arc;
use std::time::Duration;

use relay_core::{DocumentId, Event, EventId, Offset, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::rules::RuleVerdict;

/// What was decided about an event: where a rule has it go, or what came of an attempt.
pub(crate) struct Decision {
    /// When.
    pub(crate) at: Timestamp,
    /// The event.
    pub(crate) event: Arc<Event>,
    /// The version of the rules that decided.
    pub(crate) rules_version: u64,
    /// The rule that matched; none when none did, and for what was sent to one target by request.
    pub(crate) rule: Option<Arc<str>>,
    /// The target that was chosen.
    pub(crate) target: Option<ServiceName>,
    /// Whether that is one of the rule's fallback targets.
    pub(crate) is_fallback: bool,
    /// Whether somebody has asked for the event to be sent again.
    pub(crate) is_replay: bool,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// The attempt, from 1; 0 when nothing was attempted.
    pub(crate) attempt: u32,
    /// How long the attempt took.
    pub(crate) duration: Duration,
    /// What went wrong.
    pub(crate) error: Option<String>,
    /// Says of each rule why it matched or did not; called on the log's thread, if the decision is kept.
    pub(crate) verdicts: Box<dyn FnOnce() -> Vec<RuleVerdict> + Send>,
}

/// What came of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The target took the event.
    Delivered,
    /// It did not, and is asked again, or another one is.
    Retrying,
    /// It did not, and is not asked again.
    DeadLettered,
    /// The event's time was over.
    Expired,
    /// The event is no longer kept in the log.
    Lost,
    /// No rule wants it.
    NoMatch,
    /// A rule wants it and there is nobody to send it to.
    NoTarget,
    /// It would go round in a circle.
    Cycle,
}

impl Outcome {
    /// All of them.
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

    /// Its name in JSON and in metrics.
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

    /// Whether somebody should know of it: such decisions are kept whatever is sampled.
    pub const fn is_trouble(self) -> bool {
        matches!(self, Self::Retrying | Self::DeadLettered | Self::Expired | Self::Lost | Self::Cycle)
    }
}

/// A decision as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DecisionRecord {
    /// Grows from record to record, over restarts too.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// The event.
    pub event: EventId,
    /// Its document.
    pub document: DocumentId,
    /// Its kind.
    pub kind: String,
    /// Its place in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// The version of the rules that decided.
    pub rules_version: u64,
    /// The rule that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// The target that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ServiceName>,
    /// Whether that is one of the rule's fallback targets.
    pub fallback: bool,
    /// Whether somebody has asked for the event to be sent again.
    pub replay: bool,
    /// What came of it.
    pub outcome: Outcome,
    /// The attempt, from 1; 0 when nothing was attempted.
    pub attempt: u32,
    /// How long the attempt took, in seconds.
    pub duration_seconds: f64,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The rules that were looked at, and why each did or did not match, by the rules in force when it was recorded.
    pub verdicts: Vec<RuleVerdict>,
}

impl Decision {
    pub(super) fn into_record(self, number: u64) -> DecisionRecord {
        DecisionRecord {
            number,
            at: self.at,
            event: self.event.id,
            document: self.event.document.clone(),
            kind: self.event.kind.as_str().to_owned(),
            offset: self.event.offset,
            rules_version: self.rules_version,
            rule: self.rule,
            target: self.target,
            fallback: self.is_fallback,
            replay: self.is_replay,
            outcome: self.outcome,
            attempt: self.attempt,
            duration_seconds: self.duration.as_secs_f64(),
            error: self.error,
            verdicts: (self.verdicts)(),
        }
    }
}

/// Which decisions are meant: those that fit all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DecisionFilter {
    /// About events of this document.
    pub document: Option<DocumentId>,
    /// About this event.
    pub event: Option<EventId>,
    /// For this target.
    pub target: Option<ServiceName>,
    /// By this rule.
    pub rule: Option<String>,
    /// With this outcome.
    pub outcome: Option<Outcome>,
    /// Made then or later.
    pub from: Option<Timestamp>,
    /// Made before then.
    pub to: Option<Timestamp>,
}

impl DecisionFilter {
    /// Whether `record` is meant.
    pub fn matches(&self, record: &DecisionRecord) -> bool {
        let Self { document, event, target, rule, outcome, from, to } = self;
        document.as_ref().is_none_or(|document| *document == record.document)
            && event.is_none_or(|event| event == record.event)
            && target.as_ref().is_none_or(|target| record.target.as_ref() == Some(target))
            && rule.as_ref().is_none_or(|rule| record.rule.as_deref() == Some(rule.as_str()))
            && outcome.is_none_or(|outcome| outcome == record.outcome)
            && from.is_none_or(|from| record.at >= from)
            && to.is_none_or(|to| record.at < to)
    }
}
