//! The reader of a table's fields, which collects the problems it finds.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::rules::closest_match::closest_match;
use crate::rules::duration_text;
use crate::rules::problems::RuleProblem;
use crate::rules::tree::{Node, Value};

/// A reader of tables, with the problems found so far.
#[derive(Default)]
pub(super) struct TableReader {
    pub(super) problems: Vec<RuleProblem>,
    /// The rule or target that is being read.
    pub(super) subject: Option<String>,
}

/// A table whose keys are known.
pub(super) struct TableFields<'n, 'a>(&'n [(Cow<'a, str>, Node<'a>)]);

impl<'n, 'a> TableFields<'n, 'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'n Node<'a>> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }
}

impl TableReader {
    pub(super) fn report(&mut self, line: usize, reason: impl Into<String>) {
        self.problems.push(RuleProblem { line, subject: self.subject.clone(), reason: reason.into() });
    }

    /// Reports a problem unless this line already has one.
    pub(super) fn report_once(&mut self, line: usize, reason: &str) {
        if self.problems.iter().all(|problem| problem.line != line || problem.subject != self.subject) {
            self.report(line, reason);
        }
    }

    fn report_type(&mut self, key: &str, node: &Node<'_>, wanted: &str) {
        self.report(node.line, format!("`{key}` must be {wanted}, not {}", node.value.type_name()));
    }

    /// Returns the fields of a table, and reports those that are not in `allowed`.
    pub(super) fn table<'n, 'a>(
        &mut self,
        node: &'n Node<'a>,
        allowed: &[&str],
    ) -> Option<TableFields<'n, 'a>> {
        let Value::Table(entries) = &node.value else {
            self.report(node.line, format!("here must be a table, not {}", node.value.type_name()));
            return None;
        };
        for (index, (key, value)) in entries.iter().enumerate() {
            if !allowed.contains(&&**key) {
                let shown: String = key.chars().take(64).collect();
                let reason = match closest_match(key, allowed.iter().copied()) {
                    Some(near) => format!("there is no `{shown}` here; did you mean `{near}`?"),
                    None => format!("there is no `{shown}` here; known are `{}`", allowed.join("`, `")),
                };
                self.report(value.line, reason);
            } else if entries[..index].iter().any(|(earlier, _)| earlier == key) {
                self.report(value.line, format!("`{key}` is there twice"));
            }
        }
        Some(TableFields(entries))
    }

    /// Returns the entries of a list, at most `max`; empty if there is no list.
    pub(super) fn list<'n, 'a>(
        &mut self,
        node: Option<&'n Node<'a>>,
        key: &str,
        max: usize,
    ) -> &'n [Node<'a>] {
        match node {
            None => &[],
            Some(Node { value: Value::List(items), line }) => {
                if items.len() > max {
                    self.report(
                        *line,
                        format!("`{key}` has {} entries, at most {max} are allowed", items.len()),
                    );
                }
                &items[..items.len().min(max)]
            }
            Some(node) => {
                self.report_type(key, node, "a list");
                &[]
            }
        }
    }

    /// Returns a text and its line.
    pub(super) fn text<'n>(&mut self, fields: &TableFields<'n, '_>, key: &str) -> Option<(&'n str, usize)> {
        let node = fields.get(key)?;
        if let Value::Text(text) = &node.value {
            return Some((text, node.line));
        }
        self.report_type(key, node, "text");
        None
    }

    pub(super) fn required_text<'n>(
        &mut self,
        fields: &TableFields<'n, '_>,
        key: &str,
        line: usize,
    ) -> Option<(&'n str, usize)> {
        if fields.get(key).is_none() {
            self.report(line, format!("`{key}` is missing"));
        }
        self.text(fields, key)
    }

    pub(super) fn bool(&mut self, fields: &TableFields<'_, '_>, key: &str) -> Option<bool> {
        let node = fields.get(key)?;
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        self.report_type(key, node, "true or false");
        None
    }

    pub(super) fn int(
        &mut self,
        fields: &TableFields<'_, '_>,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> Option<i64> {
        let node = fields.get(key)?;
        let Value::Int(number) = node.value else {
            self.report_type(key, node, "a whole number");
            return None;
        };
        if !range.contains(&number) {
            let (low, high) = range.into_inner();
            self.report(node.line, format!("`{key}` is {number}; it must lie between {low} and {high}"));
            return None;
        }
        Some(number)
    }

    /// Returns a number from 1 to `max`.
    pub(super) fn count<T: TryFrom<i64>>(
        &mut self,
        fields: &TableFields<'_, '_>,
        key: &str,
        max: i64,
    ) -> Option<T> {
        self.int(fields, key, 1..=max).and_then(|number| T::try_from(number).ok())
    }

    pub(super) fn duration(
        &mut self,
        fields: &TableFields<'_, '_>,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let (text, line) = self.text(fields, key)?;
        match duration_text::parse(text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                let (low, high) = (duration_text::show(*range.start()), duration_text::show(*range.end()));
                self.report(line, format!("`{key}` is {text}; it must lie between {low} and {high}"));
                None
            }
            Err(reason) => {
                self.report(line, format!("`{key}`: {reason}"));
                None
            }
        }
    }

    /// Returns a list of texts, each parsed with `parse`.
    pub(super) fn texts<T>(
        &mut self,
        fields: &TableFields<'_, '_>,
        key: &str,
        max: usize,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let mut read = Vec::new();
        for item in self.list(fields.get(key), key, max) {
            match &item.value {
                Value::Text(text) => match parse(text) {
                    Ok(value) => read.push(value),
                    Err(reason) => self.report(item.line, format!("`{key}`: {reason}")),
                },
                _ => self.report_type(key, item, "a list of texts"),
            }
        }
        read
    }

    /// Returns a value that serde reads.
    pub(super) fn with_serde<T: DeserializeOwned>(
        &mut self,
        fields: &TableFields<'_, '_>,
        key: &str,
    ) -> Option<T> {
        let node = fields.get(key)?;
        match serde_json::from_value(node.value.to_json()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(node.line, format!("`{key}`: {error}"));
                None
            }
        }
    }
}
