//! Identifiers, validated once where they enter and trusted afterwards.
//!
//! Ids that people choose (documents, users, services) are text behind an `Arc`, so that a clone costs one
//! counter increment however many events carry it. Ids that Relay makes are UUIDs of version 7, which sort by
//! the time they were made.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// A text that is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidId {
    /// The text is empty.
    #[error("{what} is empty; give it at least one character")]
    Empty {
        /// The id that was meant, for instance `document id`.
        what: &'static str,
    },
    /// The text has more bytes than the id may have.
    #[error("{what} starting `{start}` has {bytes} bytes, at most {max} are allowed")]
    TooLong {
        /// The id that was meant.
        what: &'static str,
        /// The first characters of the refused text.
        start: String,
        /// Length of the refused text in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The text is not of the id's form.
    #[error("{what} `{value}` is malformed: {reason}")]
    Malformed {
        /// The id that was meant.
        what: &'static str,
        /// The refused text, cut to its first characters.
        value: String,
        /// The fault in the text.
        reason: &'static str,
    },
}

/// The first characters of a refused text, so that an error never carries megabytes of it.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(32).collect()
}

pub(crate) fn check_text(what: &'static str, text: &str, max: usize) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty { what });
    }
    if text.len() > max {
        return Err(InvalidId::TooLong { what, start: excerpt(text), bytes: text.len(), max });
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The most bytes that such an id may have.
            pub const MAX_BYTES: usize = $max;

            /// Checks `text` and makes an id of it.
            ///
            /// # Errors
            /// [`InvalidId::Empty`] and [`InvalidId::TooLong`].
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                check_text($what, text, Self::MAX_BYTES)?;
                Ok(Self(text.into()))
            }

            /// The id's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), &*self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id! {
    /// A document: the unit of collaboration and of order. Any UTF-8 text of 1 to 256 bytes, chosen by clients.
    ///
    /// ```
    /// use relay_core::DocumentId;
    ///
    /// let id = DocumentId::new("reports/2026 Q4 — draft")?;
    /// assert_eq!(id.as_str(), "reports/2026 Q4 — draft");
    /// assert!(DocumentId::new("x".repeat(257)).is_err());
    /// # Ok::<(), relay_core::InvalidId>(())
    /// ```
    DocumentId, "document id", 256
}

text_id! {
    /// A person, as the deployment's own accounts name them: UTF-8 text of 1 to 256 bytes.
    UserId, "user id", 256
}

text_id! {
    /// A backend service, as it registered: UTF-8 text of 1 to 128 bytes.
    ServiceName, "service name", 128
}

text_id! {
    /// A part of a document that can be locked by itself, as the clients name it: UTF-8 text of 1 to 256 bytes.
    Region, "region", 256
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Makes a new id (UUID version 7). Ids made later sort after ids made earlier, to the millisecond.
            #[allow(clippy::new_without_default, reason = "each call gives another value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// An id with the given bits, for ids that come from elsewhere.
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            /// The id's bits.
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId::Malformed {
                    what: $what,
                    value: excerpt(text),
                    reason: "a UUID is needed, for instance from `crypto.randomUUID()`",
                })
            }
        }
    };
}

uuid_id! {
    /// One event, everywhere and for ever: the idempotency key of publishing and of delivery. A publisher that may
    /// have to send an event again chooses the id itself, and the second sending becomes no second event.
    EventId, "event id"
}

impl EventId {
    /// The id of an event that its producer names by other means than a UUID: the same name always gives the same id
    /// (UUID version 5). The name must be unique among all producers, so let it begin with the producer's own.
    pub fn from_name(name: &str) -> Self {
        Self(Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()))
    }
}

uuid_id! {
    /// A document's live collaboration, from its first participant to its last.
    SessionId, "session id"
}

uuid_id! {
    /// One connection of one client to one server.
    ConnectionId, "connection id"
}

/// Returns 64 bits that no other call gives.
pub(crate) fn random_bits() -> u64 {
    let bits = Uuid::new_v4().as_u128();
    // Both halves of a version 4 UUID hold at least 60 random bits.
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    let folded = bits as u64 ^ (bits >> 64) as u64;
    folded
}

/// One server process: a number that no other process has, of this or an earlier start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// A number that no other call gives: 64 bits of a random UUID.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// The node with the given bits.
    pub const fn from_u64(bits: u64) -> Self {
        Self(bits)
    }

    /// The node's bits.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}
