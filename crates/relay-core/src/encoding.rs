//! Encoded copies of shared values: an edge encodes a value once for each of its formats, and every receiver of that
//! format gets the same bytes.
//!
//! The core does not know any format. An edge names each of its formats by a type of its own, and [`FormatId::of`] that
//! type is the key under which the encoded bytes are kept beside the value.

use std::any::TypeId;
use std::fmt;

use bytes::Bytes;
use once_cell::sync::OnceCell;

use crate::memory::{MemoryPurpose, MemoryShare};

/// The identity of an encoding.
///
/// ```
/// use relay_core::FormatId;
///
/// struct Json;
/// struct MessagePack;
/// assert_eq!(FormatId::of::<Json>(), FormatId::of::<Json>());
/// assert_ne!(FormatId::of::<Json>(), FormatId::of::<MessagePack>());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FormatId(TypeId);

impl FormatId {
    /// The id of the format that the type `F` stands for. `F` is any type that the edge defines for the purpose.
    pub fn of<F: 'static>() -> Self {
        Self(TypeId::of::<F>())
    }
}

/// The encoded forms of one value that no longer changes, each made at most once and then shared by all who send it.
///
/// A clone starts empty. Values are cloned to be changed, and the encoded forms would then be stale.
#[derive(Default)]
pub struct EncodingCache {
    /// The share that the encoded bytes are charged to.
    share: Option<(MemoryShare, MemoryPurpose)>,
    /// A list with one entry for each format, few in number, that only grows.
    first: OnceCell<Box<Encoding>>,
}

struct Encoding {
    format: FormatId,
    bytes: OnceCell<Bytes>,
    next: OnceCell<Box<Self>>,
}

impl EncodingCache {
    /// An empty cache whose encoded forms are charged to `share`, each until its last holder is gone.
    pub fn charged_to(share: MemoryShare, purpose: MemoryPurpose) -> Self {
        Self { share: Some((share, purpose)), first: OnceCell::new() }
    }

    /// Returns the value's form in `format`, from `encode` the first time. When two threads ask for the first time at
    /// once, one runs `encode` and the other waits for it.
    pub fn get_or_encode(&self, format: FormatId, encode: impl FnOnce() -> Bytes) -> Bytes {
        self.slot(format).get_or_init(|| self.charged(encode())).clone()
    }

    /// Works as [`get_or_encode`](Self::get_or_encode) does, for an encoding that may fail. A failure is not kept.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn get_or_try_encode<E>(
        &self,
        format: FormatId,
        encode: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        self.slot(format).get_or_try_init(|| encode().map(|bytes| self.charged(bytes))).cloned()
    }

    fn charged(&self, bytes: Bytes) -> Bytes {
        match &self.share {
            Some((share, purpose)) => share.charged_bytes(*purpose, bytes),
            None => bytes,
        }
    }

    fn slot(&self, format: FormatId) -> &OnceCell<Bytes> {
        let mut next = &self.first;
        loop {
            let new = || Box::new(Encoding { format, bytes: OnceCell::new(), next: OnceCell::new() });
            let encoding = next.get_or_init(new);
            if encoding.format == format {
                return &encoding.bytes;
            }
            next = &encoding.next;
        }
    }
}

impl Clone for EncodingCache {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for EncodingCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodingCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryBudget;

    struct One;
    struct Two;

    #[test]
    fn each_format_is_encoded_once_and_a_failure_is_tried_again() {
        let cache = EncodingCache::default();
        let (one, two) = (FormatId::of::<One>(), FormatId::of::<Two>());
        assert_eq!(cache.get_or_try_encode(one, || Err("no")), Err("no"));
        assert_eq!(cache.get_or_encode(one, || Bytes::from_static(b"1")), "1");
        assert_eq!(cache.get_or_encode(two, || Bytes::from_static(b"2")), "2");
        assert_eq!(cache.get_or_encode(one, || unreachable!("it is kept")), "1");
        assert_eq!(cache.get_or_encode(two, || unreachable!("it is kept")), "2");
        assert_eq!(cache.clone().get_or_encode(one, || Bytes::from_static(b"3")), "3");
    }
    #[test]
    fn encoded_forms_are_charged_until_the_last_holder_is_gone() {
        let budget = MemoryBudget::default();
        let cache = EncodingCache::charged_to(budget.caches().clone(), MemoryPurpose::Events);
        let sent = cache.get_or_encode(FormatId::of::<One>(), || Bytes::from_static(b"123"));
        let other = cache.get_or_encode(FormatId::of::<Two>(), || Bytes::from_static(b"4567"));
        assert_eq!(budget.held(MemoryPurpose::Events), 7);
        drop((cache, other));
        assert_eq!(budget.held(MemoryPurpose::Events), 3);
        drop(sent);
        assert_eq!(budget.held(MemoryPurpose::Events), 0);
    }
}
