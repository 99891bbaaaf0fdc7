//! What routing must not forget: how far the log was routed, what waits for whom, dead letters, replays, services and
//! rules that came over the API. A database of its own beside the log.
//!
//! | keyspace | key | value (JSON) |
//! | --- | --- | --- |
//! | `meta` | `cursor`, `rules`, `behind/<route>` | an offset; the rules; where a route that is behind goes on |
//! | `routes` | route | which route it is |
//! | `queue` | route, offset | what waits there |
//! | `dead_letters` | target's length, target, offset, route | an event that was given up |
//! | `replays` | id | a replay that is not over |
//! | `services` | service | its registration |
//!
//! One thread writes, and takes all that waits as one batch. A batch is written whole or not at all, and is in the
//! operating system's hands when its commit is answered, so that a process that is killed has forgotten nothing. When
//! the machine itself goes down the last moments may be gone, all of them from one moment on: then some events are
//! routed and delivered once more, and none is left out.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;
use relay_core::{Offset, ServiceName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, oneshot};

use crate::records::{DeadLetter, DeadLetterId, QueuedEvent, RouteId, RouteRecord};

/// How many commits may wait for the writer; more wait in their turn.
const QUEUE: usize = 1024;
/// How many commits are written as one at most.
const GROUP: usize = 256;

/// Why something could not be kept or read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk refused, or what is there cannot be read.
    #[error("the router's store in {directory} failed: {detail}")]
    Failed {
        /// Where it is.
        directory: Arc<str>,
        /// What went wrong.
        detail: String,
    },
    /// The router is stopping.
    #[error("the router is stopping")]
    Closed,
}

/// Changes that are made together or not at all.
#[derive(Debug, Default)]
pub(crate) struct WriteBatch(Vec<Change>);

#[derive(Debug)]
struct Change {
    column: Column,
    key: Vec<u8>,
    /// None removes.
    value: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy)]
enum Column {
    Meta,
    Routes,
    Queue,
    DeadLetters,
    Replays,
    Services,
}

impl WriteBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the changes of `other` after those that are there.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    fn put(&mut self, column: Column, key: Vec<u8>, value: &impl Serialize) {
        // Plain structs of texts and numbers always serialise.
        let value = serde_json::to_vec(value).unwrap_or_default();
        self.0.push(Change { column, key, value: Some(value) });
    }

    fn remove(&mut self, column: Column, key: Vec<u8>) {
        self.0.push(Change { column, key, value: None });
    }

    /// The log was routed up to here; none while there is nobody to route to.
    pub(crate) fn cursor(&mut self, through: Option<Offset>) {
        match through {
            Some(through) => self.put(Column::Meta, CURSOR.to_vec(), &through),
            None => self.remove(Column::Meta, CURSOR.to_vec()),
        }
    }

    /// The route was routed up to here alone, not to the cursor; `None` when it has caught up.
    pub(crate) fn lag_cursor(&mut self, route: RouteId, through: Option<Offset>) {
        let key = [LAG_CURSOR, &route.0.to_be_bytes()].concat();
        match through {
            Some(through) => self.put(Column::Meta, key, &through),
            None => self.remove(Column::Meta, key),
        }
    }

    /// Rules that replace the configured ones; `None` returns to those.
    pub(crate) fn rules<R: Serialize>(&mut self, rules: Option<&R>) {
        match rules {
            Some(rules) => self.put(Column::Meta, RULES.to_vec(), rules),
            None => self.remove(Column::Meta, RULES.to_vec()),
        }
    }

    pub(crate) fn route(&mut self, id: RouteId, route: &RouteRecord) {
        self.put(Column::Routes, id.0.to_be_bytes().to_vec(), route);
    }

    pub(crate) fn remove_route(&mut self, id: RouteId) {
        self.remove(Column::Routes, id.0.to_be_bytes().to_vec());
    }

    pub(crate) fn put_queued(&mut self, route: RouteId, offset: Offset, queued: &QueuedEvent) {
        self.put(Column::Queue, queue_key(route, offset), queued);
    }

    pub(crate) fn remove_queued(&mut self, route: RouteId, offset: Offset) {
        self.remove(Column::Queue, queue_key(route, offset));
    }

    pub(crate) fn dead_letter(&mut self, letter: &DeadLetter) {
        self.put(Column::DeadLetters, letter_key(&letter.target, letter.id), letter);
    }

    pub(crate) fn remove_dead_letter(&mut self, target: &ServiceName, id: DeadLetterId) {
        self.remove(Column::DeadLetters, letter_key(target, id));
    }

    pub(crate) fn replay<R: Serialize>(&mut self, id: u64, replay: Option<&R>) {
        match replay {
            Some(replay) => self.put(Column::Replays, id.to_be_bytes().to_vec(), replay),
            None => self.remove(Column::Replays, id.to_be_bytes().to_vec()),
        }
    }

    pub(crate) fn service<S: Serialize>(&mut self, name: &ServiceName, record: Option<&S>) {
        match record {
            Some(record) => self.put(Column::Services, name.as_str().into(), record),
            None => self.remove(Column::Services, name.as_str().into()),
        }
    }
}

const CURSOR: &[u8] = b"cursor";
const RULES: &[u8] = b"rules";
const LAG_CURSOR: &[u8] = b"behind/";

fn queue_key(route: RouteId, offset: Offset) -> Vec<u8> {
    [&route.0.to_be_bytes()[..], &offset.get().to_be_bytes()].concat()
}

/// Targets are told apart by their length too, so that none is the beginning of another.
fn letter_prefix(target: &ServiceName) -> Vec<u8> {
    let name = target.as_str().as_bytes();
    let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], name].concat()
}

fn letter_key(target: &ServiceName, id: DeadLetterId) -> Vec<u8> {
    [letter_prefix(target), queue_offset_first(id)].concat()
}

fn queue_offset_first(id: DeadLetterId) -> Vec<u8> {
    [&id.offset.get().to_be_bytes()[..], &id.route.0.to_be_bytes()].concat()
}

/// All that was there when the store was opened.
#[derive(Debug)]
pub(crate) struct PersistedState {
    /// None before anything was routed.
    pub(crate) cursor: Option<Offset>,
    pub(crate) lag_cursors: Vec<(RouteId, Offset)>,
    pub(crate) routes: Vec<(RouteId, RouteRecord)>,
    pub(crate) queue: Vec<(RouteId, Offset, QueuedEvent)>,
    /// How many dead letters each target has.
    pub(crate) dead_letters: Vec<(ServiceName, usize)>,
}

/// The open store. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

struct Inner {
    /// None once closed.
    keyspaces: Mutex<Option<Keyspaces>>,
    directory: Arc<str>,
    commits: Mutex<Option<Sender<Commit>>>,
    /// Places in the queue to the writer.
    queue_permits: Semaphore,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Commit {
    batch: WriteBatch,
    /// Whether it must be on the disk when it is answered.
    is_synced: bool,
    done: oneshot::Sender<Result<(), StoreError>>,
}

#[derive(Clone)]
struct Keyspaces {
    db: Database,
    meta: Keyspace,
    routes: Keyspace,
    queue: Keyspace,
    dead_letters: Keyspace,
    replays: Keyspace,
    services: Keyspace,
}

impl Keyspaces {
    fn open(directory: &Path) -> Result<Self, fjall::Error> {
        let db = Database::builder(directory).cache_size(CACHE_BYTES).manual_journal_persist(true).open()?;
        let keyspace = |name: &str| db.keyspace(name, KeyspaceCreateOptions::default);
        Ok(Self {
            meta: keyspace("meta")?,
            routes: keyspace("routes")?,
            queue: keyspace("queue")?,
            dead_letters: keyspace("dead_letters")?,
            replays: keyspace("replays")?,
            services: keyspace("services")?,
            db,
        })
    }

    fn column(&self, column: Column) -> &Keyspace {
        match column {
            Column::Meta => &self.meta,
            Column::Routes => &self.routes,
            Column::Queue => &self.queue,
            Column::DeadLetters => &self.dead_letters,
            Column::Replays => &self.replays,
            Column::Services => &self.services,
        }
    }

    fn write(&self, group: &[Commit]) -> Result<(), fjall::Error> {
        let mut batch = self.db.batch();
        for change in group.iter().flat_map(|commit| &commit.batch.0) {
            match &change.value {
                Some(value) => {
                    batch.insert(self.column(change.column), change.key.as_slice(), value.as_slice())
                }
                None => batch.remove(self.column(change.column), change.key.as_slice()),
            }
        }
        batch.commit()?;
        let is_synced = group.iter().any(|commit| commit.is_synced);
        self.db.persist(if is_synced { PersistMode::SyncAll } else { PersistMode::Buffer })
    }
}

/// Memory for what is read from disk. Reading is rare: at the start, and when somebody looks at dead letters.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

impl Store {
    /// Opens or creates the store in `directory` and reads what it has. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub(crate) fn open(directory: &Path) -> Result<(Self, PersistedState), StoreError> {
        let name: Arc<str> = directory.display().to_string().into();
        let failed = |error: fjall::Error| failed(&name, &error);
        std::fs::create_dir_all(directory).map_err(|error| failed(error.into()))?;
        let keyspaces = Keyspaces::open(directory).map_err(failed)?;
        let persisted = keyspaces.read_all(&name)?;
        let (commits, waiting) = bounded(QUEUE);
        let writer = {
            let (keyspaces, name) = (keyspaces.clone(), Arc::clone(&name));
            let thread = std::thread::Builder::new().name("relay-router-store".to_owned());
            thread.spawn(move || write(&keyspaces, &name, &waiting)).map_err(|error| failed(error.into()))?
        };
        let store = Self(Arc::new(Inner {
            keyspaces: Mutex::new(Some(keyspaces)),
            directory: name,
            commits: Mutex::new(Some(commits)),
            queue_permits: Semaphore::new(QUEUE),
            writer: Mutex::new(Some(writer)),
        }));
        Ok((store, persisted))
    }

    /// Keeps `batch`, as soon as those before it are kept. Dropped before it is answered, the batch may or may not be
    /// kept.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing of the batch is kept then.
    pub(crate) async fn commit(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.submit(batch, false).await
    }

    /// As [`Store::commit`], and on the disk when it is answered: for what nobody could make up for.
    pub(crate) async fn commit_synced(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.submit(batch, true).await
    }

    async fn submit(&self, batch: WriteBatch, is_synced: bool) -> Result<(), StoreError> {
        let permit = self.0.queue_permits.acquire().await.map_err(|_| StoreError::Closed)?;
        let (done, answer) = oneshot::channel();
        let sent = match &*self.0.commits.lock() {
            Some(commits) => commits.try_send(Commit { batch, is_synced, done }),
            None => return Err(StoreError::Closed),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sent {
            return Err(StoreError::Closed);
        }
        let answer = answer.await.map_err(|_| StoreError::Closed)?;
        drop(permit);
        answer
    }

    /// Writes what waits and closes the files. Blocks.
    pub(crate) fn close(&self) {
        self.0.commits.lock().take();
        self.0.keyspaces.lock().take();
        let writer = self.0.writer.lock().take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of the router's store ended by a bug");
        }
    }

    /// Up to `limit` of the target's dead letters after `after`, the ones with the lowest offsets first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn dead_letters(
        &self,
        target: ServiceName,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.read(move |keyspaces| {
            let prefix = letter_prefix(&target);
            let from =
                after.map_or_else(|| prefix.clone(), |after| [letter_key(&target, after), vec![0]].concat());
            keyspaces
                .dead_letters
                .range(from..)
                .map(fjall::Guard::into_inner)
                .take_while(|item| item.as_ref().map_or(true, |(key, _)| key.starts_with(&prefix)))
                .take(limit)
                .map(|item| item.map(|(_, value)| value.to_vec()))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?
        .iter()
        .map(|value| self.parse(value))
        .collect()
    }

    /// One dead letter of the target.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn dead_letter(
        &self,
        target: &ServiceName,
        id: DeadLetterId,
    ) -> Result<Option<DeadLetter>, StoreError> {
        let key = letter_key(target, id);
        let value = self.read(move |keyspaces| keyspaces.dead_letters.get(key)).await?;
        value.map(|value| self.parse(&value)).transpose()
    }

    /// The rules that were kept by [`WriteBatch::rules`]. Blocks.
    pub(crate) fn rules<R: DeserializeOwned>(&self) -> Result<Option<R>, StoreError> {
        let value = self.keyspaces()?.meta.get(RULES).map_err(|error| failed(&self.0.directory, &error))?;
        value.map(|value| self.parse(&value)).transpose()
    }

    /// The replays that are not over. Blocks.
    pub(crate) fn replays<R: DeserializeOwned>(&self) -> Result<Vec<R>, StoreError> {
        self.values(&self.keyspaces()?.replays)
    }

    /// The registrations. Blocks.
    pub(crate) fn services<S: DeserializeOwned>(&self) -> Result<Vec<S>, StoreError> {
        self.values(&self.keyspaces()?.services)
    }

    fn values<T: DeserializeOwned>(&self, column: &Keyspace) -> Result<Vec<T>, StoreError> {
        let values = column.iter().map(|item| {
            let (_, value) = item.into_inner().map_err(|error| failed(&self.0.directory, &error))?;
            self.parse(&value)
        });
        values.collect()
    }

    fn keyspaces(&self) -> Result<Keyspaces, StoreError> {
        self.0.keyspaces.lock().clone().ok_or(StoreError::Closed)
    }

    fn parse<T: DeserializeOwned>(&self, value: &[u8]) -> Result<T, StoreError> {
        parse(&self.0.directory, value)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Keyspaces) -> Result<T, fjall::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let keyspaces = self.keyspaces()?;
        let read = tokio::task::spawn_blocking(move || read(&keyspaces)).await;
        let read = read.map_err(|error| StoreError::Failed {
            directory: Arc::clone(&self.0.directory),
            detail: error.to_string(),
        })?;
        read.map_err(|error| failed(&self.0.directory, &error))
    }
}

fn failed(directory: &Arc<str>, error: &dyn std::error::Error) -> StoreError {
    StoreError::Failed { directory: Arc::clone(directory), detail: error.to_string() }
}

fn parse<T: DeserializeOwned>(directory: &Arc<str>, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|error| failed(directory, &error))
}

/// The writer: takes what waits, writes it as one, answers all.
fn write(keyspaces: &Keyspaces, directory: &Arc<str>, waiting: &Receiver<Commit>) {
    while let Ok(first) = waiting.recv() {
        let mut group = vec![first];
        group.extend(waiting.try_iter().take(GROUP - 1));
        let written = keyspaces.write(&group).map_err(|error| failed(directory, &error));
        if let Err(error) = &written {
            tracing::error!(%error, "routing cannot go on");
        }
        for commit in group {
            // Who does not wait for the answer any more does not need it.
            let _ = commit.done.send(written.clone());
        }
    }
}

impl Keyspaces {
    fn read_all(&self, directory: &Arc<str>) -> Result<PersistedState, StoreError> {
        let failed = |error: fjall::Error| failed(directory, &error);
        let malformed = |what: &str| StoreError::Failed {
            directory: Arc::clone(directory),
            detail: format!("a key of `{what}` is malformed"),
        };
        let cursor = self.meta.get(CURSOR).map_err(failed)?;
        let cursor = cursor.map(|value| parse(directory, &value)).transpose()?;
        let mut lag_cursors = Vec::new();
        for item in self.meta.prefix(LAG_CURSOR) {
            let (key, value) = item.into_inner().map_err(failed)?;
            let route = key.get(LAG_CURSOR.len()..).and_then(route_of).ok_or_else(|| malformed("meta"))?;
            lag_cursors.push((route, parse(directory, &value)?));
        }
        let mut routes = Vec::new();
        for item in self.routes.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            routes.push((route_of(&key).ok_or_else(|| malformed("routes"))?, parse(directory, &value)?));
        }
        let mut queue = Vec::new();
        for item in self.queue.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let (route, offset) = key.split_at_checked(4).ok_or_else(|| malformed("queue"))?;
            let (route, offset) = (route_of(route), offset.try_into().map(u64::from_be_bytes));
            let (Some(route), Ok(offset)) = (route, offset) else { return Err(malformed("queue")) };
            queue.push((route, Offset::new(offset), parse(directory, &value)?));
        }
        let mut dead_letters: Vec<(ServiceName, usize)> = Vec::new();
        for item in self.dead_letters.iter() {
            let key = item.key().map_err(failed)?;
            let name =
                key.get(2..key.len().saturating_sub(12)).and_then(|name| std::str::from_utf8(name).ok());
            let name = name.and_then(|name| ServiceName::new(name).ok());
            let name = name.ok_or_else(|| malformed("dead_letters"))?;
            match dead_letters.last_mut() {
                Some((last, count)) if *last == name => *count += 1,
                _ => dead_letters.push((name, 1)),
            }
        }
        Ok(PersistedState { cursor, lag_cursors, routes, queue, dead_letters })
    }
}

fn route_of(key: &[u8]) -> Option<RouteId> {
    Some(RouteId(u32::from_be_bytes(key.try_into().ok()?)))
}
