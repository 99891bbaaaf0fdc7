//! [`EmbeddedLog`], the handle of an open log. It queues writes for the writer's thread and runs reads on the runtime's
//! blocking threads. It decides nothing itself.

use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use crossbeam_channel::Sender;
use parking_lot::{Mutex, RwLock};
use relay_core::{
    Clock, DocumentId, Epoch, Event, EventLog, Head, LogError, LogStats, Offset, ReadLimit, Seq,
};
use relay_tasks::{OnPanic, Supervisor, TaskGroup, TaskName};
use tokio::sync::{Semaphore, oneshot};

use crate::config::LogConfig;
use crate::error::OpenError;
use crate::recovery::{self, RecoveredLog, RecoveryReport};
use crate::stats::Counters;
use crate::status::LogStatus;
use crate::store::{ReadError, Store, StoreSnapshot};
use crate::writer::{EncodedEvent, QueuePermits, ReplySender, Request, Writer};

/// The thread that writes.
const WRITER: TaskName = TaskName::new("log.writer");
/// A read of the store.
const READ: TaskName = TaskName::new("log.read");
/// The call that waits for the end of the writer's thread.
const CLOSE: TaskName = TaskName::new("log.close");

/// A log in a directory of this machine. Clones are handles of the same log.
///
/// Its methods need a tokio runtime with time enabled, and none of them blocks it. A thread of the log's own writes.
/// Reads run on the runtime's blocking threads, at most [`concurrent_reads`](LogConfig::concurrent_reads) at once.
///
/// End it with [`close`](EmbeddedLog::close). Dropping the last handle closes the log in the same way and blocks the
/// dropping thread until the queue is written and synced.
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
    /// `None` once the log is closed.
    open: RwLock<Option<OpenLog>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    tasks: TaskGroup,
    queue_requests: Arc<Semaphore>,
    queue_bytes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// The parts that closing the log drops.
struct OpenLog {
    store: Arc<Store>,
    requests: Sender<Request>,
}

impl EmbeddedLog {
    /// Opens the log in `config.directory`. Creates it when there is none, and cuts off a torn last write that a crash
    /// left. The report tells the findings.
    ///
    /// Opening reads and may write much; on a runtime call it with `spawn_blocking`. `clock` gives the age of events and
    /// the time between retention scans.
    ///
    /// # Errors
    /// See [`OpenError`]. With [`OpenError::Damaged`] and [`OpenError::Lost`] no acknowledged event was changed.
    pub fn open(config: LogConfig, clock: Arc<dyn Clock>) -> Result<(Self, RecoveryReport), OpenError> {
        Self::open_supervised(config, clock, &Supervisor::default())
    }

    /// Opens the log like [`EmbeddedLog::open`]. Its thread and its reads belong to `supervisor`, which tells when the
    /// thread is gone.
    ///
    /// # Errors
    /// As for [`EmbeddedLog::open`].
    pub fn open_supervised(
        config: LogConfig,
        clock: Arc<dyn Clock>,
        supervisor: &Supervisor,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        config.validate()?;
        let RecoveredLog { store, position, marker, report } = recovery::open(&config)?;
        let store = Arc::new(store);
        let status = Arc::new(LogStatus::new(position.last_offset, config.initial_hold));
        // The queue has as many slots as there are permits to send, so that sending never blocks.
        let (requests, queue) = crossbeam_channel::bounded(config.queue_requests as usize);
        let writer = Writer::new(Arc::clone(&store), Arc::clone(&status), clock, &config, position, marker);
        let tasks = supervisor.group();
        let mut writing = Some((writer, queue));
        let thread = tasks.thread(WRITER, "relay-log".to_owned(), OnPanic::Fail, move |pulse| {
            if let Some((writer, queue)) = writing.take() {
                writer.run(&queue, pulse);
            }
        });
        let thread = thread.map_err(OpenError::io("start the writer's thread of", &config.directory))?;
        let inner = Inner {
            epoch: position.epoch,
            status,
            open: RwLock::new(Some(OpenLog { store, requests })),
            writer: Mutex::new(Some(thread)),
            tasks,
            queue_requests: Arc::new(Semaphore::new(config.queue_requests as usize)),
            queue_bytes: Arc::new(Semaphore::new(config.queue_bytes as usize)),
            reads: Arc::new(Semaphore::new(config.concurrent_reads as usize)),
            config,
        };
        Ok((Self { inner: Arc::new(inner) }, report))
    }

    /// Writes the queued requests, syncs, records the clean shutdown, and frees the directory. From then on every handle
    /// answers [`LogError::Closed`]. Closing a closed log does nothing.
    ///
    /// Dropping the future half-way closes the log in the background and discards the result.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the log had failed, or when the last sync fails.
    pub async fn close(&self) -> Result<(), LogError> {
        let inner = &self.inner;
        let store = inner.open.write().take().map(|open| open.store);
        inner.status.end();
        // Begun before anything is waited for, so that it goes on when this future is dropped, and no handle waits for it.
        let joining = Arc::clone(inner);
        let joined = inner.tasks.blocking(CLOSE, move || {
            let joined = joining.join();
            drop(store);
            joined
        });
        joined.await.map_err(|error| inner.status.fail(error))??;
        // Running reads hold the files open. All permits together mean that no read is running.
        let all = inner.config.concurrent_reads;
        drop(inner.reads.acquire_many(all).await.map_err(|_| LogError::Closed)?);
        self.inner.status.check()
    }

    /// Applies retention to all documents now. The log does this by itself every
    /// [`sweep_interval`](LogConfig::sweep_interval).
    ///
    /// # Errors
    /// [`LogError::Overloaded`], [`LogError::Failed`], [`LogError::Closed`].
    pub async fn sweep(&self) -> Result<(), LogError> {
        let permits = self.acquire_permits(0).await?;
        self.send(|reply| Request::Scan { reply, permits }).await
    }

    /// Returns the log's counters and present state. This asks the file system for sizes, so call it every few seconds at
    /// most.
    pub fn stats(&self) -> LogStats {
        let inner = &self.inner;
        let store = inner.open.read().as_ref().map(|open| Arc::clone(&open.store));
        let used = |limit: u32, semaphore: &Semaphore| {
            u64::from(limit).saturating_sub(semaphore.available_permits() as u64)
        };
        let disk_bytes = store.map_or(0, |store| {
            store.disk_bytes().unwrap_or_else(|error| {
                tracing::warn!(%error, "the log's size on the disk is unknown and reported as 0");
                0
            })
        });
        let mut stats = inner.status.counters.snapshot();
        stats.queued_requests = used(inner.config.queue_requests, &inner.queue_requests);
        stats.queued_bytes = used(inner.config.queue_bytes, &inner.queue_bytes);
        stats.disk_bytes = disk_bytes;
        stats
    }

    /// Waits for a slot in the queue for one request with `bytes` of events.
    async fn acquire_permits(&self, bytes: usize) -> Result<QueuePermits, LogError> {
        let inner = &self.inner;
        let waited = inner.config.queue_timeout;
        // A batch that is larger than the queue takes all of it.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(inner.config.queue_bytes);
        let both = async {
            let request = Arc::clone(&inner.queue_requests).acquire_owned().await?;
            let bytes = Arc::clone(&inner.queue_bytes).acquire_many_owned(bytes).await?;
            Ok(QueuePermits { _request: request, _bytes: bytes })
        };
        if let Ok(permits) = tokio::time::timeout(waited, both).await {
            return permits.map_err(|_: tokio::sync::AcquireError| LogError::Closed);
        }
        Counters::add(&inner.status.counters.overloads, 1);
        Err(LogError::Overloaded { waited })
    }

    /// Sends a request to the writer and waits for its reply.
    async fn send<T>(&self, request: impl FnOnce(ReplySender<T>) -> Request) -> Result<T, LogError> {
        let (reply, result) = oneshot::channel();
        {
            let open = self.inner.open.read();
            let open = open.as_ref().ok_or_else(|| self.inner.status.ended())?;
            open.requests.try_send(request(reply)).map_err(|_| self.writer_is_gone())?;
        }
        result.await.map_err(|_| self.writer_is_gone())?
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
        let reading = self.inner.tasks.blocking(READ, move || {
            let result = read(store.snapshot(), epoch);
            drop(store);
            drop(permit);
            result
        });
        // A read that panicked has changed nothing, so the log goes on.
        let result = reading.await.map_err(|error| LogError::Failed { source: Arc::new(error) })?;
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
        let encoded = events.iter().map(|event| EncodedEvent::new(event, document, max));
        let events = encoded.collect::<Result<Vec<_>, _>>()?;
        let permits = self.acquire_permits(events.iter().map(|event| event.body.len()).sum()).await?;
        let (document, count) = (document.clone(), events.len());
        let first = self.send(|reply| Request::Append { document, events, reply, permits }).await?;
        Ok((first.get()..).map(Offset::new).take(count).collect())
    }

    async fn read_document(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, LogError> {
        let id = document.clone();
        let events =
            self.read_store(move |snapshot, epoch| snapshot.read_document(&id, after, limit, epoch)).await?;
        self.inner.status.note_lost(&events);
        Ok(events)
    }

    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError> {
        let events = self.read_store(move |snapshot, epoch| snapshot.read(after, limit, epoch)).await?;
        self.inner.status.note_lost(&events);
        Ok(events)
    }

    async fn last_offset(&self) -> Result<Offset, LogError> {
        self.inner.status.last_offset()
    }

    async fn wait_past(&self, offset: Offset) -> Result<Offset, LogError> {
        self.inner.status.wait_past(offset).await
    }

    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError> {
        let permits = self.acquire_permits(0).await?;
        let document = document.clone();
        self.send(|reply| Request::Trim { document, through, reply, permits }).await
    }

    fn hold(&self, after: Option<Offset>) {
        self.inner.status.set_hold(after);
    }

    fn offsets_are_contiguous(&self) -> bool {
        true
    }

    async fn close(&self) -> Result<(), LogError> {
        EmbeddedLog::close(self).await
    }

    fn stats(&self) -> LogStats {
        EmbeddedLog::stats(self)
    }
}

impl Inner {
    /// Waits for the writer's thread to end. Only the first call waits; later ones return at once.
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
        // The writer ends once its last sender is dropped.
        self.open.write().take();
        if let Err(error) = self.join() {
            tracing::error!(%error, "the log was not closed cleanly");
        }
    }
}
