//! The bus: all documents' channels, opened when they are needed and closed when they are not.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use relay_core::{
    CheckedDraft, Clock, DocumentId, Event, EventLog, EventSink, EventSource, EventStream, Head, LogError,
    Ownership, PublishAck, PublishError, ReadLimit, Seq, Sequencer, SoleOwner, StartPosition, SubscribeAck,
    SubscribeError,
};
use relay_metrics::{LatencyStats, LatencyWindow};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::{self, Channel};
use crate::channel_map::ChannelMap;
use crate::config::BusConfig;
use crate::context::ChannelContext;
use crate::counters::{BusStats, ChannelStats, Counters};
use crate::filter::Filter;
use crate::mailbox::{Mailbox, MailboxConfig, Mailboxes};
use crate::multi_subscription::MultiSubscription;
use crate::subscription::{LagPolicy, Subscription};

/// Ordered channels for documents. Clones are handles to the same bus.
///
/// Call [`Bus::shutdown`] before the last handle goes: it drains what was accepted. Dropped without it, waiting
/// publishers are answered by the writers that are still under way, and nothing more is swept.
#[derive(Debug, Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: Arc<ChannelContext>,
    channels: ChannelMap,
    /// The handlers' tasks and the sweeper.
    tasks: TaskTracker,
    /// Ends the sweeper.
    stopping: CancellationToken,
    /// Ends handlers that did not come to their end in time.
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
    /// Decides which documents this process may open.
    pub ownership: Arc<dyn Ownership>,
    /// The source of time.
    pub clock: Arc<dyn Clock>,
}

impl BusParts {
    /// Histories in memory, no stages, and a process that owns all documents.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { log: None, sequencers: Vec::new(), ownership: Arc::new(SoleOwner), clock }
    }
}

/// How [`Bus::shutdown`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownOutcome {
    /// True when everything that was accepted was written and handled in time.
    pub complete: bool,
}

impl Bus {
    /// A bus over `log`, or one whose histories live in memory alone. This process owns all documents, and drafts pass no
    /// stages; see [`Bus::with_parts`].
    ///
    /// # Panics
    /// Outside a Tokio runtime: the bus runs its writers on the present one.
    pub fn new(config: BusConfig, log: Option<Arc<dyn EventLog>>, clock: Arc<dyn Clock>) -> Self {
        Self::with_parts(config, BusParts { log, ..BusParts::new(clock) })
    }

    /// A bus of these parts.
    ///
    /// # Panics
    /// As [`Bus::new`].
    pub fn with_parts(config: BusConfig, parts: BusParts) -> Self {
        let BusParts { log, sequencers, ownership, clock } = parts;
        let sweep_interval = config.sweep_interval.max(Duration::from_millis(1));
        let context = Arc::new(ChannelContext {
            config,
            log,
            sequencers,
            ownership,
            clock,
            counters: Arc::new(Counters::default()),
            publishing: LatencyWindow::new(),
            mailboxes: Mailboxes::default(),
            runtime: Handle::current(),
            writers: TaskTracker::new(),
        });
        let inner = Arc::new(Inner {
            context,
            channels: ChannelMap::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
        });
        inner.tasks.spawn(sweep_regularly(Arc::downgrade(&inner), inner.stopping.clone(), sweep_interval));
        Self { inner }
    }

    /// Publishes `draft`; see [`EventSink`] for what is promised.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        let context = &self.inner.context;
        let timed_from = context.timing(&draft);
        let result = self.publish_uncounted(draft).await;
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

    async fn publish_uncounted(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        let (bytes, max) = (draft.payload.len(), self.inner.context.config.max_payload_bytes);
        if bytes > max {
            return Err(PublishError::TooLarge { bytes, max });
        }
        let channel = match self.channel(&draft.document).await {
            Ok(channel) => channel,
            Err(SubscribeError::TooManyDocuments { open }) => {
                return Err(PublishError::TooManyDocuments { open });
            }
            Err(SubscribeError::Log(error)) => return Err(error.into()),
            Err(SubscribeError::Ownership(error)) => return Err(error.into()),
            Err(_) => return Err(PublishError::Closed),
        };
        channel::publish(&channel, draft).await
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
        let channel = self.channel(document).await?;
        let ack = SubscribeAck::decide(start, self.retained_range(&channel).await?);
        let subscription =
            Subscription::new(channel, Arc::clone(&self.inner.context), ack.position, filter, on_lag);
        Ok((ack, subscription))
    }

    /// Subscribes to all documents, those that are opened later too.
    ///
    /// The mailbox takes events from now on; what happened before is in the documents' histories.
    pub fn subscribe_all(&self, filter: Filter, config: MailboxConfig) -> MultiSubscription {
        let counters = Arc::clone(&self.inner.context.counters);
        let mailbox = Arc::new(Mailbox::new(filter.clone(), config, counters));
        self.inner.context.mailboxes.add(Arc::clone(&mailbox));
        if self.inner.stopping.is_cancelled() {
            mailbox.close();
        }
        MultiSubscription::new(self.clone(), mailbox, filter)
    }

    pub(crate) fn unsubscribe(&self, mailbox: &Arc<Mailbox>) {
        self.inner.context.mailboxes.remove(mailbox);
    }

    pub(crate) fn replay_page(&self) -> ReadLimit {
        self.inner.context.config.replay_page
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.inner.context.counters
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    pub(crate) fn aborting(&self) -> &CancellationToken {
        &self.inner.aborting
    }

    /// One page of a document's history, from memory where it is there.
    pub(crate) async fn page(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<(Head, Vec<Arc<Event>>), SubscribeError> {
        let channel = self.inner.channels.open_to_read(document, &self.inner.context).await?;
        let page = channel.cached_page(after, limit);
        let head = self.retained_range(&channel).await?;
        let is_kept = after.next() >= head.first;
        match (page, &self.inner.context.log) {
            // What retention has dropped is gone, though memory may still have it.
            (Some(page), _) if is_kept => Ok((head, page)),
            (_, Some(log)) if is_kept => {
                let page = log.read_document(document, after, limit).await?;
                // The log may be ahead of what is visible.
                let visible = page.into_iter().filter(|event| event.seq.is_some_and(|seq| seq <= head.last));
                Ok((head, visible.map(Arc::new).collect()))
            }
            _ => Err(LogError::Trimmed { document: document.clone(), first: head.first }.into()),
        }
    }

    /// The document's head, with the earliest event that the log keeps.
    async fn retained_range(&self, channel: &Channel) -> Result<Head, SubscribeError> {
        let Some(log) = &self.inner.context.log else { return Ok(channel.head()) };
        let kept = log.head(channel.document()).await?;
        let visible = channel.head();
        Ok(Head { first: kept.first.min(visible.last.next()), ..visible })
    }

    async fn channel(&self, document: &DocumentId) -> Result<Arc<Channel>, SubscribeError> {
        self.inner.channels.open(document, &self.inner.context).await
    }

    /// Looks for idle documents and outdated events now. The bus does this by itself every
    /// [`sweep_interval`](BusConfig::sweep_interval). Returns how many documents were dropped from memory.
    pub fn sweep(&self) -> usize {
        self.inner.sweep()
    }

    /// What has happened so far.
    pub fn stats(&self) -> BusStats {
        self.inner.context.counters.snapshot(self.inner.channels.len())
    }

    /// How long it takes from a draft's being handed in until its publisher has the ack. Of durable events alone: with a
    /// log of all, without one of one in 64.
    pub fn publish_latency(&self) -> LatencyStats {
        self.inner.context.publishing.stats(self.inner.context.clock.monotonic())
    }

    /// Every document in memory. Takes each channel's lock for a moment, one after the other.
    pub fn channels(&self) -> Vec<ChannelStats> {
        self.inner.channels.channels().iter().map(|channel| channel.stats()).collect()
    }

    /// Stops: takes nothing more, writes what was accepted, lets handlers finish what they have, and ends all
    /// streams once they have delivered everything. What is not done after `deadline` is given up: publishers that
    /// still wait are told [`PublishError::Closed`], handlers are dropped.
    ///
    /// The log is the caller's to close, afterwards. Stopping again is harmless.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownOutcome {
        let inner = &self.inner;
        inner.stopping.cancel();
        inner.channels.close();
        inner.context.writers.close();
        inner.tasks.close();
        let drained = tokio::time::timeout(deadline, async {
            inner.context.writers.wait().await;
            for channel in inner.channels.channels() {
                channel.close();
            }
            inner.context.mailboxes.close();
            inner.tasks.wait().await;
        })
        .await;
        if drained.is_err() {
            for channel in inner.channels.channels() {
                channel.close();
            }
            inner.context.mailboxes.close();
            inner.aborting.cancel();
            inner.tasks.wait().await;
        }
        ShutdownOutcome { complete: drained.is_ok() }
    }
}

impl Inner {
    fn sweep(&self) -> usize {
        for channel in self.channels.channels() {
            channel.check_owned();
        }
        if self.context.config.retention.max_age.is_some() {
            let wall = self.context.clock.wall();
            for channel in self.channels.channels() {
                channel.expire(wall);
            }
        }
        if self.context.log.is_none() {
            return 0;
        }
        let now = self.context.clock.monotonic();
        let evicted = self.channels.evict_idle(now, self.context.config.idle_after);
        self.context.counters.channels_evicted.add(evicted as u64);
        evicted
    }
}

async fn sweep_regularly(bus: Weak<Inner>, stopping: CancellationToken, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => match bus.upgrade() {
                Some(bus) => bus.sweep(),
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
        self.page(document, after, limit).await
    }
}
