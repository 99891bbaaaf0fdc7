//! A rule: which events it is for, and who gets them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use relay_core::{Event, ServiceName};

use super::condition::Condition;
use super::{Capability, Strategy};

/// A rule, checked.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rule {
    /// Its name: 1 to 64 of the characters `A-Z a-z 0-9 . _ -`, of its own in its rule set.
    pub name: Arc<str>,
    /// Rules with a higher one are looked at first; those with the same, in the order of the document.
    pub priority: i64,
    /// The kinds that it is for; all when empty.
    pub kinds: Vec<Pattern>,
    /// The documents that it is for; all when empty.
    pub documents: Vec<Pattern>,
    /// What must hold besides.
    pub when: Option<Condition>,
    /// Who gets the events.
    pub targets: Vec<TargetRef>,
    /// Which of them.
    pub strategy: Strategy,
    /// Who gets the events when none of the targets can.
    pub fallback: Vec<TargetRef>,
    /// Whether rules after it are still looked at when it matches.
    pub continues: bool,
    /// Whether it is looked at.
    pub enabled: bool,
    pub(super) condition_errors: AtomicU64,
}

impl Rule {
    /// How often its condition could not be evaluated since the rule set was made.
    pub fn condition_errors(&self) -> u64 {
        self.condition_errors.load(Relaxed)
    }

    pub(super) fn count_condition_error(&self) {
        self.condition_errors.fetch_add(1, Relaxed);
    }

    /// Whether the rule is for the event's kind.
    pub(super) fn matches_kind(&self, event: &Event) -> bool {
        matches_any(&self.kinds, event.kind.as_str())
    }

    /// Whether the rule is for the event's document.
    pub(super) fn matches_document(&self, event: &Event) -> bool {
        matches_any(&self.documents, event.document.as_str())
    }
}

fn matches_any(patterns: &[Pattern], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}

/// Who gets events: a target by its name, or everyone who has a capability.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetRef {
    /// The target or service of this name.
    Name(ServiceName),
    /// All with this capability, in the order of their names; written `capability:<name>`.
    Capability(Capability),
}

impl TargetRef {
    /// How a reference by capability begins.
    pub const CAPABILITY_PREFIX: &str = "capability:";

    /// Reads `text` as a rule document has it.
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

/// Which texts are meant: one, or all with a beginning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// This text.
    Exact(Box<str>),
    /// All that begin with this; written with a `*` at its end.
    Prefix(Box<str>),
}

impl Pattern {
    /// Reads `text` as a rule document has it.
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

    /// Whether `text` is meant.
    pub fn matches(&self, text: &str) -> bool {
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
