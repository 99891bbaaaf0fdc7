//! A parsed rule document, ready to match events.

use std::fmt;
use std::sync::Arc;

use relay_core::{Event, ServiceName};
use serde::{Deserialize, Serialize};

use super::condition::EventView;
use super::index::Index;
use super::parse;
use super::problems::{RuleProblem, RuleSetError};
use super::rule::Rule;
use super::rule_document::RuleFormat;
use super::target_spec::TargetSpec;

/// A validated set of rules and targets. It is immutable: new rules make a new set.
#[derive(Debug, Default)]
pub struct RuleSet {
    /// The rules in the order of evaluation.
    rules: Vec<Rule>,
    index: Index,
    /// The targets by name.
    targets: Vec<TargetSpec>,
    warnings: Vec<RuleProblem>,
}

impl RuleSet {
    /// The most bytes of a rule document.
    pub const MAX_BYTES: usize = parse::MAX_BYTES;
    /// The most rules.
    pub const MAX_RULES: usize = parse::MAX_RULES;
    /// The most targets that a document describes.
    pub const MAX_TARGETS: usize = parse::MAX_TARGETS;

    /// Parses a rule document and checks all of it. This takes milliseconds; conditions are compiled on a
    /// thread of their own.
    ///
    /// # Errors
    /// [`RuleSetError`], with every problem.
    pub fn parse(text: &str, format: RuleFormat) -> Result<Self, RuleSetError> {
        let mut parsed = parse::parse(text, format).map_err(RuleSetError::of)?;
        // The sort is stable: rules of equal priority stay in the order of the document.
        parsed.rules.sort_by_key(|rule| std::cmp::Reverse(rule.priority));
        parsed.targets.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self {
            index: Index::build(&parsed.rules),
            rules: parsed.rules,
            targets: parsed.targets,
            warnings: parsed.warnings,
        })
    }

    /// Returns all rules in the order of evaluation: by priority, then as in the document.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Returns the rule of this name.
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| &*rule.name == name)
    }

    /// Returns the targets that the document describes, by name.
    pub fn targets(&self) -> &[TargetSpec] {
        &self.targets
    }

    /// Returns the target of this name, if the document describes it.
    pub fn target(&self, name: &ServiceName) -> Option<&TargetSpec> {
        let index = self.targets.binary_search_by(|target| target.name.cmp(name)).ok()?;
        self.targets.get(index)
    }

    /// Returns the warnings: rules that name targets which the document does not describe. Services of these
    /// names may register at any time.
    pub fn warnings(&self) -> &[RuleProblem] {
        &self.warnings
    }

    /// Returns the rules that match `event` in the order of evaluation, up to the first that does not
    /// continue. A rule whose condition fails does not match, and counts the failure
    /// ([`Rule::condition_errors`]).
    pub fn matches(&self, event: &Event) -> Matches<'_> {
        let matches = self.evaluate(event);
        matches.failed.iter().for_each(|rule| rule.count_condition_error());
        matches
    }

    /// Returns the same as [`RuleSet::matches`], and counts nothing.
    pub(crate) fn evaluate(&self, event: &Event) -> Matches<'_> {
        let mut matches = Matches { rules: Vec::new(), failed: Vec::new() };
        let view = EventView::new(event);
        for index in self.index.candidates(event.kind.as_str(), event.document.as_str()) {
            let Some(rule) = self.rules.get(index as usize) else { continue };
            match rule.when.as_ref().map_or(Ok(true), |when| when.holds(&view)) {
                Ok(true) => {
                    matches.rules.push(rule);
                    if !rule.continues {
                        break;
                    }
                }
                Ok(false) => {}
                Err(_) => matches.failed.push(rule),
            }
        }
        matches
    }

    /// Returns the verdict of every rule about `event`, in the order of evaluation. It evaluates all rules,
    /// so that it suits dry runs and the decision log, not the hot path. It counts nothing.
    pub fn explain(&self, event: &Event) -> Vec<RuleVerdict> {
        let view = EventView::new(event);
        let mut stopped_by: Option<&Arc<str>> = None;
        let verdict = |rule| {
            let reason = match stopped_by {
                Some(after) => VerdictReason::NotReached { after: Arc::clone(after) },
                None => reason(rule, event, &view),
            };
            if reason == VerdictReason::Matched && !rule.continues {
                stopped_by = Some(&rule.name);
            }
            RuleVerdict { rule: Arc::clone(&rule.name), reason }
        };
        self.rules.iter().map(verdict).collect()
    }
}

fn reason(rule: &Rule, event: &Event, view: &EventView<'_>) -> VerdictReason {
    if !rule.enabled {
        return VerdictReason::Disabled;
    }
    if !rule.matches_kind(event) {
        return VerdictReason::Kind;
    }
    if !rule.matches_document(event) {
        return VerdictReason::Document;
    }
    match rule.when.as_ref().map_or(Ok(true), |when| when.holds(view)) {
        Ok(true) => VerdictReason::Matched,
        Ok(false) => VerdictReason::Condition,
        Err(error) => VerdictReason::ConditionError { message: error.to_string() },
    }
}

/// The rules that match an event, in the order of evaluation.
#[derive(Debug)]
pub struct Matches<'a> {
    rules: Vec<&'a Rule>,
    failed: Vec<&'a Rule>,
}

impl<'a> Matches<'a> {
    /// Returns the rules.
    pub fn rules(&self) -> &[&'a Rule] {
        &self.rules
    }

    /// Returns the number of rules that do not match because their condition failed.
    pub fn condition_errors(&self) -> usize {
        self.failed.len()
    }

    /// The rules that do not match because their condition failed.
    pub(crate) fn failed(&self) -> &[&'a Rule] {
        &self.failed
    }
}

impl<'a> IntoIterator for Matches<'a> {
    type Item = &'a Rule;
    type IntoIter = std::vec::IntoIter<&'a Rule>;

    fn into_iter(self) -> Self::IntoIter {
        self.rules.into_iter()
    }
}

/// The verdict of one rule about an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RuleVerdict {
    /// The rule.
    pub rule: Arc<str>,
    /// The match, or the reason that there is none.
    #[serde(flatten)]
    pub reason: VerdictReason,
}

/// A match, or the first reason that there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerdictReason {
    /// The rule matches.
    Matched,
    /// The rule is not enabled.
    Disabled,
    /// The rule does not apply to the event's kind.
    Kind,
    /// The rule does not apply to the event's document.
    Document,
    /// The condition does not hold.
    Condition,
    /// The evaluation of the condition failed, which counts as not holding.
    ConditionError {
        /// The error.
        message: String,
    },
    /// An earlier rule matched and does not continue, so that this one was not tried.
    NotReached {
        /// The earlier rule.
        after: Arc<str>,
    },
}

impl fmt::Display for VerdictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched => f.write_str("matches"),
            Self::Disabled => f.write_str("is not enabled"),
            Self::Kind => f.write_str("is for other kinds"),
            Self::Document => f.write_str("is for other documents"),
            Self::Condition => f.write_str("its condition does not hold"),
            Self::ConditionError { message } => write!(f, "its condition failed: {message}"),
            Self::NotReached { after } => write!(f, "not looked at, after `{after}` matched"),
        }
    }
}
