//! The bus: the channels of all documents, opened when they are used and closed when they are idle.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use relay_core::{
    CheckedDraft, Clock, ConfigError, DocumentId, Event, EventLog, EventSink, EventSource, EventStream, Head,
    LogError, MemoryBudget, Ownership, PublishAck, PublishError, ReadLimit, Seq, Sequencer, SoleOwner,
    StartPosition, SubscribeAck, SubscribeError,
};
use relay_metrics::{LatencyStats, LatencyWindow};
use relay_tasks::{Supervisor, TaskGroup, TaskName};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::channel::{self, Channel};
use crate::channel_map::{ChannelMap, OpenLimit};
use crate::config::BusConfig;
use crate::context::ChannelContext;
use crate::counters::{BusStats, Counters};
use crate::filter::Filter;
use crate::history::{self, HistoryError};
use crate::mailbox::{Mailbox, MailboxConfig, Mailboxes};
use crate::multi_subscription::MultiSubscription;
use crate::subscription::{LagPolicy, Subscription};

/// The task that evicts idle documents.
const SWEEPER: TaskName = TaskName::new("bus.sweeper");

/// Ordered channels for documents. Clones are handles to the same bus.
///
/// Call [`Bus::shutdown`] before the last handle is dropped: it writes the drafts that were accepted. Without it, the
/// writers that run go on and answer their publishers, and nothing is swept any more.
#[derive(Debug, Clone)]
pub struct Bus {
    channels: Arc<ChannelMap>,
    tasks: Arc<BusTasks>,
}

/// The tasks of a bus, and the tokens that end them.
#[derive(Debug)]
struct BusTasks {
    /// The tasks of the handlers, and the sweeper.
    group: TaskGroup,
    /// Ends the sweeper.
    stopping: CancellationToken,
    /// Ends handlers that did not finish in time.
    aborting: CancellationToken,
}

/// The parts that a bus works with.
#[derive(Clone)]
#[non_exhaustive]
pub struct BusParts {
    /// The log that keeps sequenced events; `None` keeps histories in memory.
    pub log: Option<Arc<dyn EventLog>>,
    /// The stages that each sequenced draft passes at the moment at which it gets its place, in order.
    pub sequencers: Vec<Arc<dyn Sequencer>>,
    /// The authority on the documents that this process may open.
    pub ownership: Arc<dyn Ownership>,
    /// The source of time.
    pub clock: Arc<dyn Clock>,
    /// The budget of the memory that the bus holds.
    pub memory: MemoryBudget,
    /// The owner of the bus's tasks.
    pub supervisor: Supervisor,
}

impl BusParts {
    /// Returns parts that keep histories in memory, have no stages, own all documents, and have a budget of their own with
    /// the default limits.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            log: None,
            sequencers: Vec::new(),
            ownership: Arc::new(SoleOwner),
            clock,
            memory: MemoryBudget::default(),
            supervisor: Supervisor::default(),
        }
    }
}

impl fmt::Debug for BusParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusParts")
            .field("log", &self.log.is_some())
            .field("sequencers", &self.sequencers)
            .field("ownership", &self.ownership)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

/// The outcome of [`Bus::shutdown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownOutcome {
    /// True when all that was accepted was written and handled in time.
    pub complete: bool,
}

impl Bus {
    /// Makes a bus over `log`, or one that keeps histories in memory. This process owns all documents, and drafts pass no
    /// stages; see [`Bus::with_parts`].
    ///
    /// # Errors
    /// See [`BusConfig::validate`].
    ///
    /// # Panics
    /// Outside a Tokio runtime: the bus runs its writers on the present one.
    pub fn new(
        config: BusConfig,
        log: Option<Arc<dyn EventLog>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        Self::with_parts(config, BusParts { log, ..BusParts::new(clock) })
    }

    /// Makes a bus of these parts.
    ///
    /// # Errors
    /// See [`BusConfig::validate`].
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`Bus::new`].
    pub fn with_parts(config: BusConfig, parts: BusParts) -> Result<Self, ConfigError> {
        config.validate()?;
        let BusParts { log, sequencers, ownership, clock, memory, supervisor } = parts;
        let sweep_interval = config.sweep_interval;
        let context = ChannelContext {
            config,
            log,
            sequencers: sequencers.into(),
            ownership,
            clock,
            counters: Arc::new(Counters::default()),
            publishing: LatencyWindow::new(),
            mailboxes: Mailboxes::default(),
            memory,
            cache_uses: AtomicU64::new(0),
            channels: OnceLock::new(),
            runtime: Handle::current(),
            writers: supervisor.group(),
        };
        let channels = ChannelMap::new(Arc::new(context));
        let tasks = BusTasks {
            group: supervisor.group(),
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
        };
        let (swept, stopping) = (Arc::downgrade(&channels), tasks.stopping.clone());
        tasks.group.keep_running(SWEEPER, (), move |()| {
            Box::pin(sweep_regularly(swept.clone(), stopping.clone(), sweep_interval))
        });
        Ok(Self { channels, tasks: Arc::new(tasks) })
    }

    pub(crate) fn context(&self) -> &Arc<ChannelContext> {
        self.channels.context()
    }

    /// Publishes `draft`; see [`EventSink`] for the contract.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        let context = self.context();
        let timed_from = context.timing(&draft);
        let result = match self.open_for(&draft).await {
            Ok(channel) => {
                // The draft is taken here, in no future of its own, through which it would be copied.
                let submitted = channel.submit(draft);
                let published = channel::answer(&channel, submitted).await;
                context.relieve_memory();
                published
            }
            Err(refusal) => Err(refusal),
        };
        match (&result, timed_from) {
            (Ok(_), Some(from)) => {
                let now = context.clock.monotonic();
                context.publishing.record(now, now.since(from));
            }
            (Ok(_), None) => {}
            (Err(error), _) => context.counters.count_refusal(error),
        }
        result
    }

    /// Opens the channel of a draft's document, and gives it the place that the draft needs.
    async fn open_for(&self, draft: &CheckedDraft) -> Result<Arc<Channel>, PublishError> {
        let (bytes, max) = (draft.payload.len(), self.context().config.max_payload_bytes);
        if bytes > max {
            return Err(PublishError::TooLarge { bytes, max });
        }
        let limit = if draft.is_closing() { OpenLimit::Unlimited } else { OpenLimit::MaxChannels };
        let channel = match self.channels.open(&draft.document, limit).await {
            Ok(channel) => channel,
            Err(SubscribeError::TooManyDocuments { open }) => {
                return Err(PublishError::TooManyDocuments { open });
            }
            Err(SubscribeError::Log(error)) => return Err(error.into()),
            Err(SubscribeError::Memory(full)) => return Err(full.into()),
            Err(SubscribeError::Ownership(error)) => return Err(error.into()),
            Err(_) => return Err(PublishError::Closed),
        };
        if draft.kind.is_sequenced() {
            let taken = self.channels.take_place(&channel, limit);
            taken.map_err(|open| PublishError::TooManyDocuments { open })?;
        }
        Ok(channel)
    }

    /// Subscribes to one document, with a filter and a policy for falling behind.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub async fn subscribe(
        &self,
        document: &DocumentId,
        start: StartPosition,
        filter: Filter,
        on_lag: LagPolicy,
    ) -> Result<(SubscribeAck, Subscription), SubscribeError> {
        self.channels.end_if_lost(document);
        let channel = self.channels.open(document, OpenLimit::MaxChannels).await?;
        let head = history::retained_range(&self.channels, &channel).await?;
        let ack = SubscribeAck::decide(start, head);
        let context = Arc::clone(self.context());
        Ok((ack, Subscription::new(channel, context, ack.position, filter, on_lag)))
    }

    /// Subscribes to all documents, including those that are opened later.
    ///
    /// The mailbox takes events from now on. Earlier events are in the documents' histories.
    pub fn subscribe_all(&self, filter: Filter, config: MailboxConfig) -> MultiSubscription {
        let context = self.context();
        let mailbox = Arc::new(Mailbox::new(filter.clone(), config, context));
        context.mailboxes.add(Arc::clone(&mailbox));
        if self.tasks.stopping.is_cancelled() {
            mailbox.close();
        }
        MultiSubscription::new(Arc::clone(&self.channels), mailbox, filter)
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.context().counters
    }

    /// The tasks that shutdown waits for.
    pub(crate) fn tasks(&self) -> &TaskGroup {
        &self.tasks.group
    }

    /// The token that is cancelled when the bus stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.tasks.stopping.clone()
    }

    /// The token that is cancelled when handlers are given up.
    pub(crate) fn aborting(&self) -> CancellationToken {
        self.tasks.aborting.clone()
    }

    /// Ends channels of documents that this server has lost, drops outdated events, and evicts idle documents. Returns the
    /// number of evicted documents.
    ///
    /// The bus does this by itself every [`sweep_interval`](BusConfig::sweep_interval). A program with a
    /// [`Clock`] of its own, such as a simulation, calls it when that clock has moved.
    pub fn sweep(&self) -> usize {
        self.channels.sweep()
    }

    /// True while a further document can get its place among the [`max_channels`](BusConfig::max_channels).
    pub fn has_free_place(&self) -> bool {
        self.channels.has_free_place()
    }

    /// Returns the counters of the bus.
    pub fn stats(&self) -> BusStats {
        self.context().counters.snapshot(self.channels.len(), self.channels.places())
    }

    /// Returns the times from taking a draft that is not ephemeral to its publisher's ack. With a log every draft is measured, without
    /// one every 64th.
    pub fn publish_latency(&self) -> LatencyStats {
        let context = self.context();
        context.publishing.stats(context.clock.monotonic())
    }

    /// Stops the bus. It takes no more drafts, writes the accepted ones, lets handlers finish what they have, and ends all
    /// streams once they have delivered everything.
    ///
    /// After `deadline` the rest is given up: publishers that still wait are told [`PublishError::Closed`], and handlers
    /// are dropped. The caller closes the log afterwards. Stopping again does nothing.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownOutcome {
        let BusTasks { group, stopping, aborting } = &*self.tasks;
        let context = self.context();
        stopping.cancel();
        self.channels.close();
        context.writers.close();
        group.close();
        let finished = tokio::time::timeout(deadline, async {
            context.writers.wait().await;
            self.channels.close_channels();
            context.mailboxes.close();
            group.wait().await;
        })
        .await;
        if finished.is_err() {
            self.channels.close_channels();
            context.mailboxes.close();
            aborting.cancel();
            group.wait().await;
        }
        ShutdownOutcome { complete: finished.is_ok() }
    }
}

/// Sweeps until the bus stops or its last handle is dropped.
async fn sweep_regularly(channels: Weak<ChannelMap>, stopping: CancellationToken, interval: Duration) {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => match channels.upgrade() {
                Some(channels) => channels.sweep(),
                None => return,
            },
        };
    }
}

#[async_trait]
impl EventSink for Bus {
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        Bus::publish(self, draft).await
    }
}

#[async_trait]
impl EventSource for Bus {
    async fn subscribe(
        &self,
        document: &DocumentId,
        start: StartPosition,
    ) -> Result<(SubscribeAck, Box<dyn EventStream>), SubscribeError> {
        let (ack, subscription) =
            Bus::subscribe(self, document, start, Filter::all(), LagPolicy::Refill).await?;
        Ok((ack, Box::new(subscription)))
    }

    async fn history(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<(Head, Vec<Arc<Event>>), SubscribeError> {
        match history::page(&self.channels, document, after, limit).await {
            Ok((head, page)) => {
                let presented = page.into_iter().filter_map(|event| self.context().present(event));
                Ok((head, presented.collect()))
            }
            Err(HistoryError::Trimmed(head)) => {
                Err(LogError::Trimmed { document: document.clone(), first: head.first }.into())
            }
            Err(HistoryError::Other(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
