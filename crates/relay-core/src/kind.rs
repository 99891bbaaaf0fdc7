//! The kind of an event: its name, and its delivery class.
//!
//! The vocabulary (`relay-events`) says which kinds exist. This module has only what every layer must know of a kind.

use std::fmt;
use std::sync::Arc;

use crate::id::{InvalidId, excerpt};

/// The delivery class of a kind: the store and the readers of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryClass {
    /// Events are stored, have a seq, reach every subscriber, and are replayed.
    Sequenced,
    /// Events are stored and routed. They have an offset and no seq. A document's subscribers never get them, neither live
    /// nor by replay, and they count nothing against the document's history.
    Logged,
    /// Events are never stored, and have neither seq nor offset. Of each key only the newest matters.
    Ephemeral,
}

/// The kind of an event, for instance `document.edited`. Cheap to clone. Two kinds are equal when their names are.
#[derive(Clone)]
pub struct Kind {
    name: KindName,
    class: DeliveryClass,
}

#[derive(Clone)]
enum KindName {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Kind {
    /// The most bytes that a kind's name may have.
    pub const MAX_BYTES: usize = 64;

    /// A kind whose name is known when the program is written, under the rules of [`Kind::new`]. The vocabulary's constants are
    /// made with this.
    ///
    /// ```compile_fail
    /// use relay_core::{DeliveryClass, Kind};
    ///
    /// const MALFORMED: Kind = Kind::from_static("Hello World", DeliveryClass::Sequenced);
    /// println!("{MALFORMED}");
    /// ```
    ///
    /// # Panics
    /// When the name breaks the rules. In a constant that is an error of the compiler.
    pub const fn from_static(name: &'static str, class: DeliveryClass) -> Self {
        assert!(
            !name.is_empty() && name.len() <= Self::MAX_BYTES && has_only_allowed_bytes(name.as_bytes()),
            "an event kind is 1 to 64 of the characters a-z, 0-9, `.`, `_` and `-`"
        );
        Self { name: KindName::Static(name), class }
    }

    /// A kind of the given name: 1 to 64 of the characters `a-z 0-9 . _ -`.
    ///
    /// # Errors
    /// [`InvalidId`] when the name is empty, too long or has another character.
    pub fn new(name: &str, class: DeliveryClass) -> Result<Self, InvalidId> {
        crate::id::check_text("event kind", name, Self::MAX_BYTES)?;
        if !has_only_allowed_bytes(name.as_bytes()) {
            return Err(InvalidId::Malformed {
                what: "event kind",
                value: excerpt(name),
                reason: "only the characters a-z, 0-9, `.`, `_` and `-` are allowed",
            });
        }
        Ok(Self { name: KindName::Shared(name.into()), class })
    }

    /// The kind's name.
    pub fn as_str(&self) -> &str {
        match &self.name {
            KindName::Static(name) => name,
            KindName::Shared(name) => name,
        }
    }

    /// The delivery class of events of this kind.
    pub const fn class(&self) -> DeliveryClass {
        self.class
    }

    /// True for kinds whose events have a seq and are replayed.
    pub const fn is_sequenced(&self) -> bool {
        matches!(self.class, DeliveryClass::Sequenced)
    }

    /// True for kinds whose events are never stored.
    pub const fn is_ephemeral(&self) -> bool {
        matches!(self.class, DeliveryClass::Ephemeral)
    }
}

const fn has_only_allowed_bytes(mut name: &[u8]) -> bool {
    while let [first, rest @ ..] = name {
        if !matches!(first, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-') {
            return false;
        }
        name = rest;
    }
    true
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Kind {}

impl std::hash::Hash for Kind {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({}, {:?})", self.as_str(), self.class)
    }
}
