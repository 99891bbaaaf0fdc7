//! Reading: the store's content at one moment.

use std::ops::Bound;

use fjall::{Readable, Snapshot};
use relay_core::{DocumentId, Epoch, Event, Offset, ReadLimit, Seq, Timestamp};

use super::Store;
use super::document::{DocumentRow, DocumentState, LoggedTotals};
use super::error::{ReadError, is_damage};
use super::key::{DocumentKey, event_key, logged_key, logged_offset_of, seq_of, u64_at};
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
    /// Its offset; `None` when its record cannot be read.
    pub(crate) offset: Option<Offset>,
    pub(crate) time: Timestamp,
    /// Bytes of all events of the document up to and including this one.
    pub(crate) cumulative_bytes: u64,
}

/// The fields of a kept logged event that trimming needs.
pub(crate) struct KeptLogged {
    pub(crate) offset: Offset,
    /// The time, and the bytes of all logged events up to and including this one; `None` where the record is damaged.
    pub(crate) place: Option<(Timestamp, u64)>,
}

impl<'a> StoreSnapshot<'a> {
    pub(super) fn new(store: &'a Store, snapshot: Snapshot) -> Self {
        Self { store, snapshot }
    }

    /// Returns the state of `id`; `None` when it never had an event.
    pub(crate) fn document(&self, id: &DocumentId) -> Result<Option<DocumentState>, ReadError> {
        self.row(id)?.map(|row| self.load_totals(row)).transpose()
    }

    fn row(&self, id: &DocumentId) -> Result<Option<DocumentRow>, ReadError> {
        let row = self.snapshot.get(&self.store.documents, id.as_str())?;
        row.map(|row| DocumentRow::decode(id, &row)).transpose()
    }

    /// Completes a document's row with the totals that its first and last readable events state.
    fn load_totals(&self, row: DocumentRow) -> Result<DocumentState, ReadError> {
        let empty = DocumentState::without_events(row.key, row.trimmed);
        let range = event_key(row.key, row.trimmed.next())..=event_key(row.key, LAST_SEQ);
        let mut events = self.snapshot.range(&self.store.events, range);
        let (mut last, mut first) = (None, None);
        // The bytes of records that cannot be read, at both ends.
        let (mut before, mut after) = (0, 0);
        for guard in events.by_ref() {
            let (key, value) = guard.into_inner()?;
            last = Some(seq_of(&key)?);
            if let Ok(record) = Record::decode(&value) {
                let (bytes, cumulative) = (record.len() as u64, record.cumulative_bytes);
                first = Some((cumulative.saturating_sub(bytes), record.time, cumulative));
                break;
            }
            before += value.len() as u64;
        }
        let Some(mut last) = last else { return Ok(empty) };
        let Some((start, oldest, mut total_bytes)) = first else {
            return Ok(DocumentState { last, total_bytes: before, oldest: Timestamp::UNIX_EPOCH, ..empty });
        };
        let mut is_last = true;
        while let Some(guard) = events.next_back() {
            let (key, value) = guard.into_inner()?;
            if std::mem::take(&mut is_last) {
                last = seq_of(&key)?;
            }
            if let Ok(record) = Record::decode(&value) {
                total_bytes = record.cumulative_bytes;
                break;
            }
            after += value.len() as u64;
        }
        let trimmed_bytes = start.saturating_sub(before);
        Ok(DocumentState { last, trimmed_bytes, total_bytes: total_bytes + after, oldest, ..empty })
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
            let seq = seq_of(&key)?;
            // An event is missing that was never dropped.
            while expected < seq {
                if !page.has_space_for(0) {
                    return Ok(page.events);
                }
                let lost = self.lost_event(id, document, expected, None, &page, epoch);
                page.events.push(lost);
                expected = expected.next();
            }
            if !page.has_space_for(value.len()) {
                break;
            }
            let event = decode_event(id, expected, &value, epoch)
                .unwrap_or_else(|| self.lost_event(id, document, expected, Some(&value), &page, epoch));
            page.events.push(event);
            expected = expected.next();
        }
        Ok(page.events)
    }

    /// Returns the event that stands for the one of `seq`, which is unreadable or missing.
    fn lost_event(
        &self,
        id: &DocumentId,
        document: DocumentKey,
        seq: Seq,
        value: Option<&[u8]>,
        page: &PageBuilder,
        epoch: Epoch,
    ) -> Event {
        let record = value.and_then(|value| Record::decode(value).ok());
        let time = match (&record, page.events.last()) {
            (Some(record), _) => record.time,
            (None, Some(before)) if before.document == *id => before.time,
            (None, _) => self.time_before(document, seq),
        };
        Event::lost(id.clone(), epoch, Some(seq), record.map(|record| record.offset), time)
    }

    /// The time of the event before `seq`, if it can be read.
    fn time_before(&self, document: DocumentKey, seq: Seq) -> Timestamp {
        let before = Seq::new(seq.get().saturating_sub(1));
        let value = self.snapshot.get(&self.store.events, event_key(document, before)).ok().flatten();
        let record = value.as_deref().and_then(|value| Record::decode(value).ok());
        record.map_or(Timestamp::UNIX_EPOCH, |record| record.time)
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
            let value = match self.snapshot.get(&self.store.events, &key) {
                Err(error) if !is_damage(&error) => return Err(error.into()),
                value => value.ok().flatten(),
            };
            if !page.has_space_for(value.as_ref().map_or(0, |value| value.len())) {
                break;
            }
            let event = value.as_deref().and_then(|value| Record::decode(value).ok()?.event().ok());
            match event.filter(|event| event.offset == Some(offset)) {
                Some(mut event) => {
                    event.epoch = epoch;
                    page.events.push(event);
                }
                None => page.events.extend(self.lost_at(offset, &key, &page, epoch)?),
            }
        }
        Ok(page.events)
    }

    /// Returns the event that stands for the one at `offset`, which is unreadable or missing; `None` if it was dropped, or if
    /// nothing tells which document it belonged to.
    fn lost_at(
        &self,
        offset: Offset,
        key: &[u8],
        page: &PageBuilder,
        epoch: Epoch,
    ) -> Result<Option<Event>, ReadError> {
        let Ok(seq) = seq_of(key) else { return Ok(None) };
        // The index from keys to ids is the list of documents. It is searched for damaged events alone.
        for guard in self.snapshot.iter(&self.store.documents) {
            let (id, row) = guard.into_inner()?;
            let Some(id) = std::str::from_utf8(&id).ok().and_then(|id| DocumentId::new(id).ok()) else {
                continue;
            };
            let Ok(row) = DocumentRow::decode(&id, &row) else { continue };
            if event_key(row.key, seq) == *key {
                if seq <= row.trimmed {
                    return Ok(None);
                }
                let mut lost = self.lost_event(&id, row.key, seq, None, page, epoch);
                lost.offset = Some(offset);
                return Ok(Some(lost));
            }
        }
        tracing::error!(%offset, "an event of the log cannot be read, and nothing tells its document; readers pass it");
        Ok(None)
    }

    /// Iterates over the kept events of `document` from the oldest on. One that cannot be read has what is known of it.
    pub(crate) fn kept_events<'s>(
        &'s self,
        document: &DocumentState,
    ) -> impl Iterator<Item = Result<KeptEvent, ReadError>> + use<'s> {
        let key = document.key;
        let range = event_key(key, document.trimmed.next())..=event_key(key, LAST_SEQ);
        let (mut time, mut cumulative_bytes) = (document.oldest, document.trimmed_bytes);
        self.snapshot.range(&self.store.events, range).map(move |guard| {
            let (event, value) = guard.into_inner()?;
            let seq = seq_of(&event)?;
            let record = Record::decode(&value).ok();
            match record {
                Some(record) => (time, cumulative_bytes) = (record.time, record.cumulative_bytes),
                None => cumulative_bytes += value.len() as u64,
            }
            let offset = record.map(|record| record.offset);
            Ok(KeptEvent { seq, offset, time, cumulative_bytes })
        })
    }

    /// Iterates over the kept logged events from `first` on. A damaged record is part of the result, so that its event can
    /// go in its turn.
    pub(crate) fn logged_events(
        &self,
        first: Offset,
    ) -> impl DoubleEndedIterator<Item = Result<KeptLogged, ReadError>> + use<'_> {
        let range = logged_key(first)..=logged_key(Offset::new(u64::MAX));
        self.snapshot.range(&self.store.events, range).map(|guard| {
            let (key, value) = guard.into_inner()?;
            let record = Record::decode(&value).ok();
            let place = record.map(|record| (record.time, record.cumulative_bytes));
            Ok(KeptLogged { offset: logged_offset_of(&key)?, place })
        })
    }

    /// Returns the totals of the logged events, from the first and the last intact record.
    pub(crate) fn logged_totals(&self) -> Result<LoggedTotals, ReadError> {
        let range = || logged_key(Offset::ZERO)..=logged_key(Offset::new(u64::MAX));
        let mut totals = LoggedTotals::EMPTY;
        for guard in self.snapshot.range(&self.store.events, range()) {
            let (_, value) = guard.into_inner()?;
            if let Ok(first) = Record::decode(&value) {
                totals.oldest = first.time;
                totals.trimmed_bytes = first.cumulative_bytes.saturating_sub(first.len() as u64);
                break;
            }
        }
        for guard in self.snapshot.range(&self.store.events, range()).rev() {
            let (_, value) = guard.into_inner()?;
            if let Ok(last) = Record::decode(&value) {
                totals.total_bytes = last.cumulative_bytes;
                break;
            }
        }
        Ok(totals)
    }

    /// Returns the offset of the oldest logged event that is kept.
    pub(crate) fn first_logged(&self) -> Result<Option<Offset>, ReadError> {
        self.logged_events(Offset::ZERO).next().map(|first| Ok(first?.offset)).transpose()
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

/// Decodes the event of `seq`; `None` when its record is damaged or is of another event.
fn decode_event(id: &DocumentId, seq: Seq, value: &[u8], epoch: Epoch) -> Option<Event> {
    let mut event = Record::decode(value).ok()?.event().ok()?;
    event.epoch = epoch;
    (event.document == *id && event.seq == Some(seq)).then_some(event)
}
