//! [`LocalPresence`]: the presence of this server, its calls and its background tasks.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use relay_core::{
    Activity, Clock, CommandError, ConfigError, DocumentId, ErrorCode, EventLog, EventSink, JoinError,
    JoinOptions, Joined, JsonObject, LeaveReason, Membership, MemoryBudget, NodeId, Presence,
    PresenceSnapshot,
};
use relay_events::EndReason;
use relay_tasks::{Supervisor, TaskGroup, TaskName};
use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::PresenceConfig;
use crate::crdt::ReplicaDelta;
use crate::document::{Document, not_joined};
use crate::documents::{Changed, Documents};
use crate::leftovers::{Checkpoints, LeftoversError, end_all};
use crate::locks::Locks;
use crate::publishing::Publishing;
use crate::query::{SessionInfo, SessionQuery};
use crate::stats::PresenceStats;
use crate::stream::LocalPresenceStream;
use crate::version::Version;

/// The task that makes changes of presence visible.
const FLUSH: TaskName = TaskName::new("presence.flush");
/// The task that applies what time alone changes.
const SWEEP: TaskName = TaskName::new("presence.sweep");
/// The task that notes what is open beside the log.
const CHECKPOINT: TaskName = TaskName::new("presence.checkpoint");

/// The participants, sessions and locks of all documents of one server. Clones are handles to the same presence.
///
/// Call [`LocalPresence::shutdown`] before the last handle is dropped: it publishes the end of every session.
#[derive(Debug, Clone)]
pub struct LocalPresence(Arc<Inner>);

struct Inner {
    config: PresenceConfig,
    locks: Locks,
    clock: Arc<dyn Clock>,
    documents: Arc<Documents>,
    publishing: Publishing,
    /// Set when leftovers are kept track of.
    checkpoints: OnceLock<Arc<tokio::sync::Mutex<Checkpoints>>>,
    /// The publishers, and the three tasks of [`LocalPresence::new`].
    tasks: TaskGroup,
    stopping: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalPresence")
            .field("node", &self.documents.node())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl LocalPresence {
    /// A presence without participants. It publishes the events of sessions, users and `locks` to `sink`, and takes the time
    /// from `clock`. It has a budget of memory of its own.
    ///
    /// # Errors
    /// [`ConfigError`] when a field of `config` is out of bounds.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled: three tasks run on the present one.
    pub fn new(
        config: PresenceConfig,
        sink: Arc<dyn EventSink>,
        locks: Locks,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        Self::supervised(config, sink, locks, clock, &Supervisor::default(), &MemoryBudget::default())
    }

    /// A presence like that of [`LocalPresence::new`], whose tasks belong to `supervisor`, and whose memory counts to `memory`.
    ///
    /// # Errors
    /// As for [`LocalPresence::new`].
    ///
    /// # Panics
    /// As [`LocalPresence::new`].
    pub fn supervised(
        config: PresenceConfig,
        sink: Arc<dyn EventSink>,
        locks: Locks,
        clock: Arc<dyn Clock>,
        supervisor: &Supervisor,
        memory: &MemoryBudget,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let (tasks, stopping, aborting) =
            (supervisor.group(), CancellationToken::new(), CancellationToken::new());
        let documents =
            Arc::new(Documents::new(NodeId::random(), Arc::clone(&clock), &config, memory.total().clone()));
        let publishing = Publishing {
            documents: Arc::clone(&documents),
            sink,
            leftovers: Arc::default(),
            tasks: tasks.clone(),
            runtime: Handle::current(),
            aborting,
        };
        publishing.start_locks(locks.clone());
        let flushed = (Arc::clone(&documents), stopping.clone());
        tasks.keep_running(FLUSH, flushed, move |(documents, stopping)| {
            Box::pin(flush_periodically(documents, stopping, config.flush_interval))
        });
        let tick = config.tick;
        let inner = Arc::new(Inner {
            config,
            locks,
            clock,
            documents,
            publishing,
            checkpoints: OnceLock::new(),
            tasks,
            stopping,
        });
        let swept = (Arc::downgrade(&inner), inner.stopping.clone());
        inner.tasks.keep_running(SWEEP, swept, move |(presence, stopping)| {
            Box::pin(sweep_periodically(presence, stopping, tick))
        });
        Ok(Self(inner))
    }

    /// Ends by events what an earlier server left open in `log` when it was killed: locks, users and sessions. To be called
    /// once, before the first participant joins.
    ///
    /// The file at `checkpoint` tells what was open at an offset, so that only the events after it are read. A task keeps it
    /// up to date from then on, every [`checkpoint_interval`](PresenceConfig::checkpoint_interval). Without the file the
    /// whole log is read, unless the last server `was_stopped` in order.
    ///
    /// # Errors
    /// [`LeftoversError`] when the log cannot be read. Then nothing is ended, and no checkpoint is written.
    pub async fn end_leftovers(
        &self,
        log: Arc<dyn EventLog>,
        checkpoint: PathBuf,
        was_stopped: bool,
    ) -> Result<(), LeftoversError> {
        let inner = &self.0;
        let mut checkpoints = Checkpoints::new(Arc::clone(&inner.publishing.leftovers), log, checkpoint);
        let leftovers = checkpoints.find(was_stopped).await?;
        if !leftovers.is_empty() {
            tracing::warn!("ending the sessions and locks that the last server left open");
            let failed = AtomicU64::new(0);
            let publish = async |draft| {
                let outcome =
                    inner.publishing.publish_patiently(draft, &inner.documents.counters().retries).await;
                failed.fetch_add(u64::from(outcome.is_err()), Ordering::Relaxed);
            };
            end_all(&leftovers, publish).await?;
            let failed = failed.into_inner();
            if failed > 0 {
                tracing::error!(failed, "some of them were not ended, since the log did not take the events");
            }
        }
        let checkpoints = Arc::new(tokio::sync::Mutex::new(checkpoints));
        save(&checkpoints).await;
        if inner.checkpoints.set(Arc::clone(&checkpoints)).is_ok() {
            let interval = inner.config.checkpoint_interval;
            inner.tasks.keep_running(CHECKPOINT, (checkpoints, inner.stopping.clone()), move |state| {
                Box::pin(async move {
                    let (checkpoints, stopping) = &*state;
                    while stopping.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
                        stopping.run_until_cancelled(save(checkpoints)).await;
                    }
                })
            });
        }
        Ok(())
    }

    /// Applies everything that is due by the clock now. A task does this every [`tick`](PresenceConfig::tick).
    pub fn sweep(&self) {
        self.0.sweep();
    }

    /// The locks of the documents.
    pub fn locks(&self) -> &Locks {
        &self.0.locks
    }

    /// The present session of a document, if there is one.
    pub fn session(&self, document: &DocumentId) -> Option<SessionInfo> {
        self.0.documents.with_document(document, |entry| SessionInfo::of(document, entry)).flatten()
    }

    /// The sessions that match `query`, in no order. Takes each document's lock for a moment.
    pub fn sessions(&self, query: &SessionQuery) -> Vec<SessionInfo> {
        let mut found = Vec::new();
        self.0.documents.for_each(|id, entry| {
            if query.matches(id, entry) {
                found.extend(SessionInfo::of(id, entry));
            }
        });
        found
    }

    /// The present participants of a document, as its members see them.
    pub fn snapshot(&self, document: &DocumentId) -> Arc<PresenceSnapshot> {
        self.0.documents.with_document(document, |entry| entry.snapshot()).unwrap_or_default()
    }

    /// The id of this server among those that merge their presence.
    pub fn node(&self) -> NodeId {
        self.0.documents.node()
    }

    /// All that this server knows of a document's presence, for another server to [merge](LocalPresence::merge).
    pub fn whole(&self, document: &DocumentId) -> ReplicaDelta {
        self.0.documents.with_document(document, |entry| entry.whole()).unwrap_or_default()
    }

    /// Merges presence of another server. Its participants are shown from then on as those of this server are. Deltas may
    /// come in any order, and more than once. Sessions, `user.joined` and `user.left` are about this server's participants
    /// alone.
    pub fn merge(&self, document: &DocumentId, delta: &ReplicaDelta) {
        self.0.update_or_insert(document, |entry, version| entry.merge(version, delta));
    }

    /// Removes the participants of a server that is gone from all documents.
    pub fn remove_node(&self, node: NodeId) {
        for document in self.0.documents.ids() {
            self.0.update(&document, |entry, version| entry.remove_node(version, node));
        }
    }

    /// The present numbers and the counters.
    pub fn stats(&self) -> PresenceStats {
        self.0.documents.stats()
    }

    /// Stops: removes all participants, ends all locks, and publishes the events about it. Then it writes the last checkpoint,
    /// for which a quarter of the `deadline` is reserved. What is not done in time is given up: events, which the next
    /// start publishes, and the checkpoint, without which that start reads more of the log. Call it when no edge lets
    /// participants in any more.
    ///
    /// Returns true when every event was published: none failed since the call, and none is left. A second call does nothing.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let inner = &self.0;
        let failed_before = inner.failed_events();
        inner.stopping.cancel();
        let now = inner.clock.now();
        for document in inner.documents.ids() {
            inner.update(&document, |entry, version| entry.shut_down(now, version));
        }
        inner.locks.shutdown();
        inner.tasks.close();
        let reserved = deadline / 4;
        let ended = tokio::time::timeout(3 * reserved, inner.tasks.wait()).await.is_ok();
        inner.publishing.aborting.cancel();
        inner.tasks.wait().await;
        // A publisher that panics now is not started again, and leaves its events.
        let is_complete = ended && inner.failed_events() == failed_before && inner.unpublished_events() == 0;
        if let Some(checkpoints) = inner.checkpoints.get() {
            // A checkpoint that is not written in time is given up.
            let _ = tokio::time::timeout(reserved, save(checkpoints)).await;
        }
        is_complete
    }

    /// True when the membership is held.
    pub fn is_joined(&self, membership: &Membership) -> bool {
        let documents = &self.0.documents;
        documents.with_document(&membership.document, |entry| entry.is_joined(membership)).unwrap_or(false)
    }

    /// Changes the state that a participant shows.
    pub(crate) fn update(&self, membership: &Membership, change: &JsonObject) -> Result<(), CommandError> {
        let inner = &self.0;
        let now = inner.clock.now();
        let changed = inner.update(&membership.document, |entry, version| {
            entry.touch(membership, Activity::Active, now);
            entry.update(membership, change, &inner.config, version)
        });
        if changed.unwrap_or_else(|| Err(not_joined(&membership.document)))? {
            inner.documents.counters().updates.increment();
        }
        Ok(())
    }

    /// The sink that events are published to.
    pub(crate) fn sink(&self) -> &dyn EventSink {
        &*self.0.publishing.sink
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
        let (session, is_return, handed_over) =
            inner.update_or_insert(&membership.document, |entry, version| {
                let (session, is_return) = entry.join(membership, &options, &inner.config, now, version)?;
                Ok::<_, CommandError>((session, is_return, entry.outbox().when_handed_over()))
            })?;
        let counters = inner.documents.counters();
        (if is_return { &counters.returns } else { &counters.joins }).increment();
        if let Some(handed_over) = handed_over {
            let held = LeaveOnDrop { presence: self, membership };
            // The join goes on as well when the log is overloaded, which drops the sender, and when presence stops.
            let _ = inner.publishing.aborting.run_until_cancelled(handed_over).await;
            std::mem::forget(held);
        }
        let locks = inner.locks.held(&membership.document);
        let stream = LocalPresenceStream::new(Arc::clone(&inner.documents), membership.document.clone());
        Ok(Joined::new(session, locks, Box::new(stream)))
    }

    fn leave(&self, membership: &Membership, reason: LeaveReason) {
        let (now, has_grace) = (self.0.clock.now(), !self.0.config.grace.is_zero());
        self.0.update(&membership.document, |entry, version| match reason {
            LeaveReason::Lost if has_grace => entry.disconnect(membership, EndReason::Stale, now),
            LeaveReason::Shutdown if has_grace => entry.disconnect(membership, EndReason::Shutdown, now),
            LeaveReason::Shutdown => entry.leave(membership, EndReason::Shutdown, now, version),
            _ => entry.leave(membership, EndReason::Left, now, version),
        });
    }

    fn touch(&self, membership: &Membership, activity: Activity) {
        let now = self.0.clock.now();
        self.0.documents.with_document(&membership.document, |entry| entry.touch(membership, activity, now));
    }
}

/// Writes a checkpoint. With an older one, the next start only reads more of the log.
async fn save(checkpoints: &Arc<tokio::sync::Mutex<Checkpoints>>) {
    let checkpoints = Arc::clone(checkpoints).lock_owned().await;
    if let Err(error) = Checkpoints::save(checkpoints).await {
        tracing::warn!(%error, "the checkpoint of sessions and locks was not written");
    }
}

/// Gives up a membership whose join is dropped while it waits.
struct LeaveOnDrop<'a> {
    presence: &'a LocalPresence,
    membership: &'a Membership,
}

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        self.presence.leave(self.membership, LeaveReason::Left);
    }
}

impl Inner {
    /// Changes a document, if it exists, and starts its publisher when it needs one.
    fn update<T>(&self, id: &DocumentId, change: impl FnOnce(&mut Document, Version) -> T) -> Option<T> {
        let changed = self.documents.update(id, change)?;
        Some(self.start_publisher(id, changed))
    }

    /// Changes a document, which is created when it does not exist, and starts its publisher when it needs one.
    fn update_or_insert<T>(&self, id: &DocumentId, change: impl FnOnce(&mut Document, Version) -> T) -> T {
        let changed = self.documents.update_or_insert(id, change);
        self.start_publisher(id, changed)
    }

    fn start_publisher<T>(&self, id: &DocumentId, changed: Changed<T>) -> T {
        if changed.needs_publisher {
            self.publishing.start(id.clone());
        }
        changed.value
    }

    /// The number of events that could not be published so far.
    fn failed_events(&self) -> u64 {
        self.documents.counters().failed.get() + self.locks.stats().failed_changes
    }

    /// The number of events whose outcome is not known.
    fn unpublished_events(&self) -> usize {
        self.documents.stats().waiting_events + self.locks.stats().pending_changes
    }

    fn sweep(&self) {
        let now = self.clock.now();
        for id in self.documents.ids() {
            let swept = self.update(&id, |entry, version| entry.sweep(&self.config, now, version));
            self.documents.wake_starved(&id);
            let Some(swept) = swept else { continue };
            self.documents.counters().expired.add(swept.removed as u64);
            for user in swept.gone {
                self.locks.user_gone(&id, &user);
            }
        }
        self.locks.sweep();
    }
}

/// Sweeps at each tick, at most once a millisecond, until presence stops or its last handle is dropped.
async fn sweep_periodically(presence: &Weak<Inner>, stopping: &CancellationToken, tick: Duration) {
    let mut ticks = tokio::time::interval(tick.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        let Some(presence) = presence.upgrade() else { return };
        presence.sweep();
    }
}

/// Flushes an interval after the first flush was scheduled, again and again until presence stops.
async fn flush_periodically(documents: &Documents, stopping: &CancellationToken, interval: Duration) {
    while !stopping.is_cancelled() {
        if stopping.run_until_cancelled(documents.flush_scheduled()).await.is_some() {
            stopping.run_until_cancelled(tokio::time::sleep(interval)).await;
        }
        documents.flush();
    }
}

impl Drop for Inner {
    /// Ends the tasks that sweep and flush.
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}
