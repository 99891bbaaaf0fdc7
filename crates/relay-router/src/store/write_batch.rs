//! Batches of changes, each of which is written whole or not at all.
//!
//! A value that does not serialise spoils its batch. The error comes when the batch is committed, so that code that
//! fills a batch need not handle it at each value, and no batch is ever written without one of its values.

use std::fmt;

use relay_core::{Offset, ServiceName};
use serde::Serialize;

use super::keys;
use crate::decisions::DecisionRecord;
use crate::loop_detection::CausesKey;
use crate::records::{DeadLetter, DeadLetterId, QueuedEvent, QueuedRecord, Replay, RouteId, RouteRecord};

/// Changes that are written together or not at all.
#[derive(Debug, Default)]
pub(crate) struct WriteBatch {
    changes: Vec<Change>,
    /// The first value that did not serialise.
    error: Option<UnserializableValue>,
}

/// A value that does not serialise to JSON. Nothing of its batch is written.
#[derive(Debug, thiserror::Error)]
#[error("a value of `{column:?}` does not serialise: {source}")]
pub(super) struct UnserializableValue {
    column: Column,
    source: serde_json::Error,
}

/// One change of one entry. Values hold secrets, so its debug form leaves them out.
pub(super) struct Change {
    pub(super) column: Column,
    pub(super) key: Vec<u8>,
    pub(super) value: NewValue,
}

/// The value of an entry after its change.
pub(super) enum NewValue {
    /// This value.
    Put(Vec<u8>),
    /// None: the entry is removed.
    Removed,
    /// A number that is greater by this. An entry that is not there counts as 0.
    Increased(u64),
}

impl Change {
    /// True if the entry exists with a value of its own afterwards.
    pub(super) fn is_put(&self) -> bool {
        matches!(self.value, NewValue::Put(_))
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, key, value } = self;
        let bytes = match value {
            NewValue::Put(value) => Some(value.len()),
            NewValue::Removed | NewValue::Increased(_) => None,
        };
        f.debug_struct("Change").field("column", column).field("key", key).field("bytes", &bytes).finish()
    }
}

/// The durability of a commit when it is answered. The greater one includes the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum WriteDurability {
    /// The operating system has the batch: it survives a killed process.
    #[default]
    Buffered,
    /// The disk has the batch: it survives a crash of the machine.
    Synced,
}

/// The keyspace that an entry is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Column {
    Meta,
    Routes,
    Queue,
    DeadLetters,
    Replays,
    Services,
    Losses,
}

impl WriteBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.error.is_none()
    }

    /// Adds the changes of `other` after its own.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.changes.append(&mut other.changes);
        self.error = self.error.take().or(other.error);
    }

    /// The changes, in the order in which they were added.
    ///
    /// # Errors
    /// [`UnserializableValue`], if one of the values did not serialise.
    pub(super) fn into_changes(self) -> Result<Vec<Change>, UnserializableValue> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.changes),
        }
    }

    fn put(&mut self, column: Column, key: Vec<u8>, value: &impl Serialize) {
        match serde_json::to_vec(value) {
            Ok(value) => self.changes.push(Change { column, key, value: NewValue::Put(value) }),
            Err(source) => {
                self.error.get_or_insert(UnserializableValue { column, source });
            }
        }
    }

    fn remove(&mut self, column: Column, key: Vec<u8>) {
        self.changes.push(Change { column, key, value: NewValue::Removed });
    }

    fn put_or_remove(&mut self, column: Column, key: Vec<u8>, value: Option<&impl Serialize>) {
        match value {
            Some(value) => self.put(column, key, value),
            None => self.remove(column, key),
        }
    }

    /// Sets the offset up to which the log was routed; none while there are no targets.
    pub(crate) fn cursor(&mut self, through: Option<Offset>) {
        self.put_or_remove(Column::Meta, keys::CURSOR.to_vec(), through.as_ref());
    }

    /// Sets the rules that are in force.
    pub(crate) fn rules(&mut self, rules: &impl Serialize) {
        self.put(Column::Meta, keys::RULES.to_vec(), rules);
    }

    /// Sets the bytes of the key of causes.
    pub(crate) fn causes_key(&mut self, bytes: &[u8; CausesKey::BYTES]) {
        self.put(Column::Meta, keys::CAUSES_KEY.to_vec(), bytes);
    }

    /// Adds the decision about events that are lost, and counts them under `name`; an empty one stands for no target.
    pub(crate) fn loss(&mut self, record: &DecisionRecord, name: &str) {
        self.put(Column::Losses, keys::loss(record.number), record);
        let value = NewValue::Increased(record.events());
        self.changes.push(Change { column: Column::Meta, key: keys::lost_events(name), value });
    }

    pub(crate) fn route(&mut self, id: RouteId, route: &RouteRecord) {
        self.put(Column::Routes, keys::route(id), route);
    }

    pub(crate) fn remove_route(&mut self, id: RouteId) {
        self.remove(Column::Routes, keys::route(id));
    }

    /// Puts an event that was not tried yet.
    pub(crate) fn put_queued(&mut self, route: RouteId, offset: Offset, queued: &QueuedEvent) {
        self.put_record(route, offset, &QueuedRecord { queued, attempts: &[], body: None });
    }

    pub(crate) fn put_record(&mut self, route: RouteId, offset: Offset, record: &QueuedRecord<'_>) {
        self.put(Column::Queue, keys::queued(route, offset), record);
    }

    pub(crate) fn remove_queued(&mut self, route: RouteId, offset: Offset) {
        self.remove(Column::Queue, keys::queued(route, offset));
    }

    pub(crate) fn dead_letter(&mut self, letter: &DeadLetter) {
        self.put(Column::DeadLetters, keys::dead_letter(&letter.target, letter.id), letter);
    }

    pub(crate) fn remove_dead_letter(&mut self, target: &ServiceName, id: DeadLetterId) {
        self.remove(Column::DeadLetters, keys::dead_letter(target, id));
    }

    pub(crate) fn replay(&mut self, replay: &Replay) {
        self.put(Column::Replays, replay.id.to_be_bytes().to_vec(), replay);
    }

    pub(crate) fn remove_replay(&mut self, id: u64) {
        self.remove(Column::Replays, id.to_be_bytes().to_vec());
    }

    pub(crate) fn service(&mut self, name: &ServiceName, record: &impl Serialize) {
        self.put(Column::Services, name.as_str().into(), record);
    }

    pub(crate) fn remove_service(&mut self, name: &ServiceName) {
        self.remove(Column::Services, name.as_str().into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_debug_form_of_a_batch_has_no_values() {
        let mut batch = WriteBatch::default();
        batch.causes_key(&[251; CausesKey::BYTES]);
        // Values are bytes of JSON, and these are the digits of a number.
        let digits = format!("{:?}", b"251");
        assert!(!format!("{batch:?}").contains(digits.trim_matches(['[', ']'])), "{batch:?}");
    }

    #[test]
    fn a_batch_with_a_value_that_does_not_serialise_is_refused_as_a_whole() {
        let mut other = WriteBatch::default();
        // JSON has no objects whose keys are lists.
        other.rules(&HashMap::from([(vec![1], 1)]));
        assert!(!other.is_empty());
        let mut batch = WriteBatch::default();
        batch.cursor(Some(Offset::new(7)));
        batch.append(other);
        let error = batch.into_changes().map(|changes| changes.len()).map_err(|error| error.to_string());
        assert_eq!(error, Err("a value of `Meta` does not serialise: key must be a string".to_owned()));
    }
}
