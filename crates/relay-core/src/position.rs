//! The positions of an event: in its document ([`Seq`] within an [`Epoch`]) and in the whole log ([`Offset`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{InvalidId, excerpt, random_bits};

/// An event's place among the sequenced events of its document: 1 for the first, then without gaps.
///
/// As a *position* ("everything up to here is known") it may also be [`Seq::ZERO`]: nothing is known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(u64);

impl Seq {
    /// The position before the first event.
    pub const ZERO: Self = Self(0);
    /// The first event's seq.
    pub const FIRST: Self = Self(1);

    /// A seq of the given number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The seq after this one. Saturates at `u64::MAX`, which no document reaches.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number of events after `earlier` up to and including this one; 0 if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The incarnation of a document's history. It changes if and only if seqs that were given out no longer mean
/// the same events, for instance after a log had to be repaired. Opaque; its text form is 16 hexadecimal digits
/// (a JSON number could not hold 64 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// An epoch that no other call gives.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// The epoch with the given bits.
    pub const fn from_u64(bits: u64) -> Self {
        Self(bits)
    }

    /// The epoch's bits.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let malformed = || InvalidId::Malformed {
            what: "epoch",
            value: excerpt(text),
            reason: "it must be 16 hexadecimal digits",
        };
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| malformed())
    }
}

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A position in the whole log over all documents: strictly increasing, from 1, in the order of commits. A consumer
/// of the log remembers the offset up to which it has read. [`Offset::ZERO`] is the position before the first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(u64);

impl Offset {
    /// The position before the first record.
    pub const ZERO: Self = Self(0);

    /// An offset of the given number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The offset after this one. Saturates at `u64::MAX`, which no log reaches.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
