//! Staging: the documents as they will be after the batch, and the appends and trims that lead there.

use std::sync::Arc;

use relay_core::{DocumentId, Epoch, Head, LogError, Offset, Seq};

use super::head_cache::HeadCache;
use super::logged::LoggedEvents;
use super::request::{EncodedEvent, WantedPlace};
use crate::record::Record;
use crate::stats::Counters;
use crate::status::LogStatus;
use crate::store::{DocumentKey, DocumentState, LoggedTotals, ReadError, Store, StoreBatch, missing_event};

/// The store's documents, with everything staged so far applied.
pub(super) struct Staging {
    store: Arc<Store>,
    status: Arc<LogStatus>,
    heads: HeadCache,
    logged: LoggedEvents,
    epoch: Epoch,
    last_offset: Offset,
}

/// The position from which the writer goes on in a log that was opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WritePosition {
    pub(crate) epoch: Epoch,
    pub(crate) last_offset: Offset,
    pub(crate) logged: LoggedTotals,
}

/// A document in the list of all documents.
pub(super) struct ListedDocument {
    pub(super) id: DocumentId,
    /// Its state; `None` when it never had an event.
    pub(super) state: Result<Option<DocumentState>, ReadError>,
}

/// A staged append.
pub(super) struct Appended {
    /// The offset of the first event; those of the others follow it without a gap. A list would be allocated by the writer
    /// and freed by the caller, on another thread, which costs more than the append.
    pub(super) first: Offset,
    /// The document after it; `None` when the append had no sequenced events.
    pub(super) document: Option<DocumentState>,
    pub(super) has_logged: bool,
}

/// The state of a trim after one commit's share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrimProgress {
    Done,
    /// The commit's budget is spent, and more is to be trimmed.
    BudgetSpent,
    /// The next event to trim is staged in the same batch and not readable yet.
    AwaitsCommit,
}

impl Staging {
    pub(super) fn new(
        store: Arc<Store>,
        status: Arc<LogStatus>,
        cached_heads: usize,
        position: WritePosition,
    ) -> Self {
        let WritePosition { epoch, last_offset, logged } = position;
        let (heads, logged) = (HeadCache::new(cached_heads), LoggedEvents::new(logged));
        Self { store, status, heads, logged, epoch, last_offset }
    }

    /// Returns the logged events as they will be after the batch.
    pub(super) fn logged(&self) -> &LoggedEvents {
        &self.logged
    }

    /// Returns the last offset that is in use or staged.
    pub(super) fn last_offset(&self) -> Offset {
        self.last_offset
    }

    /// Lists up to `count` documents after `after`. The cache of heads stays as it is, so that a scan does not evict busy
    /// documents.
    pub(super) fn documents_after(
        &self,
        after: Option<&DocumentId>,
        count: usize,
    ) -> Result<Vec<ListedDocument>, ReadError> {
        let snapshot = self.store.snapshot();
        let ids = snapshot.documents_after(after, count)?;
        let list = |id: DocumentId| {
            let cached = self.heads.get(&id);
            let state = cached.map_or_else(|| snapshot.document(&id), |document| Ok(Some(document)));
            ListedDocument { id, state }
        };
        Ok(ids.into_iter().map(list).collect())
    }

    /// Returns the document as it will be after the batch; `None` when it never had an event.
    fn document(&self, id: &DocumentId) -> Result<Option<DocumentState>, LogError> {
        if let Some(document) = self.heads.get(id) {
            return Ok(Some(document));
        }
        self.store.snapshot().document(id).map_err(|error| self.read_failed(error))
    }

    fn read_failed(&self, error: ReadError) -> LogError {
        error.into_log_error(|error| self.status.fail(error))
    }

    /// Stages `events`, the sequenced ones at the head of the document, or refuses all of them.
    pub(super) fn append(
        &mut self,
        batch: &mut StoreBatch<'_>,
        id: &DocumentId,
        events: &[EncodedEvent],
    ) -> Result<Appended, LogError> {
        self.status.check()?;
        let known = self.document(id)?;
        let mut document = known.unwrap_or_else(|| {
            DocumentState::without_events(DocumentKey::of_first_event(self.last_offset.next()), Seq::ZERO)
        });
        self.check_positions(id, &document, events)?;
        let first = self.last_offset.next();
        let (kept_before, bytes_before) = (document.last, document.total_bytes);
        let (mut has_logged, mut logged_bytes) = (false, 0);
        for event in events {
            self.last_offset = self.last_offset.next();
            let (offset, time) = (self.last_offset, event.time);
            let bytes = Record::size(event.body.len());
            let staged = if let WantedPlace::Sequenced(seq) = event.place {
                if document.last == kept_before && known.is_none() {
                    batch.put_document(id, document.key, document.trimmed);
                }
                if document.kept_events() == 0 {
                    document.oldest = time;
                }
                document.last = seq;
                document.total_bytes += bytes;
                let record =
                    Record { offset, cumulative_bytes: document.total_bytes, time, body: &event.body };
                batch.put_event(document.key, seq, &record)
            } else {
                has_logged = true;
                logged_bytes += bytes;
                let cumulative_bytes = self.logged.add(bytes, time);
                batch.put_logged(&Record { offset, cumulative_bytes, time, body: &event.body })
            };
            // Part of the append is staged already, so a failure here must fail the log and with it the batch.
            staged.map_err(|error| self.status.fail(error))?;
        }
        if events.is_empty() {
            return Ok(Appended { first, document: None, has_logged });
        }
        let counters = &self.status.counters;
        Counters::add(&counters.appends, 1);
        Counters::add(&counters.appended_events, events.len() as u64);
        Counters::add(&counters.appended_bytes, document.total_bytes - bytes_before + logged_bytes);
        let document = (document.last > kept_before).then_some(document);
        if let Some(document) = document {
            self.heads.put(id, document);
        }
        Ok(Appended { first, document, has_logged })
    }

    /// Refuses sequenced events that do not follow the document's head, and events that have no place in it.
    fn check_positions(
        &self,
        id: &DocumentId,
        document: &DocumentState,
        events: &[EncodedEvent],
    ) -> Result<(), LogError> {
        let mut expected = document.last;
        for event in events {
            let fits = match event.place {
                WantedPlace::Sequenced(seq) => {
                    expected = expected.next();
                    seq == expected
                }
                WantedPlace::Logged => true,
                WantedPlace::None => false,
            };
            if !fits || event.epoch != self.epoch {
                Counters::add(&self.status.counters.conflicts, 1);
                let seq = match event.place {
                    WantedPlace::Sequenced(seq) => seq,
                    // The error states seq 0 for an event that has no place in this document's order.
                    WantedPlace::Logged | WantedPlace::None => Seq::ZERO,
                };
                return Err(LogError::Conflict {
                    document: id.clone(),
                    head: document.head(self.epoch),
                    epoch: event.epoch,
                    seq,
                });
            }
        }
        Ok(())
    }

    /// Stages the removal of the oldest logged events while `excess` holds, at most `budget` of them. `excess` is asked about
    /// each event that it removes, with the event's offset. Returns true when more are to go with the next commit.
    pub(super) fn trim_logged(
        &mut self,
        batch: &mut StoreBatch<'_>,
        mut excess: impl FnMut(&LoggedEvents, Offset) -> bool,
        mut budget: usize,
    ) -> Result<bool, LogError> {
        let store = Arc::clone(&self.store);
        let snapshot = store.snapshot();
        let mut dropped = 0;
        let mut kept = snapshot.logged_events(self.logged.first());
        let outcome = loop {
            let Some(oldest) = kept.next() else { break Ok(false) };
            let oldest = match oldest {
                Ok(oldest) => oldest,
                Err(error) => break Err(self.read_failed(error)),
            };
            if let Some((time, _)) = oldest.place {
                self.logged.set_oldest(time);
            }
            if budget == 0 {
                break Ok(true);
            }
            if !excess(&self.logged, oldest.offset) {
                break Ok(false);
            }
            budget -= 1;
            dropped += 1;
            batch.remove_logged(oldest.offset);
            self.logged.remove(oldest.offset, oldest.place.map(|(_, cumulative_bytes)| cumulative_bytes));
        };
        if dropped > 0 {
            // The event with the last offset may be gone, and its offset must not be used again.
            batch.put_high_watermark(self.last_offset);
            Counters::add(&self.status.counters.dropped_logged_events, dropped);
        }
        outcome
    }

    /// Stages the removal of the document's oldest events while `excess` holds, at most `budget` of them. `excess` is asked
    /// about each event that it removes, with the event's offset; an event that is staged in the same batch has none yet.
    ///
    /// `has_staged_appends` tells that the batch holds events which cannot be read yet.
    pub(super) fn trim(
        &mut self,
        batch: &mut StoreBatch<'_>,
        id: &DocumentId,
        excess: impl FnMut(&DocumentState, Option<Offset>) -> bool,
        has_staged_appends: bool,
        budget: &mut usize,
    ) -> Result<(Head, TrimProgress), LogError> {
        let Some(mut document) = self.document(id)? else {
            return Ok((Head::empty(self.epoch), TrimProgress::Done));
        };
        let before = document.trimmed;
        let progress = self.remove_oldest(batch, id, &mut document, excess, has_staged_appends, budget);
        // After a failure too: the row must agree with the removals that are staged already.
        if document.trimmed > before {
            // The event with the last offset may be gone, and its offset must not be used again.
            batch.put_high_watermark(self.last_offset);
            batch.put_document(id, document.key, document.trimmed);
            Counters::add(&self.status.counters.dropped_events, document.trimmed.since(before));
        }
        self.heads.put(id, document);
        Ok((document.head(self.epoch), progress?))
    }

    fn remove_oldest(
        &self,
        batch: &mut StoreBatch<'_>,
        id: &DocumentId,
        document: &mut DocumentState,
        mut excess: impl FnMut(&DocumentState, Option<Offset>) -> bool,
        has_staged_appends: bool,
        budget: &mut usize,
    ) -> Result<TrimProgress, LogError> {
        let snapshot = self.store.snapshot();
        let mut kept = snapshot.kept_events(document).peekable();
        while document.kept_events() > 0 {
            let expected = document.trimmed.next();
            // An event that is missing is passed: the next one has a later seq.
            let is_missing = matches!(kept.peek(), Some(Ok(event)) if event.seq > expected);
            if is_missing {
                if *budget == 0 {
                    return Ok(TrimProgress::BudgetSpent);
                }
                if !excess(document, None) {
                    return Ok(TrimProgress::Done);
                }
                *budget -= 1;
                document.trimmed = expected;
                continue;
            }
            let Some(next) = kept.next() else {
                if !excess(document, None) {
                    return Ok(TrimProgress::Done);
                }
                if !has_staged_appends {
                    return Err(self.read_failed(missing_event(id, expected)));
                }
                return Ok(TrimProgress::AwaitsCommit);
            };
            let event = next.map_err(|error| self.read_failed(error))?;
            document.oldest = event.time;
            if *budget == 0 {
                return Ok(TrimProgress::BudgetSpent);
            }
            if !excess(document, event.offset) {
                return Ok(TrimProgress::Done);
            }
            *budget -= 1;
            batch.remove_event(document.key, event.seq, event.offset);
            document.trimmed = event.seq;
            document.trimmed_bytes = event.cumulative_bytes;
        }
        Ok(TrimProgress::Done)
    }
}

#[cfg(test)]
mod tests {
    use relay_core::Timestamp;

    use super::*;

    fn append(staging: &mut Staging, store: &Store, id: &DocumentId, seqs: std::ops::RangeInclusive<u64>) {
        let event = |seq| EncodedEvent {
            epoch: Epoch::from_u64(1),
            place: WantedPlace::Sequenced(Seq::new(seq)),
            time: Timestamp::UNIX_EPOCH,
            body: b"body".to_vec(),
        };
        let mut batch = store.batch();
        staging.append(&mut batch, id, &seqs.map(event).collect::<Vec<_>>()).unwrap();
        batch.commit().unwrap();
    }

    #[test]
    fn a_trim_passes_what_is_damaged_or_missing_and_keeps_the_row_in_step() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 1 << 20, None).unwrap());
        let status = Arc::new(LogStatus::new(Offset::ZERO, None));
        let mut staging = Staging::new(
            Arc::clone(&store),
            status,
            8,
            WritePosition {
                epoch: Epoch::from_u64(1),
                last_offset: Offset::ZERO,
                logged: LoggedTotals::EMPTY,
            },
        );
        let id = DocumentId::new("d").unwrap();
        append(&mut staging, &store, &id, 1..=5);
        let key = store.snapshot().document(&id).unwrap().unwrap().key;
        let mut damage = store.batch();
        damage.remove_event(key, Seq::new(3), Some(Offset::new(3)));
        damage.damage_event(key, Seq::new(1));
        damage.commit().unwrap();

        let mut batch = store.batch();
        let through_4 = |document: &DocumentState, _: Option<Offset>| document.trimmed < Seq::new(4);
        let (head, progress) = staging.trim(&mut batch, &id, through_4, false, &mut 1000).unwrap();
        assert_eq!((head.first, progress), (Seq::new(5), TrimProgress::Done));
        batch.commit().unwrap();
        let document = store.snapshot().document(&id).unwrap().unwrap();
        assert_eq!((document.trimmed, document.last), (Seq::new(4), Seq::new(5)));
        assert_eq!(document.kept_bytes(), Record::size(b"body".len()));
    }
}
