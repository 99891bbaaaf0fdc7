//! Writing: one batch of the engine, which becomes visible whole or not at all.

use fjall::{OwnedWriteBatch, PersistMode};
use relay_core::{DocumentId, Epoch, Offset, Seq};

use super::document::DocumentRow;
use super::key::{DocumentKey, event_key, logged_key};
use super::{EPOCH, HIGH_WATERMARK, Store};
use crate::record::{Record, RecordError};

/// Writes that are staged and not yet committed. Dropping the batch discards them.
pub(crate) struct StoreBatch<'a> {
    store: &'a Store,
    batch: OwnedWriteBatch,
}

impl<'a> StoreBatch<'a> {
    pub(super) fn new(store: &'a Store, batch: OwnedWriteBatch) -> Self {
        Self { store, batch }
    }

    /// Stages a new epoch of the log.
    pub(crate) fn put_epoch(&mut self, epoch: Epoch) {
        self.batch.insert(&self.store.meta, EPOCH, epoch.as_u64().to_be_bytes());
    }

    /// Stages that every offset up to `last` is in use, whether its event is kept or not.
    pub(crate) fn put_high_watermark(&mut self, last: Offset) {
        self.batch.insert(&self.store.meta, HIGH_WATERMARK, last.get().to_be_bytes());
    }

    /// Stages the row of a document whose events up to `trimmed` are gone.
    pub(crate) fn put_document(&mut self, id: &DocumentId, key: DocumentKey, trimmed: Seq) {
        self.batch.insert(&self.store.documents, id.as_str(), DocumentRow { key, trimmed }.encode());
    }

    /// Stages a sequenced event.
    ///
    /// # Errors
    /// [`RecordError::TooLong`], which stages nothing.
    pub(crate) fn put_event(
        &mut self,
        document: DocumentKey,
        seq: Seq,
        record: &Record<'_>,
    ) -> Result<(), RecordError> {
        self.put_record(event_key(document, seq), record)
    }

    /// Stages a logged event.
    ///
    /// # Errors
    /// [`RecordError::TooLong`], which stages nothing.
    pub(crate) fn put_logged(&mut self, record: &Record<'_>) -> Result<(), RecordError> {
        self.put_record(logged_key(record.offset), record)
    }

    fn put_record(&mut self, key: [u8; 16], record: &Record<'_>) -> Result<(), RecordError> {
        let value = record.encode()?;
        self.batch.insert(&self.store.offsets, record.offset.get().to_be_bytes(), key);
        self.batch.insert(&self.store.events, key, value);
        Ok(())
    }

    /// Stages the removal of a sequenced event.
    /// Without its offset its entry in `offsets` stays, and leads nowhere: readers pass it, since the event is trimmed.
    pub(crate) fn remove_event(&mut self, document: DocumentKey, seq: Seq, offset: Option<Offset>) {
        self.remove_record(event_key(document, seq), offset);
    }

    /// Stages the removal of a logged event.
    pub(crate) fn remove_logged(&mut self, offset: Offset) {
        self.remove_record(logged_key(offset), Some(offset));
    }

    fn remove_record(&mut self, key: [u8; 16], offset: Option<Offset>) {
        self.batch.remove(&self.store.events, key);
        if let Some(offset) = offset {
            self.batch.remove(&self.store.offsets, offset.get().to_be_bytes());
        }
    }

    /// Stages damage of a kept event.
    #[cfg(test)]
    pub(crate) fn damage_event(&mut self, document: DocumentKey, seq: Seq) {
        self.batch.insert(&self.store.events, event_key(document, seq), b"damaged");
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Commits in the engine's memory and journal buffer; [`Store::sync`] makes it durable.
    pub(crate) fn commit(self) -> Result<(), fjall::Error> {
        self.batch.commit()
    }

    /// Commits, and returns once the batch is as durable as `mode` says.
    pub(crate) fn commit_durably(self, mode: PersistMode) -> Result<(), fjall::Error> {
        self.batch.durability(Some(mode)).commit()
    }
}
