//! Values of exclusive editing: the part of a document that a lock covers, the token that tells an old lock from a new
//! one, the lease that its holder has, and what an edit claims of locks.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::id::{Region, UserId, excerpt};
use crate::metadata::Metadata;
use crate::time::Timestamp;

/// The number of a lock: each lock that is granted has a larger one than all before it, over restarts of the server
/// too. A store behind the lock refuses a token that is smaller than one that it has seen
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

/// The part of a document that a lock covers.
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

    /// True when two scopes have something in common, so that two users may not hold them at the same time.
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

/// A lock as its holder has it: the scope, the holder, the expiry and the token. Serialised, it is the lease of the
/// wire protocols: `{token, region?, holder, expires_at, ttl_ms}`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The fencing token.
    pub token: FencingToken,
    /// The part of the document that is locked.
    pub scope: LockScope,
    /// The user who holds the lock.
    pub holder: UserId,
    /// The end of the lease by the wall clock, unless it is prolonged.
    pub expires_at: Timestamp,
    /// The length of the lease from its last prolongation on.
    pub ttl: Duration,
}

impl Lease {
    /// A lease with all its parts.
    pub const fn new(
        token: FencingToken,
        scope: LockScope,
        holder: UserId,
        expires_at: Timestamp,
        ttl: Duration,
    ) -> Self {
        Self { token, scope, holder, expires_at, ttl }
    }
}

impl Serialize for Lease {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a> {
            token: FencingToken,
            #[serde(skip_serializing_if = "Option::is_none")]
            region: Option<&'a Region>,
            holder: &'a UserId,
            expires_at: Timestamp,
            ttl_ms: u64,
        }
        let form = Form {
            token: self.token,
            region: self.scope.region(),
            holder: &self.holder,
            expires_at: self.expires_at,
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
        };
        form.serialize(serializer)
    }
}

/// The claim of an edit about locks: the part of the document that it is confined to, and the lock under which it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockClaim {
    /// The part that the edit touches.
    pub scope: LockScope,
    /// The token of the lock under which it is made, if it names one.
    pub token: Option<FencingToken>,
}

impl LockClaim {
    /// Reads the claim that an edit makes with its metadata: the region under [`LockScope::REGION_KEY`], the token under
    /// [`LockScope::TOKEN_KEY`]. Without a region it touches the whole document.
    ///
    /// # Errors
    /// [`InvalidClaim`] when the region or the token is malformed.
    pub fn of(metadata: &Metadata) -> Result<Self, InvalidClaim> {
        let region = metadata.get(LockScope::REGION_KEY).map(Region::new).transpose();
        let region =
            region.map_err(|error| InvalidClaim { key: LockScope::REGION_KEY, detail: error.to_string() })?;
        let token = metadata.get(LockScope::TOKEN_KEY).map(|text| {
            text.parse().map(FencingToken::new).map_err(|_| InvalidClaim {
                key: LockScope::TOKEN_KEY,
                detail: format!("`{}` is no token; it must be a whole number", excerpt(text)),
            })
        });
        Ok(Self { scope: LockScope::of(region), token: token.transpose()? })
    }
}

/// The metadata with which an edit names its region or its lock is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata `{key}`: {detail}")]
#[non_exhaustive]
pub struct InvalidClaim {
    /// The key.
    pub key: &'static str,
    /// The fault in its value.
    pub detail: String,
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
