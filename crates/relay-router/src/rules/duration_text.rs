//! Durations as text: `500ms`, `15s`, `5m`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// Parses a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let refused = || {
        let text: String = text.chars().take(32).collect();
        format!("`{text}` is no duration; write a number and its unit, for instance `500ms`, `15s` or `5m`")
    };
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|span| Duration::try_from(span).ok())
        .ok_or_else(refused)
}

/// Formats `duration` so that [`parse`] reads it.
pub(crate) fn show(duration: Duration) -> String {
    format!("{:#}", jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX))
}

pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&show(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    parse(&text).map_err(serde::de::Error::custom)
}
