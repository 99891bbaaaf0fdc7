//! The moments at which changes of presence become visible to readers. The first change after a quiet interval is visible at
//! once; the changes that follow within the interval become visible together, at its end.

use std::collections::HashMap;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{DocumentId, Monotonic};
use tokio::sync::Notify;

use crate::version::Version;

/// The number of a reader among those of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ReaderId(pub(crate) u64);

/// The visibility of changes that were made since the last flush.
#[derive(Debug)]
pub(crate) enum Flush {
    /// There are none, or their flush is scheduled already.
    Nothing,
    /// They are visible now; these readers are to be woken.
    Done(Vec<Waker>),
    /// They become visible with the next flush, which is to be scheduled.
    Scheduled,
}

/// The readers of one document's presence, and the version up to which they see it.
#[derive(Debug)]
pub(crate) struct Readers {
    visible: Version,
    flushed_at: Option<Monotonic>,
    is_flush_scheduled: bool,
    /// The wakers of the readers that have read everything visible.
    wakers: HashMap<ReaderId, Waker>,
}

impl Readers {
    /// No readers yet; `visible` is the version that the first one sees.
    pub(crate) fn new(visible: Version) -> Self {
        Self { visible, flushed_at: None, is_flush_scheduled: false, wakers: HashMap::new() }
    }

    /// The version up to which changes are visible.
    pub(crate) fn visible(&self) -> Version {
        self.visible
    }

    /// Keeps the waker of a reader until the next flush.
    pub(crate) fn wait(&mut self, reader: ReaderId, waker: &Waker) {
        self.wakers.insert(reader, waker.clone());
    }

    /// Takes the wakers of all readers that wait.
    pub(crate) fn take_all(&mut self) -> Vec<Waker> {
        self.wakers.drain().map(|(_, waker)| waker).collect()
    }

    /// Drops the waker of a reader that ends.
    pub(crate) fn remove(&mut self, reader: ReaderId) {
        self.wakers.remove(&reader);
    }

    /// Decides when the changes up to `version` become visible: now, when the last flush is an `interval` ago.
    pub(crate) fn flush_or_schedule(
        &mut self,
        version: Version,
        now: Monotonic,
        interval: Duration,
    ) -> Flush {
        if version == self.visible {
            return Flush::Nothing;
        }
        if self.flushed_at.is_none_or(|at| now.since(at) >= interval) {
            return Flush::Done(self.flush(version, now));
        }
        if self.is_flush_scheduled {
            return Flush::Nothing;
        }
        self.is_flush_scheduled = true;
        Flush::Scheduled
    }

    /// Makes the changes up to `version` visible. Returns the readers to wake.
    pub(crate) fn flush(&mut self, version: Version, now: Monotonic) -> Vec<Waker> {
        self.is_flush_scheduled = false;
        self.visible = version;
        self.flushed_at = Some(now);
        self.take_all()
    }
}

/// The documents whose flush is scheduled. Each is in it at most once.
#[derive(Debug, Default)]
pub(crate) struct FlushQueue {
    documents: Mutex<Vec<DocumentId>>,
    scheduled: Notify,
}

impl FlushQueue {
    /// Schedules a flush of `document`.
    pub(crate) fn push(&self, document: DocumentId) {
        self.documents.lock().push(document);
        self.scheduled.notify_one();
    }

    /// Waits until a flush is scheduled. Cancel-safe.
    pub(crate) async fn wait(&self) {
        self.scheduled.notified().await;
    }

    /// Takes all documents out of the queue.
    pub(crate) fn take(&self) -> Vec<DocumentId> {
        std::mem::take(&mut *self.documents.lock())
    }
}
