//! The words of exclusive editing: which part of a document is locked, the token that tells an old lock from a new one,
//! and the question that is asked of every event before it gets its place.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Draft;
use crate::id::Region;
use crate::pubsub::PublishError;

/// The number of a lock: each lock that is granted has a larger one than all before it, over restarts of the server
/// too. Who keeps data behind the lock refuses a token that is smaller than one that it has seen
/// (<https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// A token of the given number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a lock covers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockScope {
    /// The whole document, every region of it included.
    Document,
    /// One region, by the name that the clients agree on.
    Region(Region),
}

impl LockScope {
    /// The metadata key with which an edit names the region that it is confined to.
    pub const REGION_KEY: &str = "region";
    /// The metadata key with which an edit names the token of the lock under which it is made.
    pub const TOKEN_KEY: &str = "lock_token";

    /// The scope of `region`; the whole document where there is none.
    pub fn of(region: Option<Region>) -> Self {
        region.map_or(Self::Document, Self::Region)
    }

    /// The region, unless it is the whole document.
    pub const fn region(&self) -> Option<&Region> {
        match self {
            Self::Document => None,
            Self::Region(region) => Some(region),
        }
    }

    /// Whether two scopes have something in common, so that two users may not hold them at the same time.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Document, _) | (_, Self::Document) => true,
            (Self::Region(one), Self::Region(other)) => one == other,
        }
    }
}

impl fmt::Display for LockScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => f.write_str("the document"),
            Self::Region(region) => write!(f, "region `{region}`"),
        }
    }
}

/// Decides whether a draft may become an event, at the moment at which it would get its place.
///
/// # Contract
/// - Asked for a durable draft inside the critical section that gives out places, so that between the answer and the
///   place nothing can happen: what the guard forbids from some moment on has no later place than what is published
///   after that moment. The answer must be quick, must not block, and must not call the event's sink.
/// - Asked for every draft that would become an event; not for duplicates.
pub trait WriteGuard: fmt::Debug + Send + Sync + 'static {
    /// Whether `draft` may have its place now.
    ///
    /// # Errors
    /// What its publisher is told, for instance [`PublishError::Locked`].
    fn check(&self, draft: &Draft) -> Result<(), PublishError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_overlaps_every_region_and_regions_overlap_only_themselves() {
        let intro = LockScope::Region(Region::new("intro").unwrap());
        let end = LockScope::Region(Region::new("end").unwrap());
        assert!(LockScope::Document.overlaps(&intro) && intro.overlaps(&LockScope::Document));
        assert!(intro.overlaps(&intro) && !intro.overlaps(&end));
    }
}
