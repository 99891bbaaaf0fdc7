//! [`LockMemory`]: the memory of a lock in the share of the client that asked for it.

use std::sync::Arc;

use relay_core::{BudgetFull, DocumentPermit, MemoryPurpose, MemoryShare, Reservation};

/// The bytes that a lock takes beside its texts: the lock, the request that waits for it, and the changes that begin and end it.
const LOCK_BYTES: usize = 1024;
/// The bytes of a renewal beside its texts, until its event is published.
const RENEWAL_BYTES: usize = 512;

/// The memory of a lock from the request for it to its last change, and its place among the documents of the client's
/// address. Clones share them; the last one gives them back.
#[derive(Debug, Clone)]
pub(super) struct LockMemory(Arc<Held>);

#[derive(Debug)]
struct Held {
    share: MemoryShare,
    text_bytes: usize,
    _reserved: Reservation,
    /// `None` for a renewal, which is a change of a lock that has a place.
    _place: Option<DocumentPermit>,
}

impl LockMemory {
    /// Reserves the memory of a lock whose texts have `text_bytes`.
    ///
    /// # Errors
    /// [`BudgetFull`] when `share`, or one that it is part of, is used up.
    pub(super) fn reserve(
        share: MemoryShare,
        text_bytes: usize,
        place: DocumentPermit,
    ) -> Result<Self, BudgetFull> {
        // The texts are in the lock, in its index, and in both changes.
        let reserved = share.try_reserve(MemoryPurpose::Locks, LOCK_BYTES + 4 * text_bytes)?;
        Ok(Self(Arc::new(Held { share, text_bytes, _reserved: reserved, _place: Some(place) })))
    }

    /// Reserves the memory of a renewal of the lock.
    ///
    /// # Errors
    /// [`BudgetFull`] when the share that the lock counts to, or one that it is part of, is used up.
    pub(super) fn renewal(&self) -> Result<Self, BudgetFull> {
        let Held { share, text_bytes, .. } = &*self.0;
        let (share, text_bytes) = (share.clone(), *text_bytes);
        let reserved = share.try_reserve(MemoryPurpose::Locks, RENEWAL_BYTES + text_bytes)?;
        Ok(Self(Arc::new(Held { share, text_bytes, _reserved: reserved, _place: None })))
    }
}
