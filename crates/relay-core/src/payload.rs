//! The content of an event: JSON text or opaque bytes, checked once and then passed on untouched.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The content of an event. Cloning is cheap: the bytes are shared.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// JSON, the form that the vocabulary's typed payloads have.
    Json(JsonText),
    /// Opaque bytes, for instance a Yjs update.
    Binary(Bytes),
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
        }
    }

    /// True when there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(text) => write!(f, "Json({})", text.as_str()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
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
        // Kept for as long as what it is about: room to grow is given back.
        serde_json::to_vec(value).map(|text| Self(text.into_boxed_slice().into()))
    }

    /// The text of a value that was parsed already, without checking it again.
    pub fn from_raw(raw: &RawValue) -> Self {
        Self(Bytes::copy_from_slice(raw.get().as_bytes()))
    }

    /// The text `{}`.
    pub const fn empty_object() -> Self {
        Self(Bytes::from_static(b"{}"))
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
