//! A rule document, checked and ready to be asked.

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

/// Rules and targets, checked as a whole. It never changes; new rules are a new set.
#[derive(Debug, Default)]
pub struct RuleSet {
    /// In the order in which they are looked at.
    rules: Vec<Rule>,
    index: Index,
    /// By name.
    targets: Vec<TargetSpec>,
    warnings: Vec<RuleProblem>,
}

impl RuleSet {
    /// The most bytes of a rule document.
    pub const MAX_BYTES: usize = parse::MAX_BYTES;
    /// The most rules.
    pub const MAX_RULES: usize = parse::MAX_RULES;
    /// The most targets that the document itself describes.
    pub const MAX_TARGETS: usize = parse::MAX_TARGETS;

    /// Reads a rule document and checks all of it. Takes milliseconds; conditions are compiled on a thread of their own.
    ///
    /// # Errors
    /// [`RuleSetError`], with everything that is wrong.
    pub fn parse(text: &str, format: RuleFormat) -> Result<Self, RuleSetError> {
        let mut parsed = parse::parse(text, format).map_err(RuleSetError::of)?;
        // Stable: rules of the same priority stay in the order of the document.
        parsed.rules.sort_by_key(|rule| std::cmp::Reverse(rule.priority));
        parsed.targets.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self {
            index: Index::build(&parsed.rules),
            rules: parsed.rules,
            targets: parsed.targets,
            warnings: parsed.warnings,
        })
    }

    /// All rules, in the order in which they are looked at: by priority, then as in the document.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule of this name.
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| &*rule.name == name)
    }

    /// The targets that the document describes, by name.
    pub fn targets(&self) -> &[TargetSpec] {
        &self.targets
    }

    /// The target of this name that the document describes.
    pub fn target(&self, name: &ServiceName) -> Option<&TargetSpec> {
        let place = self.targets.binary_search_by(|target| target.name.cmp(name)).ok()?;
        self.targets.get(place)
    }

    /// What may be a mistake and need not be one: rules that name targets which the document does not describe. Services of
    /// these names may register at any time.
    pub fn warnings(&self) -> &[RuleProblem] {
        &self.warnings
    }

    /// The rules that match `event`, in the order of their priority, up to the first that does not let later ones be
    /// looked at. A rule whose condition fails does not match; it counts the failure ([`Rule::condition_errors`]).
    pub fn matches(&self, event: &Event) -> Matches<'_> {
        let mut matches = Matches { rules: Vec::new(), condition_errors: 0 };
        let view = EventView::new(event);
        for place in self.index.candidates(event.kind.as_str(), event.document.as_str()) {
            let Some(rule) = self.rules.get(place as usize) else { continue };
            match rule.when.as_ref().map_or(Ok(true), |when| when.holds(&view)) {
                Ok(true) => {
                    matches.rules.push(rule);
                    if !rule.continues {
                        break;
                    }
                }
                Ok(false) => {}
                Err(_) => {
                    rule.count_condition_error();
                    matches.condition_errors += 1;
                }
            }
        }
        matches
    }

    /// Of every rule, in the order of their priority, whether it matches `event`, and why not. Looks at all rules:
    /// for dry runs and the decision log, not for the hot path. Counts nothing.
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

/// The rules that match an event, in the order of their priority.
#[derive(Debug)]
pub struct Matches<'a> {
    rules: Vec<&'a Rule>,
    condition_errors: usize,
}

impl<'a> Matches<'a> {
    /// The rules.
    pub fn rules(&self) -> &[&'a Rule] {
        &self.rules
    }

    /// How many rules do not match because their condition failed.
    pub fn condition_errors(&self) -> usize {
        self.condition_errors
    }
}

impl<'a> IntoIterator for Matches<'a> {
    type Item = &'a Rule;
    type IntoIter = std::vec::IntoIter<&'a Rule>;

    fn into_iter(self) -> Self::IntoIter {
        self.rules.into_iter()
    }
}

/// What became of one rule when an event was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RuleVerdict {
    /// The rule.
    pub rule: Arc<str>,
    /// Whether it matches, or why not.
    #[serde(flatten)]
    pub reason: VerdictReason,
}

/// Whether a rule matches an event, or the first reason why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerdictReason {
    /// It matches.
    Matched,
    /// It is not enabled.
    Disabled,
    /// It is not for the event's kind.
    Kind,
    /// It is not for the event's document.
    Document,
    /// Its condition does not hold.
    Condition,
    /// Its condition could not be evaluated, which counts as not holding.
    ConditionError {
        /// What happened.
        message: String,
    },
    /// It was not looked at: a rule before it matched and does not let later ones be looked at.
    NotReached {
        /// That rule.
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
