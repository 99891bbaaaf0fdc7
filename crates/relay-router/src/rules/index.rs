//! The index of rules by kind and document.
//!
//! It maps kinds to maps from documents to rules. Exact names take one lookup, and prefixes one lookup for
//! each length that occurs. The cost of an event thus depends on the rules for its kind and document, not on
//! the number of all rules.

use std::collections::HashMap;

use super::rule::{Pattern, Rule};

/// The most pairs of a kind and a document in an index, over all rules.
pub(super) const MAX_ENTRIES: usize = 100_000;

/// The indexes of rules, by kind and document.
#[derive(Debug, Default)]
pub(super) struct Index(ByPattern<ByPattern<Vec<u32>>>);

impl Index {
    /// Returns the number of entries that `rule` takes.
    pub(super) fn entry_count(rule: &Rule) -> usize {
        rule.kinds.len().max(1) * rule.documents.len().max(1)
    }

    /// Builds the index of the enabled rules.
    pub(super) fn build(rules: &[Rule]) -> Self {
        let mut built = Self::default();
        for (index, rule) in (0..).zip(rules).filter(|(_, rule)| rule.enabled) {
            built.0.add(&rule.kinds, |by_document| {
                by_document.add(&rule.documents, |indexes| indexes.push(index));
            });
        }
        built
    }

    /// Returns the indexes of all rules for this kind and document, in ascending order and without
    /// duplicates.
    pub(super) fn candidates(&self, kind: &str, document: &str) -> Vec<u32> {
        let mut found = Vec::new();
        self.0.for_each(kind, |by_document| {
            by_document.for_each(document, |indexes| found.extend_from_slice(indexes));
        });
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Values by pattern: for all texts, for exact texts, and for prefixes.
#[derive(Debug, Default)]
struct ByPattern<T> {
    all: T,
    exact: HashMap<Box<str>, T>,
    prefixes: HashMap<Box<str>, T>,
    /// The lengths of the prefixes, without duplicates.
    lengths: Vec<usize>,
}

impl<T: Default> ByPattern<T> {
    /// Changes the value of each pattern, or the value for all texts if there are none.
    fn add(&mut self, patterns: &[Pattern], mut change: impl FnMut(&mut T)) {
        if patterns.is_empty() {
            change(&mut self.all);
        }
        for pattern in patterns {
            match pattern {
                Pattern::Exact(text) => change(self.exact.entry(text.clone()).or_default()),
                Pattern::Prefix(text) if text.is_empty() => change(&mut self.all),
                Pattern::Prefix(text) => {
                    change(self.prefixes.entry(text.clone()).or_default());
                    if !self.lengths.contains(&text.len()) {
                        self.lengths.push(text.len());
                    }
                }
            }
        }
    }

    /// Visits the values of all patterns that match `text`.
    fn for_each<'a>(&'a self, text: &str, mut visit: impl FnMut(&'a T)) {
        visit(&self.all);
        if !self.exact.is_empty()
            && let Some(value) = self.exact.get(text)
        {
            visit(value);
        }
        for &length in &self.lengths {
            // No prefix of this length matches if the text is shorter or the length falls inside a character.
            if let Some(value) = text.get(..length).and_then(|start| self.prefixes.get(start)) {
                visit(value);
            }
        }
    }
}
