//! The content of an event: JSON text or opaque bytes, checked once and then passed on untouched; or the reason why there is
//! none any more.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

/// The content of an event. Cloning is cheap: the bytes are shared.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// JSON, the form that the vocabulary's typed payloads have.
    Json(JsonText),
    /// Opaque bytes, for instance a Yjs update.
    Binary(Bytes),
    /// Nothing: the event keeps its place in the order without its content. No draft has this payload.
    Absent(Absence),
}

/// The reason why an event has no content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// The event's time to live is over.
    Expired,
    /// The log cannot read the event any more.
    Lost,
}

impl Absence {
    /// The name of the reason in the formats of the edges.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Lost => "lost",
        }
    }
}

impl Payload {
    /// The payload that serialises `value`.
    ///
    /// # Errors
    /// When `value` cannot be JSON, for instance a map whose keys are not text.
    pub fn json(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        JsonText::of(value).map(Self::Json)
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(text) => text.0.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Absent(_) => 0,
        }
    }

    /// True when there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when the two mean the same: JSON of the same value, however it is written, or the same bytes. The order of an
    /// object's members does not count, and neither does the way in which a number is written.
    pub fn means_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(text), Self::Json(other)) => text.means_same(other),
            (Self::Binary(bytes), Self::Binary(other)) => bytes == other,
            _ => false,
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(text) => write!(f, "Json({})", text.as_str()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
            Self::Absent(absence) => write!(f, "Absent({absence:?})"),
        }
    }
}

/// Text that is known to be one valid JSON value.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonText(Bytes);

impl JsonText {
    /// Checks that `bytes` are one JSON value in UTF-8. The bytes are kept as they are, white space included.
    ///
    /// # Errors
    /// When they are not; the error names line and column.
    pub fn parse(bytes: Bytes) -> Result<Self, serde_json::Error> {
        serde_json::from_slice::<&RawValue>(&bytes)?;
        Ok(Self(bytes))
    }

    /// The text of `value`.
    ///
    /// # Errors
    /// When `value` cannot be JSON, for instance a map whose keys are not text.
    pub fn of(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        // Kept for as long as what it is about: spare capacity is given back.
        serde_json::to_vec(value).map(|text| Self(text.into_boxed_slice().into()))
    }

    /// The text of a value that was parsed already, without checking it again.
    pub fn from_raw(raw: &RawValue) -> Self {
        Self(Bytes::copy_from_slice(raw.get().as_bytes()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Checked when it was made: JSON is UTF-8.
        std::str::from_utf8(&self.0).unwrap_or_else(|error| unreachable!("JSON is UTF-8: {error}"))
    }

    /// The text's bytes, shared.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    fn means_same(&self, other: &Self) -> bool {
        if self.0 == other.0 {
            return true;
        }
        let value = |text: &Self| serde_json::from_slice::<Value>(&text.0);
        match (value(self), value(other)) {
            (Ok(value), Ok(other)) => same_value(&value, &other),
            // No value can hold the text, for instance a number that is too large. Then the bytes decide.
            _ => false,
        }
    }
}

fn same_value(one: &Value, other: &Value) -> bool {
    match (one, other) {
        // An integer and a fraction are different numbers to serde_json even where they are equal, as 1 and 1.0 are.
        (Value::Number(one), Value::Number(other)) => match (as_integer(one), as_integer(other)) {
            (None, None) => one == other,
            (one, other) => one == other,
        },
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_value(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same_value(one, other)))
        }
        _ => one == other,
    }
}

/// The number as an integer, if it is one that fits.
fn as_integer(number: &Number) -> Option<i128> {
    /// A fraction of this size or more is compared as it is.
    const LIMIT: f64 = (1_u128 << 100) as f64;
    let integer = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    #[allow(clippy::cast_possible_truncation, reason = "it is an integer of less than 100 bits")]
    let whole =
        |fraction: f64| (fraction.fract() == 0.0 && fraction.abs() < LIMIT).then_some(fraction as i128);
    integer.or_else(|| number.as_f64().and_then(whole))
}

impl fmt::Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JsonText({})", self.as_str())
    }
}

impl Serialize for JsonText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_slice(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonText {
    /// Keeps the text of any value. Works with `serde_json` alone, like its `RawValue`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(Bytes::from(Box::<str>::from(raw).into_boxed_bytes())))
    }
}

/// Text that is known to be one JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonObject(JsonText);

impl JsonObject {
    /// Checks that `text` is an object.
    ///
    /// # Errors
    /// [`NotAnObject`], for any other value.
    pub fn new(text: JsonText) -> Result<Self, NotAnObject> {
        // The first character of a JSON value tells its type.
        if text.as_str().trim_start().starts_with('{') { Ok(Self(text)) } else { Err(NotAnObject) }
    }

    /// The object without members: `{}`.
    pub const fn empty() -> Self {
        Self(JsonText(Bytes::from_static(b"{}")))
    }

    /// The object's text, as it was given.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The text between the object's braces, without white space around it. It is empty if there are no members.
    pub fn members(&self) -> &str {
        let braced = self.as_str().trim();
        let inner = braced.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        inner.unwrap_or_else(|| unreachable!("an object has braces: {braced}")).trim()
    }
}

impl Serialize for JsonObject {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    /// Keeps the text of an object. Works with `serde_json` alone, as [`JsonText`] does.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(JsonText::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A JSON value that is not an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value must be a JSON object, such as `{{\"name\":\"Ada\"}}`")]
pub struct NotAnObject;

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &'static str) -> Result<JsonObject, NotAnObject> {
        JsonObject::new(JsonText::parse(Bytes::from_static(text.as_bytes())).unwrap())
    }

    #[test]
    fn an_object_gives_its_members_and_keeps_its_text() {
        let members = |text| object(text).unwrap().members().to_owned();
        assert_eq!(members("{}"), "");
        assert_eq!(members(" {\t} \n"), "");
        assert_eq!(members(r#"{ "a": {"}": 1} }"#), r#""a": {"}": 1}"#);
        assert_eq!(object(" { } ").unwrap().as_str(), " { } ");
        assert_eq!(JsonObject::empty(), object("{}").unwrap());
    }

    #[test]
    fn json_is_compared_by_value_and_bytes_are_compared_as_they_are() {
        let json =
            |text: &'static str| Payload::Json(JsonText::parse(Bytes::from_static(text.as_bytes())).unwrap());
        let same = [
            (r#"{"a":1,"b":[true,null]}"#, "{ \"b\" : [ true, null ],\n\t\"a\": 1 }"),
            (r#""\u00e9\/""#, r#""é/""#),
            ("[1, 1e2, -0.5]", "[1.0,100,-5e-1]"),
            ("1e999", "1e999"),
            ("[-0, 9007199254740992]", "[0.0, 9007199254740992.0]"),
        ];
        for (one, other) in same {
            assert!(
                json(one).means_same(&json(other)) && json(other).means_same(&json(one)),
                "{one} {other}"
            );
        }
        let different = [
            (r#"{"a":1}"#, r#"{"a":2}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            ("[1,2]", "[2,1]"),
            ("18446744073709551615", "18446744073709551614"),
            ("9007199254740993", "9007199254740992.0"),
            ("1", "1.5"),
            ("1", r#""1""#),
            ("1e999", "1e998"),
            ("0", "false"),
        ];
        for (one, other) in different {
            assert!(!json(one).means_same(&json(other)), "{one} {other}");
        }
        let binary = |bytes: &'static [u8]| Payload::Binary(Bytes::from_static(bytes));
        assert!(binary(b"1 ").means_same(&binary(b"1 ")));
        assert!(!binary(b"1 ").means_same(&binary(b"1")));
        assert!(!binary(b"1").means_same(&json("1")));
    }

    #[test]
    fn every_other_value_is_refused() {
        for text in ["[]", "null", "1", r#""{}""#, " [{}]", "true"] {
            assert_eq!(object(text), Err(NotAnObject), "{text}");
            assert!(serde_json::from_str::<JsonObject>(text).is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<JsonObject>(r#"{"a":1}"#).unwrap().as_str(), r#"{"a":1}"#);
    }
}
