//! The router's own database beside the log: progress, queues, dead letters, replays, services and rules.
//!
//! | keyspace | key | value (JSON) |
//! | --- | --- | --- |
//! | `meta` | `cursor`, `rules`, `causes_key` | an offset; the rules; the bytes of the key that signs causes |
//! | `meta` | `lost/` and a target's name, or no name | the number of events that were lost since the store was made |
//! | `meta` | `dropped_letters/` and a target's name | the number of its dead letters that gave way to newer ones since then |
//! | `losses` | number | a decision about lost events |
//! | `routes` | route | a route and its targets |
//! | `queue` | route, offset | a queued event |
//! | `dead_letters` | target's length, target, offset, route | a dead letter |
//! | `replays` | id | a running replay |
//! | `services` | service | a registration |
//!
//! One writer at a time takes all waiting batches and writes them as one. A batch is written whole or not at all, and
//! the operating system has it when its commit is answered. So a killed process loses nothing. A crash of the machine
//! can lose the last moments, all of them from one moment on. Then some events are routed and delivered once more, and
//! none is left out.
//!
//! Operations change the state in memory beside their batch, some before it is written. So the first write that fails
//! is kept as the store's failure, after which nothing is routed or delivered. A restart begins with what is stored.

mod error;
mod keys;
mod keyspaces;
mod letter_counts;
mod loss_ring;
mod write_batch;
mod writer;

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use fjall::Keyspace;
use parking_lot::Mutex;
use relay_core::{Offset, ServiceName};
use relay_tasks::TaskGroup;
use serde::de::DeserializeOwned;

pub use self::error::StoreError;
use self::error::parse;
use self::keyspaces::Keyspaces;
pub(crate) use self::keyspaces::{PersistedState, StoreLimits};
use self::letter_counts::LetterCounts;
pub(crate) use self::write_batch::WriteBatch;
use self::write_batch::WriteDurability;
use self::writer::Writer;
use crate::decisions::DecisionRecord;
use crate::loop_detection::CausesKey;
use crate::records::{DeadLetter, DeadLetterId, FailedAttempts, QueuedEvent, Replay, RequeuedBody, RouteId};

/// The size of the engine's file `version`.
const VERSION_BYTES: u64 = 4;

/// A dead letter as the store has it, or its damage in words.
pub(crate) type StoredLetter = Result<DeadLetter, String>;

fn parse_letter(value: &[u8]) -> StoredLetter {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

/// A handle to the open store. Clones share it.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

struct Inner {
    /// None once the store is closed.
    keyspaces: Mutex<Option<Keyspaces>>,
    directory: Arc<str>,
    letter_counts: LetterCounts,
    /// The first failure to write.
    failure: Arc<OnceLock<StoreError>>,
    writer: Writer,
}

impl Store {
    /// Opens or creates the store in `directory` and reads its state. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub(crate) fn open(
        directory: &Path,
        limits: StoreLimits,
        tasks: TaskGroup,
    ) -> Result<(Self, PersistedState), StoreError> {
        let name: Arc<str> = directory.display().to_string().into();
        let created = remove_unfinished(directory).and_then(|()| fs::create_dir_all(directory));
        created.map_err(|error| StoreError::failed(&name, &error))?;
        let keyspaces =
            Keyspaces::open(directory, limits).map_err(|error| StoreError::failed(&name, &error))?;
        let persisted = keyspaces.read_all(&name)?;
        let letter_counts = keyspaces.letter_counts.clone();
        let failure = Arc::new(OnceLock::new());
        let writer = Writer::new(keyspaces.clone(), Arc::clone(&name), Arc::clone(&failure), tasks);
        let keyspaces = Mutex::new(Some(keyspaces));
        Ok((Self(Arc::new(Inner { keyspaces, directory: name, letter_counts, failure, writer })), persisted))
    }

    /// Writes `batch` after all batches before it. If the call is dropped before its answer, the batch may or may not be
    /// written.
    ///
    /// # Errors
    /// See [`StoreError`]. A batch that cannot be written is the store's [failure](Store::failure).
    pub(crate) async fn commit(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.commit_then(batch, || {}).await
    }

    /// Writes `batch` like [`Store::commit`], and calls `on_written` once it is written, also if the call is dropped before its
    /// answer. So a caller that panics leaves no change on the disk that memory lacks.
    ///
    /// # Errors
    /// As [`Store::commit`]. Then `on_written` is dropped.
    pub(crate) async fn commit_then(
        &self,
        batch: WriteBatch,
        on_written: impl FnOnce() + Send + 'static,
    ) -> Result<(), StoreError> {
        self.submit(batch, WriteDurability::Buffered, on_written).await
    }

    /// Writes `batch` like [`Store::commit`], and answers once the disk has it.
    pub(crate) async fn commit_synced(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.submit(batch, WriteDurability::Synced, || {}).await
    }

    async fn submit(
        &self,
        batch: WriteBatch,
        durability: WriteDurability,
        on_written: impl FnOnce() + Send + 'static,
    ) -> Result<(), StoreError> {
        let changes = batch.into_changes().map_err(|error| {
            let error = self.error(&error);
            self.fail(error.clone());
            error
        })?;
        self.0.writer.submit(changes, durability, Box::new(on_written)).await
    }

    /// Writes all waiting batches and closes the files. Blocks.
    pub(crate) fn close(&self) {
        self.0.keyspaces.lock().take();
        self.0.writer.close();
    }

    /// An error of this store.
    pub(crate) fn error(&self, detail: &dyn fmt::Display) -> StoreError {
        StoreError::failed(&self.0.directory, detail)
    }

    /// The first failure, after which memory and disk may differ.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.0.failure.get().cloned()
    }

    /// Keeps `error` as the store's failure, unless it already has one or the store is only closed.
    pub(crate) fn fail(&self, error: StoreError) {
        if matches!(error, StoreError::Failed { .. }) {
            self.0.failure.get_or_init(|| error);
        }
    }

    /// A page of up to `limit` events of a route from `from` on, and true if there are no more.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn queued(
        &self,
        route: RouteId,
        from: Offset,
        limit: usize,
    ) -> Result<(Vec<(Offset, QueuedEvent)>, bool), StoreError> {
        let page = self.read(move |keyspaces| keyspaces.queued(route, from, limit)).await?;
        let events = page.entries.into_iter().map(|(key, value)| {
            let (_, offset) = keys::parse_queued(&key).ok_or_else(|| self.malformed("queue"))?;
            Ok((offset, self.parse(&value)?))
        });
        Ok((events.collect::<Result<_, _>>()?, !page.has_more))
    }

    /// The JSON envelope of a requeued dead letter's event, if the store has it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn requeued_body(
        &self,
        route: RouteId,
        offset: Offset,
    ) -> Result<Option<String>, StoreError> {
        let key = keys::queued(route, offset);
        let value = self.read(move |keyspaces| keyspaces.queue.get(key)).await?;
        let record = value.map(|value| self.parse::<RequeuedBody>(&value)).transpose()?;
        Ok(record.and_then(|record| record.body))
    }

    /// The failed attempts of a waiting event. A record that cannot be read has none.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn failed_attempts(
        &self,
        route: RouteId,
        offset: Offset,
    ) -> Result<FailedAttempts, StoreError> {
        let key = keys::queued(route, offset);
        let value = self.read(move |keyspaces| keyspaces.queue.get(key)).await?;
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()).unwrap_or_default())
    }

    /// The number of dead letters of the target that are kept.
    pub(crate) fn dead_letter_count(&self, target: &ServiceName) -> usize {
        self.0.letter_counts.kept(target)
    }

    /// The number of dead letters of the target that gave way to newer ones since the store was made.
    pub(crate) fn dropped_dead_letters(&self, target: &ServiceName) -> u64 {
        self.0.letter_counts.dropped(target)
    }

    /// A page of up to `limit` of the target's dead letters after `after`, the lowest offsets first. True if there are more.
    ///
    /// # Errors
    /// See [`StoreError`]. A letter that cannot be read is in its place with its damage.
    pub(crate) async fn dead_letters(
        &self,
        target: ServiceName,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<(Vec<(DeadLetterId, StoredLetter)>, bool), StoreError> {
        let page = self.read(move |keyspaces| keyspaces.dead_letters(&target, after, limit)).await?;
        let letters = page.entries.iter().map(|(key, value)| {
            let id = keys::parse_dead_letter_id(key).ok_or_else(|| self.malformed("dead_letters"))?;
            Ok((id, parse_letter(value)))
        });
        Ok((letters.collect::<Result<_, _>>()?, page.has_more))
    }

    /// One dead letter of the target.
    ///
    /// # Errors
    /// As [`Store::dead_letters`].
    pub(crate) async fn dead_letter(
        &self,
        target: &ServiceName,
        id: DeadLetterId,
    ) -> Result<Option<StoredLetter>, StoreError> {
        let key = keys::dead_letter(target, id);
        let value = self.read(move |keyspaces| keyspaces.dead_letters.get(key)).await?;
        Ok(value.map(|value| parse_letter(&value)))
    }

    /// The rules that [`WriteBatch::rules`] has written, if any. Blocks.
    pub(crate) fn rules<R: DeserializeOwned>(&self) -> Result<Option<R>, StoreError> {
        let value = self.keyspaces()?.meta.get(keys::RULES).map_err(|error| self.error(&error))?;
        value.map(|value| self.parse(&value)).transpose()
    }

    /// The bytes of the key of causes that [`WriteBatch::causes_key`] has written, if any. Blocks.
    pub(crate) fn causes_key(&self) -> Result<Option<[u8; CausesKey::BYTES]>, StoreError> {
        let value = self.keyspaces()?.meta.get(keys::CAUSES_KEY).map_err(|error| self.error(&error))?;
        value.map(|value| self.parse(&value)).transpose()
    }

    /// The latest decisions about losses, oldest first. One that cannot be read is left out, and told. Blocks.
    pub(crate) fn losses(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        let mut damaged = 0;
        let mut losses = Vec::new();
        for item in self.keyspaces()?.losses.iter() {
            let (_, value) = item.into_inner().map_err(|error| self.error(&error))?;
            match serde_json::from_slice(&value) {
                Ok(record) => losses.push(record),
                Err(_) => damaged += 1,
            }
        }
        if damaged > 0 {
            tracing::error!(damaged, directory = %self.0.directory, "decisions about lost events are damaged and left out");
        }
        Ok(losses)
    }

    /// The numbers of events that were lost since the store was made, by the names under which [`WriteBatch::loss`] has counted
    /// them. Blocks.
    pub(crate) fn lost_events(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let numbers = self.keyspaces()?.meta.prefix(keys::LOST_EVENTS).map(|item| {
            let (key, value) = item.into_inner().map_err(|error| self.error(&error))?;
            let name = String::from_utf8_lossy(&key[keys::LOST_EVENTS.len()..]).into_owned();
            Ok((name, self.parse(&value)?))
        });
        numbers.collect()
    }

    /// The running replays. Blocks.
    pub(crate) fn replays(&self) -> Result<Vec<Replay>, StoreError> {
        self.values(&self.keyspaces()?.replays)
    }

    /// The registrations. Blocks.
    pub(crate) fn services<S: DeserializeOwned>(&self) -> Result<Vec<S>, StoreError> {
        self.values(&self.keyspaces()?.services)
    }

    fn values<T: DeserializeOwned>(&self, keyspace: &Keyspace) -> Result<Vec<T>, StoreError> {
        let values = keyspace.iter().map(|item| {
            let (_, value) = item.into_inner().map_err(|error| self.error(&error))?;
            self.parse(&value)
        });
        values.collect()
    }

    fn keyspaces(&self) -> Result<Keyspaces, StoreError> {
        self.0.keyspaces.lock().clone().ok_or(StoreError::Closed)
    }

    fn malformed(&self, column: &str) -> StoreError {
        self.error(&format_args!("a key of `{column}` is malformed"))
    }

    fn parse<T: DeserializeOwned>(&self, value: &[u8]) -> Result<T, StoreError> {
        parse(&self.0.directory, value)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Keyspaces) -> Result<T, fjall::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let keyspaces = self.keyspaces()?;
        let read = relay_tasks::call_blocking(move || read(&keyspaces)).await;
        read.map_err(|error| self.error(&error))?.map_err(|error| self.error(&error))
    }
}

/// Removes a store whose creation was interrupted, which the engine refuses to open. The engine fills its file `version` last, and
/// writes nothing to the journal before.
fn remove_unfinished(directory: &Path) -> io::Result<()> {
    let version = fs::metadata(directory.join("version"));
    if version.is_ok_and(|version| version.len() >= VERSION_BYTES) || !directory.try_exists()? {
        return Ok(());
    }
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let is_journal = path.extension().is_some_and(|extension| extension == "jnl");
        if is_journal && fs::read(&path)?.iter().any(|byte| *byte != 0) {
            // Damage of another kind, about which the engine has an error.
            return Ok(());
        }
    }
    tracing::warn!(directory = %directory.display(), "the creation of the router's store was interrupted; it is made again");
    fs::remove_dir_all(directory)
}

#[cfg(test)]
mod tests;
