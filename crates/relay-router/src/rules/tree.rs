//! A rule document as a tree of values with their lines. TOML and JSON have the same tree, so that one parser
//! serves both and every problem has a line.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, MapAccess, Visitor};
use serde_json::value::RawValue;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::RuleProblem;
use super::rule_document::RuleFormat;

/// The deepest nesting of arrays and objects. A rule document needs four levels.
const MAX_DEPTH: usize = 8;

/// A value with the line that it begins on, from 1.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) line: usize,
    pub(super) value: Value<'a>,
}

#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Bool(bool),
    Int(i64),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    /// The entries in the order of the document for JSON, and in the order of the keys for TOML.
    Table(Vec<(Cow<'a, str>, Node<'a>)>),
    /// A value that no rule document has: null, a fraction, a date, or a number that is too large.
    Other(&'static str),
}

impl Value<'_> {
    /// Returns the name of the type, for messages.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::Int(_) => "a whole number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(what) => what,
        }
    }

    /// Converts the value to JSON, for types that serde reads.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Int(number) => (*number).into(),
            Self::Text(text) => text.as_ref().into(),
            Self::List(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::Table(entries) => {
                entries.iter().map(|(key, node)| (key.to_string(), node.value.to_json())).collect()
            }
            Self::Other(_) => serde_json::Value::Null,
        }
    }
}

/// Parses `text`.
///
/// # Errors
/// The lines at which the text is not of `format`.
pub(super) fn parse(text: &str, format: RuleFormat) -> Result<Node<'_>, Vec<RuleProblem>> {
    let lines = LineStarts::of(text);
    match format {
        RuleFormat::Toml => {
            let (table, errors) = DeTable::parse_recoverable(text);
            if errors.is_empty() {
                return Ok(Node { line: 1, value: toml_table(table.into_inner(), &lines) });
            }
            let problem = |error: &toml::de::Error| {
                let line = error.span().map_or(1, |span| lines.line_at(span.start));
                RuleProblem::at(line, format!("this is not TOML: {}", error.message().trim()))
            };
            Err(errors.iter().map(problem).collect())
        }
        RuleFormat::Json => {
            let not_json = |error: &serde_json::Error| {
                vec![RuleProblem::at(error.line().max(1), format!("this is not JSON: {error}"))]
            };
            let raw: &RawValue = serde_json::from_str(text).map_err(|error| not_json(&error))?;
            Ok(json_node(raw.get(), text, &lines, 0))
        }
    }
}

fn toml_table<'a>(table: DeTable<'a>, lines: &LineStarts) -> Value<'a> {
    let entries = table.into_iter().map(|(key, value)| {
        let line = lines.line_at(key.span().start);
        let node = toml_node(value, lines);
        // A table in brackets begins at its header, any other value at its key.
        let line =
            if matches!(node.value, Value::Table(_) | Value::List(_)) { node.line.min(line) } else { line };
        (key.into_inner(), Node { line, value: node.value })
    });
    Value::Table(entries.collect())
}

fn toml_node<'a>(value: Spanned<DeValue<'a>>, lines: &LineStarts) -> Node<'a> {
    let line = lines.line_at(value.span().start);
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number out of range"), Value::Int),
        DeValue::Float(_) => Value::Other("a fraction"),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::List(items.into_iter().map(|item| toml_node(item, lines)).collect()),
        DeValue::Table(table) => toml_table(table, lines),
    };
    Node { line, value }
}

/// Parses `part`, which is one JSON value within `text`.
fn json_node<'a>(part: &'a str, text: &'a str, lines: &LineStarts, depth: usize) -> Node<'a> {
    // A raw value is a slice of the text that it was parsed from.
    let line = lines.line_at((part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize));
    let inside = |raw: &'a RawValue| json_node(raw.get(), text, lines, depth + 1);
    let value = match part.as_bytes().first() {
        Some(b'{' | b'[') if depth >= MAX_DEPTH => Value::Other("nested too deep"),
        Some(b'{') => serde_json::from_str::<RawTable<'a>>(part).map_or(Value::Other("no table"), |table| {
            Value::Table(table.0.into_iter().map(|(key, raw)| (key, inside(raw))).collect())
        }),
        Some(b'[') => serde_json::from_str::<Vec<&'a RawValue>>(part)
            .map_or(Value::Other("no list"), |items| Value::List(items.into_iter().map(inside).collect())),
        Some(b'"') => {
            serde_json::from_str::<Text<'a>>(part).map_or(Value::Other("no text"), |text| Value::Text(text.0))
        }
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        Some(b'n') => Value::Other("null"),
        _ => part.parse().map_or(Value::Other("a fraction, or a number out of range"), Value::Int),
    };
    Node { line, value }
}

/// A text that is copied only if it has escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A JSON object in its own order, with repeated keys.
struct RawTable<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawTable<'a> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawTable<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    entries.push((key, value));
                }
                Ok(RawTable(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// The offsets at which lines begin.
struct LineStarts(Vec<usize>);

impl LineStarts {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// Returns the line, from 1, of the byte at `offset`.
    fn line_at(&self, offset: usize) -> usize {
        self.0.partition_point(|&start| start <= offset).max(1)
    }
}
