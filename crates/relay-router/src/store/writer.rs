//! The store's writer: it writes all waiting batches as one and answers their commits.
//!
//! It runs on a blocking thread of the runtime while commits wait, and ends when none does. So the runtime knows of every
//! write that is under way: a clock that a test has paused does not run on meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};
use relay_tasks::{TaskGroup, TaskName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::error::StoreError;
use super::keyspaces::Keyspaces;
use super::write_batch::{Change, WriteDurability};

/// The writing of the commits that wait.
pub(super) const WRITER: TaskName = TaskName::new("router.store-writer");

/// The most commits that wait. Further ones wait for a permit, in their order.
const QUEUE: usize = 1024;
/// The most commits that are written as one.
const GROUP: usize = 256;

/// The change of memory that belongs to a batch.
pub(super) type OnWritten = Box<dyn FnOnce() + Send>;

struct Commit {
    changes: Vec<Change>,
    durability: WriteDurability,
    /// Called once the batch is written, also when nobody waits for the answer any more.
    on_written: OnWritten,
    done: oneshot::Sender<Result<(), StoreError>>,
    /// The commit's share of the queue, which is free again when the commit is answered.
    _permit: OwnedSemaphorePermit,
}

/// The queue of commits, and what writes them.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// One permit for each commit that may wait.
    queue_permits: Arc<Semaphore>,
    tasks: TaskGroup,
}

struct Shared {
    /// None once the writer is closed.
    keyspaces: Mutex<Option<Keyspaces>>,
    directory: Arc<str>,
    /// The first write that failed.
    failure: Arc<OnceLock<StoreError>>,
    queue: Mutex<Queue>,
    /// Signalled when a run ends.
    run_ended: Condvar,
}

#[derive(Default)]
struct Queue {
    commits: VecDeque<Commit>,
    /// True while a [`Run`] exists.
    is_running: bool,
    is_closed: bool,
}

impl Writer {
    /// A writer of an open store. The first write that fails is kept in `failure`.
    pub(super) fn new(
        keyspaces: Keyspaces,
        directory: Arc<str>,
        failure: Arc<OnceLock<StoreError>>,
        tasks: TaskGroup,
    ) -> Self {
        let shared = Shared {
            keyspaces: Mutex::new(Some(keyspaces)),
            directory,
            failure,
            queue: Mutex::default(),
            run_ended: Condvar::new(),
        };
        Self { shared: Arc::new(shared), queue_permits: Arc::new(Semaphore::new(QUEUE)), tasks }
    }

    /// Writes `changes` as one, calls `on_written`, and waits for the answer. `on_written` is dropped if they are not written.
    pub(super) async fn submit(
        &self,
        changes: Vec<Change>,
        durability: WriteDurability,
        on_written: OnWritten,
    ) -> Result<(), StoreError> {
        let permits = Arc::clone(&self.queue_permits);
        let permit = permits.acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (done, answer) = oneshot::channel();
        let run = {
            let mut queue = self.shared.queue.lock();
            if queue.is_closed {
                return Err(StoreError::Closed);
            }
            queue.commits.push_back(Commit { changes, durability, on_written, done, _permit: permit });
            (!std::mem::replace(&mut queue.is_running, true))
                .then(|| Run { shared: Arc::clone(&self.shared), is_done: false })
        };
        if let Some(run) = run {
            // Dropped without having run when the runtime shuts down.
            drop(self.tasks.blocking(WRITER, move || run.write_all()));
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes all waiting batches, and refuses later ones. Blocks.
    pub(super) fn close(&self) {
        let mut queue = self.shared.queue.lock();
        queue.is_closed = true;
        self.shared.run_ended.wait_while(&mut queue, |queue| queue.is_running);
        drop(queue);
        self.shared.keyspaces.lock().take();
    }
}

/// The writing of the commits that wait, until none does. However it ends, the next commit begins another run.
struct Run {
    shared: Arc<Shared>,
    is_done: bool,
}

impl Run {
    fn write_all(mut self) {
        while let Some(group) = self.next_group() {
            self.write(group);
        }
        self.is_done = true;
    }

    /// Takes the next commits; none ends the run, in the same critical section.
    fn next_group(&self) -> Option<Vec<Commit>> {
        let mut queue = self.shared.queue.lock();
        let count = queue.commits.len().min(GROUP);
        if count == 0 {
            queue.is_running = false;
            return None;
        }
        Some(queue.commits.drain(..count).collect())
    }

    fn write(&self, group: Vec<Commit>) {
        let Shared { keyspaces, directory, failure, .. } = &*self.shared;
        let Some(keyspaces) = keyspaces.lock().clone() else { return };
        let durability = group.iter().map(|commit| commit.durability).max().unwrap_or_default();
        let changes = group.iter().flat_map(|commit| &commit.changes);
        let written =
            keyspaces.write(changes, durability).map_err(|error| StoreError::failed(directory, &error));
        if let Err(error) = &written {
            tracing::error!(%error, "the router's store cannot be written; routing stops");
            failure.get_or_init(|| error.clone());
        }
        for commit in group {
            if written.is_ok() {
                (commit.on_written)();
            }
            // Receiver dropped; ignore the send error.
            let _ = commit.done.send(written.clone());
        }
    }
}

impl Drop for Run {
    /// Ends a run that was dropped at work: the engine panicked, or the runtime shuts down. It is not known what was written.
    fn drop(&mut self) {
        if !self.is_done {
            let interrupted = StoreError::failed(&self.shared.directory, &"the writer was interrupted");
            self.shared.failure.get_or_init(|| interrupted);
            let waiting = {
                let mut queue = self.shared.queue.lock();
                queue.is_running = false;
                std::mem::take(&mut queue.commits)
            };
            // Dropped without an answer, they are refused as closed.
            drop(waiting);
        }
        self.shared.run_ended.notify_all();
    }
}
