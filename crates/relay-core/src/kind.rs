//! The kind of an event: its name, and its durability.
//!
//! The vocabulary (`relay-events`) says which kinds exist. This module has only what every layer must know of a kind.

use std::fmt;
use std::sync::Arc;

use crate::id::{InvalidId, excerpt};

/// The durability of a kind: its events are kept, or they are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Events have a seq, are logged, and can be replayed.
    Durable,
    /// Events have no seq and are never logged; of each key only the newest matters.
    Ephemeral,
}

/// The kind of an event, for instance `document.edited`. Cheap to clone. Two kinds are equal when their names are.
#[derive(Clone)]
pub struct Kind {
    name: KindName,
    durability: Durability,
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
    /// use relay_core::{Durability, Kind};
    ///
    /// const MALFORMED: Kind = Kind::from_static("Hello World", Durability::Durable);
    /// println!("{MALFORMED}");
    /// ```
    ///
    /// # Panics
    /// When the name breaks the rules. In a constant that is an error of the compiler.
    pub const fn from_static(name: &'static str, durability: Durability) -> Self {
        assert!(
            !name.is_empty() && name.len() <= Self::MAX_BYTES && has_only_allowed_bytes(name.as_bytes()),
            "an event kind is 1 to 64 of the characters a-z, 0-9, `.`, `_` and `-`"
        );
        Self { name: KindName::Static(name), durability }
    }

    /// A kind of the given name: 1 to 64 of the characters `a-z 0-9 . _ -`.
    ///
    /// # Errors
    /// [`InvalidId`] when the name is empty, too long or has another character.
    pub fn new(name: &str, durability: Durability) -> Result<Self, InvalidId> {
        crate::id::check_text("event kind", name, Self::MAX_BYTES)?;
        if !has_only_allowed_bytes(name.as_bytes()) {
            return Err(InvalidId::Malformed {
                what: "event kind",
                value: excerpt(name),
                reason: "only the characters a-z, 0-9, `.`, `_` and `-` are allowed",
            });
        }
        Ok(Self { name: KindName::Shared(name.into()), durability })
    }

    /// The kind's name.
    pub fn as_str(&self) -> &str {
        match &self.name {
            KindName::Static(name) => name,
            KindName::Shared(name) => name,
        }
    }

    /// The durability of events of this kind.
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// True for kinds that have a seq and are logged.
    pub const fn is_durable(&self) -> bool {
        matches!(self.durability, Durability::Durable)
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
        write!(f, "Kind({}, {:?})", self.as_str(), self.durability)
    }
}
