//! Reading: the store's content at one moment.

use std::fmt::Display;
use std::ops::Bound;

use fjall::{Readable, Snapshot};
use relay_core::{DocumentId, Epoch, Event, Offset, ReadLimit, Seq, Timestamp};

use super::Store;
use super::document::{DocumentRow, DocumentState};
use super::error::{ReadError, missing_event, unreadable_event};
use super::key::{event_key, seq_of, u64_at};
use crate::record::Record;

/// The highest seq that a key can hold, for ranges that end with a document's last event.
const LAST_SEQ: Seq = Seq::new(u64::MAX);

/// The store's content at one moment. Later commits do not change it.
pub(crate) struct StoreSnapshot<'a> {
    store: &'a Store,
    snapshot: Snapshot,
}

/// The fields of a kept event that trimming needs.
pub(crate) struct KeptEvent {
    pub(crate) seq: Seq,
    pub(crate) offset: Offset,
    pub(crate) time: Timestamp,
    /// Bytes of all events of the document up to and including this one.
    pub(crate) cumulative_bytes: u64,
}

impl<'a> StoreSnapshot<'a> {
    pub(super) fn new(store: &'a Store, snapshot: Snapshot) -> Self {
        Self { store, snapshot }
    }

    /// Returns the state of `id`; `None` when it never had an event.
    pub(crate) fn document(&self, id: &DocumentId) -> Result<Option<DocumentState>, ReadError> {
        self.row(id)?.map(|row| self.load_totals(id, row)).transpose()
    }

    fn row(&self, id: &DocumentId) -> Result<Option<DocumentRow>, ReadError> {
        let row = self.snapshot.get(&self.store.documents, id.as_str())?;
        row.map(|row| DocumentRow::decode(id, &row)).transpose()
    }

    /// Completes a document's row with the totals that its first and last kept events state.
    fn load_totals(&self, id: &DocumentId, row: DocumentRow) -> Result<DocumentState, ReadError> {
        let empty = DocumentState::without_events(row.key, row.trimmed);
        let range = event_key(row.key, row.trimmed.next())..=event_key(row.key, LAST_SEQ);
        let mut events = self.snapshot.range(&self.store.events, range);
        let Some(first) = events.next() else { return Ok(empty) };
        let (first_key, first) = first.into_inner()?;
        let first_seq = seq_of(&first_key)?;
        if first_seq != row.trimmed.next() {
            return Err(missing_event(id, row.trimmed.next()));
        }
        let first = decode_record(id, first_seq, &first)?;
        let trimmed_bytes = first.cumulative_bytes.saturating_sub(first.len() as u64);
        let (last, total_bytes) = match events.next_back() {
            Some(guard) => {
                let (key, value) = guard.into_inner()?;
                let seq = seq_of(&key)?;
                (seq, decode_record(id, seq, &value)?.cumulative_bytes)
            }
            None => (first_seq, first.cumulative_bytes),
        };
        Ok(DocumentState { last, trimmed_bytes, total_bytes, oldest: first.time, ..empty })
    }

    /// Implements [`relay_core::EventLog::read_document`].
    pub(crate) fn read_document(
        &self,
        id: &DocumentId,
        after: Seq,
        limit: ReadLimit,
        epoch: Epoch,
    ) -> Result<Vec<Event>, ReadError> {
        let Some(DocumentRow { key: document, trimmed }) = self.row(id)? else { return Ok(Vec::new()) };
        if after < trimmed {
            return Err(ReadError::Trimmed { document: id.clone(), first: trimmed.next() });
        }
        let mut page = PageBuilder::new(limit);
        let mut expected = after.next();
        let range = event_key(document, expected)..=event_key(document, LAST_SEQ);
        for guard in self.snapshot.range(&self.store.events, range) {
            let (key, value) = guard.into_inner()?;
            if seq_of(&key)? != expected {
                return Err(missing_event(id, expected));
            }
            if !page.has_space_for(value.len()) {
                break;
            }
            page.events.push(decode_event(id, expected, &value, epoch)?);
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
            let offset = Offset::new(u64_at(&offset, 0, "offset")?);
            let value = self.snapshot.get(&self.store.events, &key)?.ok_or_else(|| {
                ReadError::Corrupt(format!(
                    "the event at offset {offset} is missing, though it was never dropped"
                ))
            })?;
            if !page.has_space_for(value.len()) {
                break;
            }
            let corrupt = |reason: &dyn Display| {
                ReadError::Corrupt(format!("the event at offset {offset} is unreadable: {reason}"))
            };
            let mut event =
                Record::decode(&value).and_then(|record| record.event()).map_err(|error| corrupt(&error))?;
            if event.offset != Some(offset) {
                return Err(corrupt(&"its record states another offset"));
            }
            event.epoch = epoch;
            page.events.push(event);
        }
        Ok(page.events)
    }

    /// Iterates over the kept events of `document` from the oldest on.
    pub(crate) fn kept_events<'s>(
        &'s self,
        id: &'s DocumentId,
        document: &DocumentState,
    ) -> impl Iterator<Item = Result<KeptEvent, ReadError>> + use<'s> {
        let range = event_key(document.key, document.trimmed.next())..=event_key(document.key, LAST_SEQ);
        self.snapshot.range(&self.store.events, range).map(move |guard| {
            let (key, value) = guard.into_inner()?;
            let seq = seq_of(&key)?;
            let Record { offset, time, cumulative_bytes, .. } = decode_record(id, seq, &value)?;
            Ok(KeptEvent { seq, offset, time, cumulative_bytes })
        })
    }

    /// Returns up to `count` document ids after `after`, in their order.
    pub(crate) fn documents_after(
        &self,
        after: Option<&DocumentId>,
        count: usize,
    ) -> Result<Vec<DocumentId>, ReadError> {
        let start = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.as_str()));
        let range = self.snapshot.range::<&str, _>(&self.store.documents, (start, Bound::Unbounded));
        let ids = range.take(count).map(|guard| {
            let key = guard.key()?;
            let corrupt = || ReadError::Corrupt("a document's id is damaged".to_owned());
            DocumentId::new(std::str::from_utf8(&key).map_err(|_| corrupt())?).map_err(|_| corrupt())
        });
        ids.collect()
    }
}

/// Collects the events of one read up to its limit.
struct PageBuilder {
    events: Vec<Event>,
    bytes: usize,
    limit: ReadLimit,
}

impl PageBuilder {
    fn new(limit: ReadLimit) -> Self {
        Self { events: Vec::new(), bytes: 0, limit }
    }

    /// Counts the bytes of one more event, and returns true when the page may hold it. The first event always fits.
    fn has_space_for(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        self.events.is_empty() || (self.events.len() < self.limit.events && self.bytes <= self.limit.bytes)
    }
}

fn decode_record<'v>(id: &DocumentId, seq: Seq, value: &'v [u8]) -> Result<Record<'v>, ReadError> {
    Record::decode(value).map_err(|error| unreadable_event(id, seq, &error))
}

fn decode_event(id: &DocumentId, seq: Seq, value: &[u8], epoch: Epoch) -> Result<Event, ReadError> {
    let event = decode_record(id, seq, value)?.event();
    let mut event = event.map_err(|error| unreadable_event(id, seq, &error))?;
    if event.document != *id || event.seq != Some(seq) {
        return Err(unreadable_event(id, seq, &"its record is of another event"));
    }
    event.epoch = epoch;
    Ok(event)
}
