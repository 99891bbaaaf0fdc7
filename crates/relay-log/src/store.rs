//! The storage engine's keyspaces: their layout, and the handle that opens them.
//!
//! | keyspace | key | value |
//! | --- | --- | --- |
//! | `documents` | document id | version, document key, seq trimmed through |
//! | `events` | document key, seq; or 0, offset for a logged event | [record](crate::record) |
//! | `offsets` | offset | the event's key in `events` |
//! | `meta` | `epoch` or `floor` | the log's epoch; the high watermark of offsets |
//!
//! Numbers in keys and values are big-endian. A document's key is the offset at which its first append began, so it is never
//! 0. The logged events of all documents share the key 0. A document that has had logged events alone has no row.
//!
//! The next seq of a document follows from its last event. When no event is kept, it follows from the seq trimmed
//! through. The next offset follows in the same way from `offsets` and the high watermark.
//!
//! All documents share one epoch, which is set on events when they are read. What loses events (a repair, or a machine
//! that went down under [`LogDurability::Logged`](crate::LogDurability)) cannot tell which documents it touched.
//!
//! The engine makes a batch visible only after the batch is as durable as asked for. A snapshot therefore never shows
//! an event whose append can still fail.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, UserValue};
use relay_core::{Epoch, Offset};

use crate::directory::DirectoryLock;

mod batch;
mod document;
mod error;
mod key;
mod snapshot;

pub(crate) use batch::StoreBatch;
pub(crate) use document::{DocumentState, LoggedTotals};
pub(crate) use error::{ReadError, into_io_error, is_damage, missing_event};
pub(crate) use key::DocumentKey;
pub(crate) use snapshot::StoreSnapshot;

use key::u64_at;

const EPOCH: &str = "epoch";
/// Its name in existing logs is `floor`.
const HIGH_WATERMARK: &str = "floor";

/// The open engine. Dropping it closes the files and frees the directory.
pub(crate) struct Store {
    documents: Keyspace,
    events: Keyspace,
    offsets: Keyspace,
    meta: Keyspace,
    db: Database,
    /// Held as long as the engine is open; dropped last.
    _lock: Option<DirectoryLock>,
}

impl Store {
    /// Opens or creates the engine's files in `directory`.
    pub(crate) fn open(
        directory: &Path,
        cache_bytes: u64,
        lock: Option<DirectoryLock>,
    ) -> Result<Self, fjall::Error> {
        let db = Database::builder(directory)
            .cache_size(cache_bytes)
            .journal_compression(fjall::CompressionType::None)
            .manual_journal_persist(true)
            .open()?;
        Ok(Self {
            documents: db.keyspace("documents", KeyspaceCreateOptions::default)?,
            events: db.keyspace("events", KeyspaceCreateOptions::default)?,
            offsets: db.keyspace("offsets", KeyspaceCreateOptions::default)?,
            meta: db.keyspace("meta", KeyspaceCreateOptions::default)?,
            db,
            _lock: lock,
        })
    }

    /// Returns the store's content at this moment.
    pub(crate) fn snapshot(&self) -> StoreSnapshot<'_> {
        StoreSnapshot::new(self, self.db.snapshot())
    }

    /// Begins a batch of writes.
    pub(crate) fn batch(&self) -> StoreBatch<'_> {
        StoreBatch::new(self, self.db.batch())
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), fjall::Error> {
        self.db.persist(PersistMode::SyncAll)
    }

    /// Returns the bytes that the engine's files take on the disk.
    pub(crate) fn disk_bytes(&self) -> Result<u64, fjall::Error> {
        self.db.disk_space()
    }

    /// Returns the log's epoch; `None` before the first [`StoreBatch::put_epoch`].
    pub(crate) fn epoch(&self) -> Result<Option<Epoch>, ReadError> {
        Ok(self.meta_number(EPOCH)?.map(Epoch::from_u64))
    }

    /// Returns the last offset in use, kept or trimmed, as far as the engine knows.
    pub(crate) fn last_offset(&self) -> Result<Offset, ReadError> {
        // Before the first trim there is no high watermark, and the last kept event has the last offset.
        let high_watermark = self.meta_number(HIGH_WATERMARK)?.map_or(Offset::ZERO, Offset::new);
        let last = match self.offsets.last_key_value() {
            Some(guard) => Offset::new(u64_at(&guard.key()?, 0, "offset")?),
            None => Offset::ZERO,
        };
        Ok(high_watermark.max(last))
    }

    fn meta_number(&self, key: &str) -> Result<Option<u64>, ReadError> {
        self.meta.get(key)?.map(|value| u64_at(&value, 0, key)).transpose()
    }

    /// Iterates over the index of offsets in order, with the stored bytes of each event. Damage of one event is part of
    /// its entry, so that the reader can go on with the next.
    pub(crate) fn indexed_events(&self) -> impl Iterator<Item = Result<IndexedEvent, ReadError>> {
        self.offsets.iter().map(|guard| {
            let (offset, key) = guard.into_inner()?;
            let offset = Offset::new(u64_at(&offset, 0, "offset")?);
            Ok(IndexedEvent { offset, record: self.events.get(&key) })
        })
    }
}

/// An entry of the index of offsets, with what the engine holds for it.
pub(crate) struct IndexedEvent {
    pub(crate) offset: Offset,
    /// The event's stored record; `None` when the event is missing.
    pub(crate) record: Result<Option<UserValue>, fjall::Error>,
}
