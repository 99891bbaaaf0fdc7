//! The writer: one thread that makes everything durable, in groups.
//!
//! The requests that wait when the writer is free become one batch of the engine and one fsync. Each append is checked
//! against its document's head first, so that two owners of a document cannot both append. Trimming shares the same
//! batches in small parts, so that it hardly delays appends.
//!
//! After a failed commit it is unknown how much of it reached the disk, so the log fails for good. The heads in memory
//! are then ahead of the disk, and are never used again.
//!
//! The parts: [`request`] is what the handles send, [`staging`] checks appends and puts events into a batch, [`retention`]
//! decides which events go, and this module commits.

use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use fjall::PersistMode;
use relay_core::{Clock, DocumentId, LogError, Offset};
use relay_tasks::Pulse;

use crate::commit_marker::CommitMarker;
use crate::config::{LogConfig, LogDurability};
use crate::status::LogStatus;
use crate::store::{Store, StoreBatch};

mod head_cache;
mod held_history;
mod limits;
mod logged;
mod request;
mod retention;
mod staging;

pub(crate) use request::{EncodedEvent, QueuePermits, ReplySender, Request};
pub(crate) use staging::WritePosition;

use request::PendingReplies;
use retention::RetentionQueue;
use staging::Staging;

/// The writer closes a group when it has this many bytes of events.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// The state of the writer's thread, which alone owns it.
pub(crate) struct Writer {
    store: Arc<Store>,
    status: Arc<LogStatus>,
    clock: Arc<dyn Clock>,
    durability: LogDurability,
    marker: CommitMarker,
    staging: Staging,
    retention: RetentionQueue,
}

/// Every sender of requests was dropped.
struct Disconnected;

/// Marks the log as failed when the thread panics, so that no reader waits for more events.
struct FailOnPanic(Arc<LogStatus>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(std::io::Error::other("the writer's thread panicked"));
        }
    }
}

impl Writer {
    pub(crate) fn new(
        store: Arc<Store>,
        status: Arc<LogStatus>,
        clock: Arc<dyn Clock>,
        config: &LogConfig,
        position: WritePosition,
        marker: CommitMarker,
    ) -> Self {
        status.counters.set_logged_bytes(position.logged.kept_bytes());
        Self {
            staging: Staging::new(Arc::clone(&store), Arc::clone(&status), config.cached_heads, position),
            retention: RetentionQueue::new(Arc::clone(&status), config, clock.monotonic()),
            store,
            status,
            clock,
            durability: config.durability,
            marker,
        }
    }

    /// Works until every sender is dropped and the queue is empty, then closes the log.
    pub(crate) fn run(mut self, requests: &Receiver<Request>, pulse: &Pulse) {
        let _failing = FailOnPanic(Arc::clone(&self.status));
        loop {
            pulse.check();
            let first = match self.next_request(requests) {
                Ok(first) => first,
                Err(Disconnected) => break,
            };
            self.commit_group(first, requests);
        }
        self.close();
    }

    /// Waits for a request; returns `None` as soon as retention has work.
    fn next_request(&mut self, requests: &Receiver<Request>) -> Result<Option<Request>, Disconnected> {
        self.retention.start_scan_if_due(self.clock.monotonic());
        if self.retention.is_idle() {
            // With a clock that stands still in a test, the thread wakes up once per interval and finds nothing.
            match requests.recv_timeout(self.retention.until_next_scan(self.clock.monotonic())) {
                Ok(request) => Ok(Some(request)),
                Err(RecvTimeoutError::Timeout) => Ok(None),
                Err(RecvTimeoutError::Disconnected) => Err(Disconnected),
            }
        } else {
            match requests.try_recv() {
                Ok(request) => Ok(Some(request)),
                Err(TryRecvError::Empty) => Ok(None),
                // Requested trims and scans are still answered. Retention's own work is left to the next run.
                Err(TryRecvError::Disconnected) if self.retention.has_callers() => Ok(None),
                Err(TryRecvError::Disconnected) => Err(Disconnected),
            }
        }
    }

    /// Stages the waiting requests as one group, commits it, and sends the replies.
    fn commit_group(&mut self, first: Option<Request>, requests: &Receiver<Request>) {
        let store = Arc::clone(&self.store);
        let mut batch = store.batch();
        let mut replies = PendingReplies::default();
        // The permits are held until the group is on the disk: events that are being written count as queued.
        let mut permits = Vec::new();
        let mut bytes = 0;
        for request in first.into_iter().chain(requests.try_iter()) {
            match request {
                Request::Append { document, events, reply, permits: held } => {
                    bytes += events.iter().map(|event| event.body.len()).sum::<usize>();
                    permits.push(held);
                    let result = self.append(&mut batch, &document, &events);
                    replies.appends.push((reply, result));
                }
                Request::Trim { document, through, reply, permits } => {
                    self.retention.push_trim(document, through, reply, permits);
                }
                Request::Scan { reply, permits } => {
                    self.retention.restart_scan(self.clock.monotonic(), reply, permits);
                }
            }
            if bytes >= GROUP_BYTES {
                break;
            }
        }
        self.retention.follow_hold();
        self.retention.scan_slice(&self.staging, self.clock.wall());
        self.retention.run_tasks(&mut self.staging, &mut batch, &mut replies, self.clock.wall());
        let committed = self.commit(batch, replies.appends.len() as u64);
        drop(permits);
        replies.send(&committed);
        self.retention.finish_scan(&committed);
    }

    /// Stages an append, and returns the offset of its first event.
    fn append(
        &mut self,
        batch: &mut StoreBatch<'_>,
        id: &DocumentId,
        events: &[EncodedEvent],
    ) -> Result<Offset, LogError> {
        let appended = self.staging.append(batch, id, events)?;
        if let Some(document) = &appended.document {
            self.retention.check_after_append(id, document, self.clock.wall());
        }
        if appended.has_logged {
            self.retention.check_logged(self.staging.logged(), self.clock.wall());
        }
        Ok(appended.first)
    }

    fn commit(&mut self, batch: StoreBatch<'_>, appends: u64) -> Result<(), LogError> {
        self.status.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let mode = match self.durability {
            LogDurability::Logged => PersistMode::Buffer,
            // The journal's file and its name were synced when it was made; an append adds only data and size.
            LogDurability::Synced => PersistMode::SyncData,
        };
        let began = self.clock.monotonic();
        batch.commit_durably(mode).map_err(|error| self.status.fail(error))?;
        self.marker.acknowledge(self.staging.last_offset()).map_err(|error| self.status.fail(error))?;
        self.status.counters.set_logged_bytes(self.staging.logged().kept_bytes());
        self.status.counters.commit(appends, self.clock.monotonic().since(began));
        self.status.advance(self.staging.last_offset());
        Ok(())
    }

    /// Syncs the store and marks the log as closed, unless it has failed.
    fn close(self) {
        if self.status.check().is_err() {
            return;
        }
        let synced = self.store.sync().map_err(std::io::Error::other);
        if let Err(error) = synced.and_then(|()| self.marker.close()) {
            self.status.fail(error);
        }
    }
}
