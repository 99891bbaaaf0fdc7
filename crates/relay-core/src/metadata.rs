//! The parts of an event besides its payload: free [`Metadata`] and the W3C [`TraceContext`].

use std::collections::BTreeMap;
use std::collections::btree_map::Iter;

use serde::{Deserialize, Serialize};

use crate::id::{InvalidId, check_text, excerpt};

/// Short text properties of an event for routing and tooling, ordered by key.
///
/// At most 32 entries, and one more where at least one key begins with [`SERVER_PREFIX`](Self::SERVER_PREFIX); keys of 1 to 64
/// bytes, values of at most 1,024 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// The most entries that a publisher sets. There is space for one of the server's own beside them.
    pub const MAX_ENTRIES: usize = 32;
    /// The beginning of the keys to which the server gives a meaning, such as `relay.causes`.
    pub const SERVER_PREFIX: &str = "relay.";
    /// The most bytes of a key.
    pub const MAX_KEY_BYTES: usize = 64;
    /// The most bytes of a value.
    pub const MAX_VALUE_BYTES: usize = 1024;

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// [`InvalidId`] when a limit would be broken; nothing changes then.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<(), InvalidId> {
        let (key, value) = (key.into(), value.into());
        check_text("metadata key", &key, Self::MAX_KEY_BYTES)?;
        if value.len() > Self::MAX_VALUE_BYTES {
            return Err(InvalidId::TooLong {
                what: "metadata value",
                start: excerpt(&value),
                bytes: value.len(),
                max: Self::MAX_VALUE_BYTES,
            });
        }
        if !self.has_space_for(&key) {
            return Err(InvalidId::Malformed {
                what: "metadata",
                value: excerpt(&key),
                reason: "an event has at most 32 metadata entries beside the server's",
            });
        }
        self.0.insert(key, value);
        Ok(())
    }

    fn has_space_for(&self, key: &str) -> bool {
        let is_servers = |key: &str| key.starts_with(Self::SERVER_PREFIX);
        match self.0.len() {
            ..Self::MAX_ENTRIES => true,
            _ if self.0.contains_key(key) => true,
            Self::MAX_ENTRIES => is_servers(key) || self.0.keys().any(|key| is_servers(key)),
            _ => false,
        }
    }

    /// Removes `key`. Returns its value if there was one.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// True when there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All entries, ordered by key.
    pub fn iter(&self) -> Iter<'_, String, String> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Metadata {
    type Item = (&'a String, &'a String);
    type IntoIter = Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl TryFrom<BTreeMap<String, String>> for Metadata {
    type Error = InvalidId;

    fn try_from(entries: BTreeMap<String, String>) -> Result<Self, InvalidId> {
        let mut metadata = Self::default();
        for (key, value) in entries {
            metadata.insert(key, value)?;
        }
        Ok(metadata)
    }
}

impl From<Metadata> for BTreeMap<String, String> {
    fn from(metadata: Metadata) -> Self {
        metadata.0
    }
}

/// The W3C trace context of what caused an event (<https://www.w3.org/TR/trace-context/>), so that a trace goes on
/// through Relay into the services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: String,
    tracestate: Option<String>,
}

impl TraceContext {
    /// The most bytes of a `tracestate`.
    pub const MAX_TRACESTATE_BYTES: usize = 512;

    /// Checks the two headers' values.
    ///
    /// # Errors
    /// [`InvalidId`] when `traceparent` is not of version 00's form or has an all-zero id, or when `tracestate` is
    /// longer than 512 bytes or not visible ASCII.
    pub fn new(traceparent: &str, tracestate: Option<&str>) -> Result<Self, InvalidId> {
        let malformed =
            |reason| InvalidId::Malformed { what: "traceparent", value: excerpt(traceparent), reason };
        let parts: Vec<&str> = traceparent.split('-').collect();
        let [version, trace_id, parent_id, flags] = parts[..] else {
            return Err(malformed("it must be `00-<32 hex>-<16 hex>-<2 hex>`"));
        };
        let hex = |part: &str, len: usize| {
            part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if version != "00" || !hex(trace_id, 32) || !hex(parent_id, 16) || !hex(flags, 2) {
            return Err(malformed("it must be `00-<32 hex>-<16 hex>-<2 hex>`, in lower case"));
        }
        if trace_id.bytes().all(|b| b == b'0') || parent_id.bytes().all(|b| b == b'0') {
            return Err(malformed("neither the trace id nor the parent id may be all zeros"));
        }
        if let Some(state) = tracestate {
            if state.len() > Self::MAX_TRACESTATE_BYTES {
                return Err(InvalidId::TooLong {
                    what: "tracestate",
                    start: excerpt(state),
                    bytes: state.len(),
                    max: Self::MAX_TRACESTATE_BYTES,
                });
            }
            if !state.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t')) {
                return Err(InvalidId::Malformed {
                    what: "tracestate",
                    value: excerpt(state),
                    reason: "only visible ASCII is allowed",
                });
            }
        }
        Ok(Self {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate.filter(|s| !s.is_empty()).map(str::to_owned),
        })
    }

    /// The `traceparent` value.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The `tracestate` value, if there was one.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }
}
