//! Which rules can match an event at all, found by its kind and document without looking at the others.
//!
//! A map from kinds to maps from documents to rules. Exact names are looked up; prefixes too, once for each
//! length that some prefix has. So an event costs what the rules for its kind and document cost, however many there are
//! for others.

use std::collections::HashMap;

use super::rule::{Pattern, Rule};

/// The most pairs of a kind and a document, over all rules, that an index is built for.
pub(super) const MAX_ENTRIES: usize = 100_000;

/// Places of rules, by kind and document.
#[derive(Debug, Default)]
pub(super) struct Index(ByPattern<ByPattern<Vec<u32>>>);

impl Index {
    /// How many entries `rule` takes.
    pub(super) fn entry_count(rule: &Rule) -> usize {
        rule.kinds.len().max(1) * rule.documents.len().max(1)
    }

    /// The index of `rules`, of which those that are not enabled are left out.
    pub(super) fn build(rules: &[Rule]) -> Self {
        let mut index = Self::default();
        for (place, rule) in (0..).zip(rules).filter(|(_, rule)| rule.enabled) {
            index.0.add(&rule.kinds, |by_document| {
                by_document.add(&rule.documents, |places| places.push(place));
            });
        }
        index
    }

    /// The places of all rules for this kind and document, ascending, each once.
    pub(super) fn candidates(&self, kind: &str, document: &str) -> Vec<u32> {
        let mut found = Vec::new();
        self.0.for_each(kind, |by_document| {
            by_document.for_each(document, |places| found.extend_from_slice(places));
        });
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Values for texts: for all, for certain ones, and for those with certain beginnings.
#[derive(Debug, Default)]
struct ByPattern<T> {
    all: T,
    exact: HashMap<Box<str>, T>,
    prefixes: HashMap<Box<str>, T>,
    /// The lengths of the prefixes, each once.
    lengths: Vec<usize>,
}

impl<T: Default> ByPattern<T> {
    /// Changes the value of each of `patterns`, or that for all texts when there are none.
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

    /// Visits the values that are for `text`.
    fn for_each<'a>(&'a self, text: &str, mut visit: impl FnMut(&'a T)) {
        visit(&self.all);
        if !self.exact.is_empty()
            && let Some(value) = self.exact.get(text)
        {
            visit(value);
        }
        for &length in &self.lengths {
            // None where the text is shorter or the length falls inside a character: no prefix of that length fits.
            if let Some(value) = text.get(..length).and_then(|start| self.prefixes.get(start)) {
                visit(value);
            }
        }
    }
}
