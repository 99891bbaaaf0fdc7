//! [`EmbeddedLog`]: the handle that everybody holds. It queues writes for the writer and runs reads on the runtime's
//! blocking threads; it decides nothing.

use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use crossbeam_channel::Sender;
use parking_lot::{Mutex, RwLock};
use relay_core::{
    Clock, DocumentId, Epoch, Event, EventLog, Head, LogError, LogStats, Offset, ReadLimit, Seq,
};
use relay_events::binary;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config::LogConfig;
use crate::error::OpenError;
use crate::recovery::{self, RecoveredLog, RecoveryReport};
use crate::stats::Counters;
use crate::status::LogStatus;
use crate::store::{ReadError, Store, StoreSnapshot};
use crate::writer::{EncodedEvent, Request, Writer};

/// A log in a directory of this machine. Clones are handles of the same log.
///
/// Its methods need a tokio runtime with time enabled, though none of them blocks it: one thread of the log's own
/// writes, and reads run on the runtime's blocking threads, at most
/// [`concurrent_reads`](LogConfig::concurrent_reads) at once.
///
/// End it with [`close`](EmbeddedLog::close). When the last handle is dropped instead, the log is closed in the same
/// way, and the dropping thread waits for that: for what is queued to be written, and for one fsync.
#[derive(Clone)]
pub struct EmbeddedLog {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLog").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

struct Inner {
    config: LogConfig,
    epoch: Epoch,
    status: Arc<LogStatus>,
    /// None once the log is closed.
    open: RwLock<Option<Open>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    queue_requests: Arc<Semaphore>,
    queue_bytes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// What an open log has and a closed one has not.
struct Open {
    store: Arc<Store>,
    requests: Sender<Request>,
}

impl EmbeddedLog {
    /// Opens the log in `config.directory`, creating it when there is none, and puts right what a crash left: a torn
    /// last write is cut off. The report says what was found and done.
    ///
    /// This reads and may write much; on a runtime call it with `spawn_blocking`. `clock` tells the age of events and
    /// when to sweep.
    ///
    /// # Errors
    /// See [`OpenError`]. With [`OpenError::Damaged`] and [`OpenError::Lost`] no acknowledged event was touched.
    pub fn open(config: LogConfig, clock: Arc<dyn Clock>) -> Result<(Self, RecoveryReport), OpenError> {
        config.validate()?;
        let RecoveredLog { store, epoch, last_offset, marker, report } = recovery::open(&config)?;
        let store = Arc::new(store);
        let status = Arc::new(LogStatus::new(last_offset));
        // As many places as there are permits to send, so that sending never blocks.
        let (requests, queue) = crossbeam_channel::bounded(config.queue_requests as usize);
        let writer = Writer::new(
            Arc::clone(&store),
            Arc::clone(&status),
            clock,
            config.clone(),
            epoch,
            last_offset,
            marker,
        );
        let thread =
            std::thread::Builder::new().name("relay-log".to_owned()).spawn(move || writer.run(&queue));
        let thread = thread.map_err(OpenError::io("start the writer's thread of", &config.directory))?;
        let inner = Inner {
            epoch,
            status,
            open: RwLock::new(Some(Open { store, requests })),
            writer: Mutex::new(Some(thread)),
            queue_requests: Arc::new(Semaphore::new(config.queue_requests as usize)),
            queue_bytes: Arc::new(Semaphore::new(config.queue_bytes as usize)),
            reads: Arc::new(Semaphore::new(config.concurrent_reads as usize)),
            config,
        };
        Ok((Self { inner: Arc::new(inner) }, report))
    }

    /// Writes what is queued, syncs, marks the log as closed in order, and frees the directory. Every handle answers
    /// [`LogError::Closed`] from then on. Closing twice does nothing.
    ///
    /// Not to be dropped half-way: the log is then closed in the background, and nobody learns how that went.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the log had failed, or the last sync did.
    pub async fn close(&self) -> Result<(), LogError> {
        let inner = Arc::clone(&self.inner);
        let store = inner.open.write().take().map(|open| open.store);
        inner.status.end();
        // Whoever reads still holds the files open; all permits together mean that nobody does.
        let everybody = self.inner.config.concurrent_reads;
        let readers = inner.reads.acquire_many(everybody).await.map_err(|_| LogError::Closed)?;
        drop(store);
        drop(readers);
        let joining = Arc::clone(&self.inner);
        let joined = tokio::task::spawn_blocking(move || joining.join()).await;
        joined.map_err(|error| self.inner.status.fail(error))??;
        self.inner.status.check()
    }

    /// Drops what retention no longer keeps, in all documents, now. The log does this by itself every
    /// [`sweep_interval`](LogConfig::sweep_interval).
    ///
    /// # Errors
    /// [`LogError::Overloaded`], [`LogError::Failed`], [`LogError::Closed`].
    pub async fn sweep(&self) -> Result<(), LogError> {
        let room = self.room(0).await?.0;
        self.ask(|reply| Request::Sweep { reply, room }).await
    }

    /// What the log has done and how it stands. Asks the file system for sizes, so call it every few seconds at most.
    pub fn stats(&self) -> LogStats {
        let inner = &self.inner;
        let store = inner.open.read().as_ref().map(|open| Arc::clone(&open.store));
        let used = |limit: u32, semaphore: &Semaphore| {
            u64::from(limit).saturating_sub(semaphore.available_permits() as u64)
        };
        let mut stats = inner.status.counters.snapshot();
        stats.queued_requests = used(inner.config.queue_requests, &inner.queue_requests);
        stats.queued_bytes = used(inner.config.queue_bytes, &inner.queue_bytes);
        stats.disk_bytes = store.and_then(|store| store.db.disk_space().ok()).unwrap_or(0);
        stats
    }

    /// Room in the queue for one request with `bytes` of events.
    async fn room(&self, bytes: usize) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), LogError> {
        let inner = &self.inner;
        let waited = inner.config.queue_timeout;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(inner.config.queue_bytes);
        let both = async {
            let request = Arc::clone(&inner.queue_requests).acquire_owned().await?;
            let bytes = Arc::clone(&inner.queue_bytes).acquire_many_owned(bytes).await?;
            Ok((request, bytes))
        };
        if let Ok(room) = tokio::time::timeout(waited, both).await {
            return room.map_err(|_: tokio::sync::AcquireError| LogError::Closed);
        }
        Counters::add(&inner.status.counters.overloads, 1);
        Err(LogError::Overloaded { waited })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Request,
    ) -> Result<T, LogError> {
        let (reply, answer) = oneshot::channel();
        {
            let open = self.inner.open.read();
            let open = open.as_ref().ok_or(LogError::Closed)?;
            open.requests.try_send(request(reply)).map_err(|_| self.writer_is_gone())?;
        }
        answer.await.map_err(|_| self.writer_is_gone())?
    }

    fn writer_is_gone(&self) -> LogError {
        self.inner.status.fail(std::io::Error::other("the writer's thread ended unexpectedly"))
    }

    /// Runs `read` on a blocking thread.
    async fn read_store<T: Send + 'static>(
        &self,
        read: impl FnOnce(StoreSnapshot<'_>, Epoch) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, LogError> {
        let permit = Arc::clone(&self.inner.reads).acquire_owned().await.map_err(|_| LogError::Closed)?;
        self.inner.status.check()?;
        let store = self.inner.open.read().as_ref().map(|open| Arc::clone(&open.store));
        let store = store.ok_or(LogError::Closed)?;
        let epoch = self.inner.epoch;
        let reading = tokio::task::spawn_blocking(move || {
            let result = read(store.snapshot(), epoch);
            drop(store);
            drop(permit);
            result
        });
        let result = reading.await.map_err(|error| self.inner.status.fail(error))?;
        result.map_err(|error| error.into_log_error(|error| self.inner.status.fail(error)))
    }
}

#[async_trait]
impl EventLog for EmbeddedLog {
    async fn head(&self, document: &DocumentId) -> Result<Head, LogError> {
        let id = document.clone();
        self.read_store(move |snapshot, epoch| {
            let document = snapshot.document(&id)?;
            Ok(document.map_or(Head::empty(epoch), |document| document.head(epoch)))
        })
        .await
    }

    async fn append(&self, document: &DocumentId, events: &[Event]) -> Result<Vec<Offset>, LogError> {
        self.inner.status.check()?;
        let max = self.inner.config.max_event_bytes as usize;
        let mut encoded = Vec::with_capacity(events.len());
        for event in events {
            let body = binary::encode(event);
            if body.len() > max {
                return Err(LogError::TooLarge { bytes: body.len(), max });
            }
            // An event of another document has no place in this one: as seq 0 it will not follow.
            let seq = event.seq.filter(|_| event.document == *document).unwrap_or_default();
            encoded.push(EncodedEvent { epoch: event.epoch, seq, time: event.time, body });
        }
        let room = self.room(encoded.iter().map(|event| event.body.len()).sum()).await?;
        let document = document.clone();
        self.ask(|reply| Request::Append { document, events: encoded, reply, room }).await
    }

    async fn read_document(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, LogError> {
        let id = document.clone();
        self.read_store(move |snapshot, epoch| snapshot.read_document(&id, after, limit, epoch)).await
    }

    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError> {
        self.read_store(move |snapshot, epoch| snapshot.read(after, limit, epoch)).await
    }

    async fn last_offset(&self) -> Result<Offset, LogError> {
        self.inner.status.last_offset()
    }

    async fn wait_past(&self, offset: Offset) -> Result<Offset, LogError> {
        self.inner.status.wait_past(offset).await
    }

    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError> {
        let room = self.room(0).await?.0;
        let document = document.clone();
        self.ask(|reply| Request::Trim { document, through, reply, room }).await
    }

    async fn close(&self) -> Result<(), LogError> {
        EmbeddedLog::close(self).await
    }

    fn stats(&self) -> LogStats {
        EmbeddedLog::stats(self)
    }
}

impl Inner {
    /// Waits for the writer's end; true for whoever comes first.
    fn join(&self) -> Result<(), LogError> {
        let thread = self.writer.lock().take();
        match thread.map(JoinHandle::join) {
            Some(Err(_)) => Err(self.status.fail(std::io::Error::other("the writer's thread panicked"))),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends when there is nobody left who could send.
        self.open.write().take();
        if let Err(error) = self.join() {
            tracing::error!(%error, "the log was not closed in order");
        }
    }
}
