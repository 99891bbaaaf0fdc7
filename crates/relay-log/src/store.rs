//! The engine's keyspaces and what is read from them.
//!
//! | keyspace | key | value |
//! | --- | --- | --- |
//! | `documents` | document id | version, number, trimmed through |
//! | `events` | document number, seq | [record](crate::record) |
//! | `offsets` | offset | document number, seq |
//! | `meta` | `epoch` or `floor` | the log's epoch; the last offset whose event was dropped |
//!
//! Numbers in keys and values are big-endian. A document's number is the offset of its first event. Its next seq
//! follows from its last event or, when none is kept, from `trimmed through`; the next offset likewise from `offsets`
//! and `floor`. All documents share one epoch, since what loses events (a repair, a machine that went down under
//! [`LogDurability::Logged`](crate::LogDurability)) cannot know which documents it touched; it is set on reading.
//!
//! The engine makes a batch visible only after it is as durable as asked for, so a snapshot never shows an event whose
//! append could still fail.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, Readable, Snapshot};
use relay_core::{DocumentId, Epoch, Event, Head, LogError, Offset, ReadLimit, Seq, Timestamp};

use crate::directory::DirectoryLock;
use crate::record::Record;

const EPOCH: &str = "epoch";
const HIGH_WATERMARK: &str = "floor";
const DOCUMENT_VERSION: u8 = 1;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Corrupt(String),
    #[error(transparent)]
    Engine(#[from] fjall::Error),
    #[error("document `{document}` is kept from seq {first} on")]
    Trimmed { document: DocumentId, first: Seq },
}

impl ReadError {
    /// As the log's error; the engine's complaints about damage are corruption, all else is failure of the disk.
    pub(crate) fn into_log_error(self, fail: impl FnOnce(fjall::Error) -> LogError) -> LogError {
        match self {
            Self::Corrupt(detail) => LogError::Corrupt { detail },
            Self::Trimmed { document, first } => LogError::Trimmed { document, first },
            Self::Engine(error) if is_damage(&error) => LogError::Corrupt { detail: error.to_string() },
            Self::Engine(error) => fail(error),
        }
    }
}

/// True when the engine read its files but did not find what it had written.
fn is_damage(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData)
        }
        fjall::Error::Poisoned => false,
        _ => true,
    }
}

/// What the log knows about a document that has had events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DocumentState {
    /// Stands for the id in keys.
    pub(crate) number: u64,
    /// All events up to here were dropped.
    pub(crate) trimmed: u64,
    /// The last event, kept or not.
    pub(crate) last: u64,
    /// Bytes of all events up to `trimmed`.
    pub(crate) dropped_bytes: u64,
    /// Bytes of all events up to `last`.
    pub(crate) total_bytes: u64,
    /// No kept event is older.
    pub(crate) oldest: Timestamp,
}

impl DocumentState {
    pub(crate) fn head(&self, epoch: Epoch) -> Head {
        Head { epoch, first: Seq::new(self.trimmed + 1), last: Seq::new(self.last) }
    }

    pub(crate) fn kept_events(&self) -> u64 {
        self.last - self.trimmed
    }

    pub(crate) fn kept_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.dropped_bytes)
    }
}

/// The open engine. Dropping it closes the files and frees the directory.
pub(crate) struct Store {
    pub(crate) documents: Keyspace,
    pub(crate) events: Keyspace,
    pub(crate) offsets: Keyspace,
    pub(crate) meta: Keyspace,
    pub(crate) db: Database,
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

    pub(crate) fn snapshot(&self) -> StoreSnapshot<'_> {
        StoreSnapshot { store: self, snapshot: self.db.snapshot() }
    }

    /// The log's epoch; none before the first [`Store::put_epoch`].
    pub(crate) fn epoch(&self) -> Result<Option<Epoch>, ReadError> {
        Ok(self.number(EPOCH)?.map(Epoch::from_u64))
    }

    /// Adds a new epoch to `batch`.
    pub(crate) fn put_epoch(&self, batch: &mut fjall::OwnedWriteBatch, epoch: Epoch) {
        batch.insert(&self.meta, EPOCH, epoch.as_u64().to_be_bytes());
    }

    /// Adds to `batch` that all offsets up to `floor` were given out.
    pub(crate) fn put_high_watermark(&self, batch: &mut fjall::OwnedWriteBatch, high_watermark: Offset) {
        batch.insert(&self.meta, HIGH_WATERMARK, high_watermark.get().to_be_bytes());
    }

    /// The last offset that was given out, as far as the engine knows.
    pub(crate) fn last_offset(&self) -> Result<Offset, ReadError> {
        let high_watermark = self.number(HIGH_WATERMARK)?.unwrap_or(0);
        let last = match self.offsets.last_key_value() {
            Some(guard) => number_at(&guard.key()?, 0, "offset")?,
            None => 0,
        };
        Ok(Offset::new(high_watermark.max(last)))
    }

    fn number(&self, key: &str) -> Result<Option<u64>, ReadError> {
        self.meta.get(key)?.map(|value| number_at(&value, 0, key)).transpose()
    }

    /// Adds the row of a document to `batch`.
    pub(crate) fn put_document(
        &self,
        batch: &mut fjall::OwnedWriteBatch,
        id: &DocumentId,
        number: u64,
        trimmed: u64,
    ) {
        let mut row = vec![DOCUMENT_VERSION];
        row.extend_from_slice(&number.to_be_bytes());
        row.extend_from_slice(&trimmed.to_be_bytes());
        batch.insert(&self.documents, id.as_str(), row);
    }

    /// Adds an event to `batch`.
    pub(crate) fn put_event(
        &self,
        batch: &mut fjall::OwnedWriteBatch,
        number: u64,
        seq: u64,
        record: &Record<'_>,
    ) {
        let key = event_key(number, seq);
        batch.insert(&self.offsets, record.offset.get().to_be_bytes(), key);
        batch.insert(&self.events, key, record.encode());
    }
}

/// The log at one moment.
pub(crate) struct StoreSnapshot<'a> {
    store: &'a Store,
    snapshot: Snapshot,
}

impl StoreSnapshot<'_> {
    /// What is known of `id`; none when it never had an event.
    pub(crate) fn document(&self, id: &DocumentId) -> Result<Option<DocumentState>, ReadError> {
        let Some(row) = self.snapshot.get(&self.store.documents, id.as_str())? else { return Ok(None) };
        let (number, trimmed) = document_row(id, &row)?;
        self.load_totals(id, number, trimmed).map(Some)
    }

    /// What the events of a document say about it.
    fn load_totals(&self, id: &DocumentId, number: u64, trimmed: u64) -> Result<DocumentState, ReadError> {
        let empty = DocumentState {
            number,
            trimmed,
            last: trimmed,
            dropped_bytes: 0,
            total_bytes: 0,
            oldest: Timestamp::MAX,
        };
        let range = event_key(number, trimmed.saturating_add(1))..=event_key(number, u64::MAX);
        let mut events = self.snapshot.range(&self.store.events, range);
        let Some(first) = events.next() else { return Ok(empty) };
        let (first_key, first) = first.into_inner()?;
        let first_seq = number_at(&first_key, 8, "event")?;
        if first_seq != trimmed + 1 {
            return Err(missing(id, trimmed + 1));
        }
        let first = decode(id, first_seq, &first)?;
        let dropped_bytes = first.total.saturating_sub(first.len() as u64);
        let (last, total_bytes) = match events.next_back() {
            Some(guard) => {
                let (key, value) = guard.into_inner()?;
                let seq = number_at(&key, 8, "event")?;
                (seq, decode(id, seq, &value)?.total)
            }
            None => (first_seq, first.total),
        };
        Ok(DocumentState { last, dropped_bytes, total_bytes, oldest: first.time, ..empty })
    }

    /// Implements [`relay_core::EventLog::read_document`].
    pub(crate) fn read_document(
        &self,
        id: &DocumentId,
        after: Seq,
        limit: ReadLimit,
        epoch: Epoch,
    ) -> Result<Vec<Event>, ReadError> {
        let Some(row) = self.snapshot.get(&self.store.documents, id.as_str())? else { return Ok(Vec::new()) };
        let (number, trimmed) = document_row(id, &row)?;
        if after.get() < trimmed {
            return Err(ReadError::Trimmed { document: id.clone(), first: Seq::new(trimmed + 1) });
        }
        let mut page = PageBuilder::new(limit);
        let mut expected = after.next();
        let range = event_key(number, expected.get())..=event_key(number, u64::MAX);
        for guard in self.snapshot.range(&self.store.events, range) {
            let (key, value) = guard.into_inner()?;
            if number_at(&key, 8, "event")? != expected.get() {
                return Err(missing(id, expected.get()));
            }
            if !page.has_room_for(value.len()) {
                break;
            }
            page.events.push(event(id, expected.get(), &value, epoch)?);
            expected = expected.next();
        }
        Ok(page.events)
    }

    /// Implements [`relay_core::EventLog::read`].
    pub(crate) fn read(
        &self,
        after: Offset,
        limit: ReadLimit,
        epoch: Epoch,
    ) -> Result<Vec<Event>, ReadError> {
        let mut page = PageBuilder::new(limit);
        for guard in self.snapshot.range(&self.store.offsets, after.next().get().to_be_bytes()..) {
            let (offset, key) = guard.into_inner()?;
            let offset = Offset::new(number_at(&offset, 0, "offset")?);
            let value = self.snapshot.get(&self.store.events, &key)?.ok_or_else(|| {
                ReadError::Corrupt(format!(
                    "the event at offset {offset} is missing, though it was never dropped"
                ))
            })?;
            if !page.has_room_for(value.len()) {
                break;
            }
            let corrupt = |what: &dyn std::fmt::Display| {
                ReadError::Corrupt(format!("the event at offset {offset} is unreadable: {what}"))
            };
            let mut event =
                Record::decode(&value).and_then(|record| record.event()).map_err(|error| corrupt(&error))?;
            if event.offset != Some(offset) {
                return Err(corrupt(&"its record says another offset"));
            }
            event.epoch = epoch;
            page.events.push(event);
        }
        Ok(page.events)
    }

    /// The kept events of `document` from its oldest, as (seq, offset, time, total bytes).
    pub(crate) fn oldest<'a>(
        &'a self,
        id: &'a DocumentId,
        document: &DocumentState,
    ) -> impl Iterator<Item = Result<(u64, Offset, Timestamp, u64), ReadError>> + use<'a> {
        let range = event_key(document.number, document.trimmed + 1)..=event_key(document.number, u64::MAX);
        self.snapshot.range(&self.store.events, range).map(move |guard| {
            let (key, value) = guard.into_inner()?;
            let seq = number_at(&key, 8, "event")?;
            let record = decode(id, seq, &value)?;
            Ok((seq, record.offset, record.time, record.total))
        })
    }

    /// Up to `count` document ids after `after`, in their order.
    pub(crate) fn documents_after(
        &self,
        after: Option<&DocumentId>,
        count: usize,
    ) -> Result<Vec<DocumentId>, ReadError> {
        let start = after.map_or(std::ops::Bound::Unbounded, |id| std::ops::Bound::Excluded(id.as_str()));
        let range =
            self.snapshot.range::<&str, _>(&self.store.documents, (start, std::ops::Bound::Unbounded));
        let ids = range.take(count).map(|guard| {
            let key = guard.key()?;
            let corrupt = || ReadError::Corrupt("a document's id is damaged".to_owned());
            DocumentId::new(std::str::from_utf8(&key).map_err(|_| corrupt())?).map_err(|_| corrupt())
        });
        ids.collect()
    }
}

/// What one read has gathered.
struct PageBuilder {
    events: Vec<Event>,
    bytes: usize,
    limit: ReadLimit,
}

impl PageBuilder {
    fn new(limit: ReadLimit) -> Self {
        Self { events: Vec::new(), bytes: 0, limit }
    }

    fn has_room_for(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        self.events.is_empty() || (self.events.len() < self.limit.events && self.bytes <= self.limit.bytes)
    }
}

pub(crate) fn event_key(number: u64, seq: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key[8..].copy_from_slice(&seq.to_be_bytes());
    key
}

fn number_at(bytes: &[u8], at: usize, what: &str) -> Result<u64, ReadError> {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    number.map(|number| u64::from_be_bytes(*number)).ok_or_else(|| {
        ReadError::Corrupt(format!(
            "a key or value of `{what}` has {} bytes, at least {} belong there",
            bytes.len(),
            at + 8
        ))
    })
}

fn document_row(id: &DocumentId, row: &[u8]) -> Result<(u64, u64), ReadError> {
    match row.first() {
        Some(&DOCUMENT_VERSION) => Ok((number_at(row, 1, "documents")?, number_at(row, 9, "documents")?)),
        version => Err(ReadError::Corrupt(format!(
            "the row of document `{id}` has version {version:?}; this version of Relay reads {DOCUMENT_VERSION}"
        ))),
    }
}

fn decode<'a>(id: &DocumentId, seq: u64, value: &'a [u8]) -> Result<Record<'a>, ReadError> {
    Record::decode(value).map_err(|error| unreadable(id, seq, &error))
}

fn event(id: &DocumentId, seq: u64, value: &[u8], epoch: Epoch) -> Result<Event, ReadError> {
    let mut event = decode(id, seq, value)?.event().map_err(|error| unreadable(id, seq, &error))?;
    if event.document != *id || event.seq != Some(Seq::new(seq)) {
        return Err(unreadable(id, seq, &"the record there is of another event"));
    }
    event.epoch = epoch;
    Ok(event)
}

pub(crate) fn missing(id: &DocumentId, seq: u64) -> ReadError {
    ReadError::Corrupt(format!("event {seq} of document `{id}` is missing, though it was never dropped"))
}

fn unreadable(id: &DocumentId, seq: u64, what: &dyn std::fmt::Display) -> ReadError {
    ReadError::Corrupt(format!("event {seq} of document `{id}` is unreadable: {what}"))
}
