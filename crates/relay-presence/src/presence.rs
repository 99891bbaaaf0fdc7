//! [`LocalPresence`]: all documents' people, and the tasks that publish what happens and look at the time.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, MutexGuard};
use relay_core::{
    Activity, CheckedDraft, Clock, CommandError, DocumentId, ErrorCode, EventSink, JoinError, JoinOptions,
    Joined, JsonText, LeaveReason, Membership, NodeId, Presence, PresenceSnapshot, PublishError, UserId,
};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::PresenceConfig;
use crate::crdt::{Delta, Replica};
use crate::document::{Document, not_joined};
use crate::locks::{LockChange, Locks};
use crate::presence_view::{PresenceView, Version};
use crate::query::{SessionInfo, SessionQuery};
use crate::stats::{PresenceCounters, PresenceStats};
use crate::stream::LocalPresenceStream;

/// Who is in which document. Clones are handles to the same presence.
///
/// Call [`LocalPresence::shutdown`] before the last handle goes: it tells the documents that everybody is gone.
#[derive(Debug, Clone)]
pub struct LocalPresence(Arc<Inner>);

struct Inner {
    config: PresenceConfig,
    sink: Arc<dyn EventSink>,
    locks: Locks,
    clock: Arc<dyn Clock>,
    node: NodeId,
    shards: [Mutex<HashMap<DocumentId, Document>>; SHARDS],
    hasher: RandomState,
    /// The version that was given out last.
    version: AtomicU64,
    /// The reader that was made last.
    reader: AtomicU64,
    /// Documents with changes that are not visible yet.
    dirty: Mutex<Vec<DocumentId>>,
    dirtied: Notify,
    counters: PresenceCounters,
    /// What publishes events, and the three tasks of [`LocalPresence::new`].
    tasks: TaskTracker,
    stopping: CancellationToken,
    aborting: CancellationToken,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalPresence")
            .field("node", &self.node)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Documents of different shards do not wait for each other.
const SHARDS: usize = 16;
/// Changes of locks that are published at once.
const LOCK_CHANGES_AT_ONCE: usize = 256;
/// How long a publisher that finds the log overloaded waits before it tries again, at first and at most.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl LocalPresence {
    /// Nobody is anywhere yet. What happens is published to `sink`, changes of `locks` too. Times are reckoned by
    /// `clock`. Check the `config` with [`PresenceConfig::validate`] first.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled: three tasks run on the present one.
    pub fn new(
        config: PresenceConfig,
        sink: Arc<dyn EventSink>,
        locks: Locks,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let inner = Arc::new(Inner {
            config,
            sink,
            locks,
            clock,
            node: NodeId::random(),
            shards: Default::default(),
            hasher: RandomState::new(),
            version: AtomicU64::new(1),
            reader: AtomicU64::new(0),
            dirty: Mutex::default(),
            dirtied: Notify::new(),
            counters: PresenceCounters::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
        });
        let (tick, weak) = (inner.config.tick, Arc::downgrade(&inner));
        inner.tasks.spawn(sweep_regularly(weak.clone(), inner.stopping.clone(), tick));
        inner.tasks.spawn(flush_when_dirty(weak, inner.stopping.clone(), inner.config.flush_interval));
        let (locks, sink, aborting) = (inner.locks.clone(), Arc::clone(&inner.sink), inner.aborting.clone());
        inner.tasks.spawn(async move { aborting.run_until_cancelled(publish_locks(locks, sink)).await });
        Self(inner)
    }

    /// Looks at all times now. It happens by itself every [`tick`](PresenceConfig::tick).
    pub fn sweep(&self) {
        self.0.sweep();
    }

    /// The locks.
    pub fn locks(&self) -> &Locks {
        &self.0.locks
    }

    /// A document's session, if there is one.
    pub fn session(&self, document: &DocumentId) -> Option<SessionInfo> {
        self.0.with_document(document, |entry| SessionInfo::of(document, entry)).flatten()
    }

    /// The sessions that are as asked for, in no order. Takes each document's lock for a moment.
    pub fn sessions(&self, query: &SessionQuery) -> Vec<SessionInfo> {
        let mut found = Vec::new();
        for shard in &self.0.shards {
            let shard = shard.lock();
            let wanted = shard.iter().filter(|(id, entry)| query.matches(id, entry));
            found.extend(wanted.filter_map(|(id, entry)| SessionInfo::of(id, entry)));
        }
        found
    }

    /// The participants of a document just now, as its members see them.
    pub fn snapshot(&self, document: &DocumentId) -> Arc<PresenceSnapshot> {
        self.0.with_document(document, |entry| entry.view.snapshot()).unwrap_or_default()
    }

    /// This server's id among those that tell each other who is there.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// All that this server knows of who is in a document, for another one to [merge](LocalPresence::merge).
    pub fn whole(&self, document: &DocumentId) -> Delta {
        self.0.with_document(document, |entry| entry.view.replica().whole()).unwrap_or_default()
    }

    /// Takes in what another server tells of who is in a document; its people are shown from then on as this server's are.
    /// Deltas may come in any order, and more than once. Sessions, `user.joined` and `user.left` are about the people of this
    /// server alone.
    pub fn merge(&self, document: &DocumentId, delta: &Delta) {
        self.0.update_or_insert(document, |entry, version| {
            entry.view.merge(version, |replica| replica.merge(delta));
        });
    }

    /// Takes out the people of a server that is gone, everywhere.
    pub fn remove_node(&self, node: NodeId) {
        for shard in &self.0.shards {
            let documents: Vec<DocumentId> = shard.lock().keys().cloned().collect();
            for document in documents {
                self.0.change(&document, |entry, version| {
                    entry.view.merge(version, |replica| replica.remove_node(node));
                });
            }
        }
    }

    /// What has happened so far.
    pub fn stats(&self) -> PresenceStats {
        let (mut documents, mut users, mut connections, mut waiting) = (0, 0, 0, 0);
        for shard in &self.0.shards {
            for entry in shard.lock().values() {
                documents += usize::from(entry.session.is_some());
                users += entry.users().count();
                connections += entry.connections();
                waiting += entry.outbox.len();
            }
        }
        self.0.counters.snapshot(documents, users, connections, waiting)
    }

    /// Stops: everybody is gone, all locks end, and what is to be published about that is. What is not done after `deadline`
    /// is given up. Stop what lets people in before.
    ///
    /// Returns whether everything was published. Called again, it does nothing.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let inner = &self.0;
        inner.stopping.cancel();
        let at = inner.clock.now();
        let documents: Vec<DocumentId> =
            inner.shards.iter().flat_map(|shard| shard.lock().keys().cloned().collect::<Vec<_>>()).collect();
        for id in documents {
            inner.change(&id, |entry, version| entry.shut_down(at, version));
        }
        inner.locks.shutdown();
        inner.tasks.close();
        let is_complete = tokio::time::timeout(deadline, inner.tasks.wait()).await.is_ok();
        inner.aborting.cancel();
        inner.tasks.wait().await;
        is_complete
    }

    /// Whether a membership is held.
    pub fn is_joined(&self, membership: &Membership) -> bool {
        self.0.with_document(&membership.document, |entry| entry.is_joined(membership)).unwrap_or(false)
    }

    pub(crate) fn update(&self, membership: &Membership, change: &JsonText) -> Result<(), CommandError> {
        let inner = &self.0;
        let at = inner.clock.now();
        let changed = inner.change(&membership.document, |entry, version| {
            entry.touch(membership, Activity::Active, at);
            entry.update(membership, change, &inner.config, version)
        });
        if changed.unwrap_or_else(|| Err(not_joined(&membership.document)))? {
            inner.counters.updates.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(crate) fn sink(&self) -> &Arc<dyn EventSink> {
        &self.0.sink
    }

    /// Lets a stream look at its document. `None` when the document has nobody any more.
    pub(crate) fn read<T>(&self, document: &DocumentId, read: impl FnOnce(&mut Document) -> T) -> Option<T> {
        self.0.with_document(document, read)
    }

    pub(crate) fn next_reader(&self) -> u64 {
        self.0.reader.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn counters(&self) -> &PresenceCounters {
        &self.0.counters
    }
}

#[async_trait::async_trait]
impl Presence for LocalPresence {
    async fn join(&self, membership: &Membership, options: JoinOptions) -> Result<Joined, JoinError> {
        let inner = &self.0;
        if inner.stopping.is_cancelled() {
            let message = "the server is stopping; connect again";
            return Err(CommandError::new(ErrorCode::Closed, message).into());
        }
        let now = inner.clock.now();
        let (session, is_return) = inner.update_or_insert(&membership.document, |entry, version| {
            entry.join(membership, &options, &inner.config, now, version)
        })?;
        let counters = &inner.counters;
        (if is_return { &counters.returns } else { &counters.joins }).fetch_add(1, Ordering::Relaxed);
        let locks = inner.locks.held(&membership.document);
        let stream = LocalPresenceStream::new(self.clone(), membership.document.clone());
        Ok(Joined::new(session, locks, Box::new(stream)))
    }

    fn leave(&self, membership: &Membership, reason: LeaveReason) {
        let at = self.0.clock.now();
        self.0.change(&membership.document, |entry, version| match reason {
            LeaveReason::Lost if !self.0.config.grace.is_zero() => entry.disconnect(membership, at),
            _ => entry.leave(membership, at, version),
        });
    }

    fn touch(&self, membership: &Membership, activity: Activity) {
        let at = self.0.clock.now();
        self.0.with_document(&membership.document, |entry| entry.touch(membership, activity, at));
    }
}

impl Inner {
    fn shard(&self, document: &DocumentId) -> &Mutex<HashMap<DocumentId, Document>> {
        let hash = self.hasher.hash_one(document);
        // The remainder is smaller than the number of shards.
        #[allow(clippy::cast_possible_truncation)]
        &self.shards[(hash % SHARDS as u64) as usize]
    }

    fn with_document<T>(&self, document: &DocumentId, visit: impl FnOnce(&mut Document) -> T) -> Option<T> {
        self.shard(document).lock().get_mut(document).map(visit)
    }

    /// Changes a document, if there is one, and sees to everything that follows from that.
    fn change<T>(
        self: &Arc<Self>,
        id: &DocumentId,
        change: impl FnOnce(&mut Document, Version) -> T,
    ) -> Option<T> {
        let version = self.next_version();
        let mut shard = self.shard(id).lock();
        let entry = shard.get_mut(id)?;
        let result = change(entry, version);
        self.commit_change(shard, id);
        Some(result)
    }

    /// As [`Inner::change`]; the document begins if there is none.
    fn update_or_insert<T>(
        self: &Arc<Self>,
        id: &DocumentId,
        change: impl FnOnce(&mut Document, Version) -> T,
    ) -> T {
        let mut shard = self.shard(id).lock();
        let entry = shard.entry(id.clone()).or_insert_with(|| {
            let replica = Replica::new(self.node);
            Document::new(id.clone(), PresenceView::new(replica, self.next_version()))
        });
        let result = change(entry, self.next_version());
        self.commit_change(shard, id);
        result
    }

    /// Sees to what a change of the document has led to, and lets go of it and of the lock.
    fn commit_change(
        self: &Arc<Self>,
        mut shard: MutexGuard<'_, HashMap<DocumentId, Document>>,
        id: &DocumentId,
    ) {
        let Some(entry) = shard.get_mut(id) else { return };
        let wakers = self.apply_effects(id, entry);
        if entry.is_over() {
            shard.remove(id);
        }
        drop(shard);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn next_version(&self) -> Version {
        self.version.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sees to what a change leads to: events are published, and changes become visible, now or with others a little later.
    /// Returns whom to wake when the lock is released.
    fn apply_effects(self: &Arc<Self>, id: &DocumentId, entry: &mut Document) -> Vec<Waker> {
        self.counters.count(&std::mem::take(&mut entry.counter_delta));
        if !entry.outbox.is_empty() && !entry.publishing {
            entry.publishing = true;
            let publishing = publish(Arc::clone(self), id.clone());
            let until = self.aborting.clone();
            self.tasks.spawn(async move { until.run_until_cancelled_owned(publishing).await });
        }
        if entry.view.version() == entry.visible {
            return Vec::new();
        }
        let now = self.clock.monotonic();
        if entry.flushed_at.is_none_or(|at| now.since(at) >= self.config.flush_interval) {
            return entry.flush(now);
        }
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.lock().push(id.clone());
            self.dirtied.notify_one();
        }
        Vec::new()
    }

    fn flush(&self) {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let now = self.clock.monotonic();
        for id in dirty {
            let wakers = self.with_document(&id, |entry| entry.flush(now));
            wakers.unwrap_or_default().into_iter().for_each(Waker::wake);
        }
    }

    fn sweep(self: &Arc<Self>) {
        let at = self.clock.now();
        for shard in &self.shards {
            let (mut wakers, mut gone): (_, Vec<(DocumentId, UserId)>) = (Vec::new(), Vec::new());
            shard.lock().retain(|id, entry| {
                entry.view.clear_cache();
                let result = entry.sweep(&self.config, at, self.next_version());
                self.counters.expired.fetch_add(result.removed as u64, Ordering::Relaxed);
                gone.extend(result.gone.into_iter().map(|user| (id.clone(), user)));
                wakers.extend(self.apply_effects(id, entry));
                !entry.is_over()
            });
            wakers.into_iter().for_each(Waker::wake);
            for (document, user) in gone {
                self.locks.user_gone(&document, &user);
            }
        }
        self.locks.sweep();
    }

    /// What comes next of a document's events. The outbox keeps it until it is published. Where nothing comes next,
    /// nobody publishes any more.
    fn next_outgoing(&self, id: &DocumentId) -> Option<CheckedDraft> {
        let mut shard = self.shard(id).lock();
        let entry = shard.get_mut(id)?;
        if let Some(outgoing) = entry.outbox.front() {
            return Some(outgoing.draft.clone());
        }
        entry.publishing = false;
        if entry.is_over() {
            shard.remove(id);
        }
        None
    }

    fn end_outgoing(&self, id: &DocumentId, outcome: &Result<(), PublishError>) {
        if let Err(error) = outcome {
            tracing::warn!(document = %id, %error, "an event about who comes and goes was not kept");
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.counters.published.fetch_add(1, Ordering::Relaxed);
        }
        self.with_document(id, |entry| {
            let over = entry.outbox.pop_front();
            if let (true, Some(session)) = (outcome.is_ok(), over.and_then(|outgoing| outgoing.opens)) {
                entry.opened(session);
            }
        });
    }
}

/// Publishes a document's events, one after the other, until there are none.
async fn publish(inner: Arc<Inner>, id: DocumentId) {
    while let Some(draft) = inner.next_outgoing(&id) {
        let (mut wait, longest) = RETRY_AFTER;
        let outcome = loop {
            match inner.sink.publish(draft.clone()).await {
                Ok(_) => break Ok(()),
                Err(error) if error.code() == ErrorCode::Overloaded => {
                    inner.counters.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(longest);
                }
                Err(error) => break Err(error),
            }
        };
        inner.end_outgoing(&id, &outcome);
    }
}

/// Publishes the changes of locks until they are shut down. The changes of one document come one by one.
async fn publish_locks(locks: Locks, sink: Arc<dyn EventSink>) {
    let publish = |LockChange { draft, publication }: LockChange| {
        let sink = Arc::clone(&sink);
        async move { publication.report(sink.publish(draft).await.map(drop)) }
    };
    let mut under_way = FuturesUnordered::new();
    let mut is_over = false;
    while !is_over || !under_way.is_empty() {
        tokio::select! {
            change = locks.next_change(), if !is_over && under_way.len() < LOCK_CHANGES_AT_ONCE => match change {
                Some(change) => under_way.push(publish(change)),
                None => is_over = true,
            },
            Some(()) = under_way.next() => {}
        }
    }
}

async fn sweep_regularly(presence: Weak<Inner>, stopping: CancellationToken, every: Duration) {
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        let Some(presence) = presence.upgrade() else { return };
        presence.sweep();
    }
}

/// Makes changes visible that came close upon others.
async fn flush_when_dirty(presence: Weak<Inner>, stopping: CancellationToken, interval: Duration) {
    loop {
        let Some(inner) = presence.upgrade() else { return };
        let waited = stopping.run_until_cancelled(inner.dirtied.notified()).await.is_some();
        drop(inner);
        if waited {
            stopping.run_until_cancelled(tokio::time::sleep(interval)).await;
        }
        let Some(inner) = presence.upgrade() else { return };
        inner.flush();
        if stopping.is_cancelled() {
            return;
        }
    }
}
