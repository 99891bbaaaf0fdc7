//! A rule: the events that it applies to, and their targets.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use relay_core::{Event, ServiceName};

use super::condition::Condition;
use super::{Capability, Strategy};

/// A validated rule.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rule {
    /// The name: 1 to 64 of the characters `A-Z a-z 0-9 . _ -`, unique in its rule set.
    pub name: Arc<str>,
    /// The priority. Higher ones are tried first, equal ones in the order of the document.
    pub priority: i64,
    /// The kinds that the rule applies to; all if empty.
    pub kinds: Vec<Pattern>,
    /// The documents that the rule applies to; all if empty.
    pub documents: Vec<Pattern>,
    /// A further condition on the event.
    pub when: Option<Condition>,
    /// The targets.
    pub targets: Vec<TargetRef>,
    /// The choice among the targets.
    pub strategy: Strategy,
    /// The targets that are used when none of `targets` is usable.
    pub fallback: Vec<TargetRef>,
    /// True if later rules are still tried after this one matched.
    pub continues: bool,
    /// False for a rule that is ignored.
    pub enabled: bool,
    pub(super) condition_errors: AtomicU64,
}

impl Rule {
    /// Returns the number of failed evaluations of the condition since the rule set was made.
    pub fn condition_errors(&self) -> u64 {
        self.condition_errors.load(Relaxed)
    }

    pub(crate) fn count_condition_error(&self) {
        self.condition_errors.fetch_add(1, Relaxed);
    }

    /// Returns true if the rule applies to the event's kind.
    pub(super) fn matches_kind(&self, event: &Event) -> bool {
        matches_any(&self.kinds, event.kind.as_str())
    }

    /// Returns true if the rule applies to the event's document.
    pub(super) fn matches_document(&self, event: &Event) -> bool {
        matches_any(&self.documents, event.document.as_str())
    }
}

fn matches_any(patterns: &[Pattern], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}

/// A reference to targets: by name, or by a capability.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TargetRef {
    /// The target or service of this name.
    Name(ServiceName),
    /// All targets with this capability, in the order of their names; written `capability:<name>`.
    Capability(Capability),
}

impl TargetRef {
    /// The prefix of a reference by capability.
    pub(crate) const CAPABILITY_PREFIX: &str = "capability:";

    /// Parses a reference of a rule document.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix(Self::CAPABILITY_PREFIX) {
            Some(capability) => {
                Capability::new(capability).map(Self::Capability).map_err(|error| error.to_string())
            }
            None => ServiceName::new(text).map(Self::Name).map_err(|error| error.to_string()),
        }
    }
}

impl fmt::Display for TargetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Capability(capability) => write!(f, "{}{capability}", Self::CAPABILITY_PREFIX),
        }
    }
}

/// A pattern for texts: one text, or all with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Pattern {
    /// This text.
    Exact(Box<str>),
    /// All texts with this prefix; written with a `*` at the end.
    Prefix(Box<str>),
}

impl Pattern {
    /// Parses a pattern of a rule document.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (start, is_prefix) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
        if start.contains('*') {
            return Err(format!("`{text}` has a `*` before its end; only the last character may be one"));
        }
        if text.is_empty() {
            return Err("an empty text matches nothing; write a name, or `*` for all".to_owned());
        }
        Ok(if is_prefix { Self::Prefix(start.into()) } else { Self::Exact(text.into()) })
    }

    /// Returns true if `text` matches.
    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}
