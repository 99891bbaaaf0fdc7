//! The store's writer: one thread that writes all waiting batches as one and answers their commits.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::error::StoreError;
use super::keyspaces::Keyspaces;
use super::write_batch::{Change, WriteDurability};

/// The most commits in the thread's queue. Further ones wait for a permit, in their order.
const QUEUE: usize = 1024;
/// The most commits that are written as one.
const GROUP: usize = 256;

struct Commit {
    changes: Vec<Change>,
    durability: WriteDurability,
    done: oneshot::Sender<Result<(), StoreError>>,
    /// The commit's slot in the queue, which is free again when the commit is answered.
    _permit: OwnedSemaphorePermit,
}

/// The handle to the writing thread.
pub(super) struct Writer {
    /// None once the writer is closed.
    commits: Mutex<Option<Sender<Commit>>>,
    /// One permit for each slot in the thread's queue.
    queue_permits: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread. The first write that fails is kept in `failure`.
    pub(super) fn start(
        keyspaces: Keyspaces,
        directory: Arc<str>,
        failure: Arc<OnceLock<StoreError>>,
    ) -> io::Result<Self> {
        let (commits, queue) = bounded(QUEUE);
        let thread = std::thread::Builder::new().name("relay-router-store".to_owned());
        let thread = thread.spawn(move || run(&keyspaces, &directory, &failure, &queue))?;
        Ok(Self {
            commits: Mutex::new(Some(commits)),
            queue_permits: Arc::new(Semaphore::new(QUEUE)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes `changes` as one and waits for the answer.
    pub(super) async fn submit(
        &self,
        changes: Vec<Change>,
        durability: WriteDurability,
    ) -> Result<(), StoreError> {
        let permits = Arc::clone(&self.queue_permits);
        let permit = permits.acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (done, answer) = oneshot::channel();
        let sent = match &*self.commits.lock() {
            // The queue is never full, because each commit in it has a permit.
            Some(commits) => commits.try_send(Commit { changes, durability, done, _permit: permit }),
            None => return Err(StoreError::Closed),
        };
        sent.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes all waiting batches and ends the thread. Blocks.
    pub(super) fn close(&self) {
        self.commits.lock().take();
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer of the router's store panicked");
        }
    }
}

fn run(
    keyspaces: &Keyspaces,
    directory: &Arc<str>,
    failure: &OnceLock<StoreError>,
    queue: &Receiver<Commit>,
) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(GROUP - 1));
        let is_synced = group.iter().any(|commit| commit.durability == WriteDurability::Synced);
        let durability = if is_synced { WriteDurability::Synced } else { WriteDurability::Buffered };
        let changes = group.iter().flat_map(|commit| &commit.changes);
        let written =
            keyspaces.write(changes, durability).map_err(|error| StoreError::failed(directory, &error));
        if let Err(error) = &written {
            tracing::error!(%error, "the router's store cannot be written; routing stops");
            failure.get_or_init(|| error.clone());
        }
        for commit in group {
            // Receiver dropped; ignore the send error.
            let _ = commit.done.send(written.clone());
        }
    }
}
