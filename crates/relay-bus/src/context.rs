//! The parts and values that all channels of a bus share.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use relay_core::{
    Clock, DeliveryClass, Draft, Event, EventLog, MemoryBudget, Monotonic, Ownership, Sequencer,
};
use relay_metrics::LatencyWindow;
use relay_tasks::TaskGroup;
use tokio::runtime::Handle;

use crate::channel_map::ChannelMap;
use crate::config::BusConfig;
use crate::counters::Counters;
use crate::mailbox::Mailboxes;

/// Without a log, of how many sequenced events the publishing of one is timed.
const SAMPLED: u64 = 64;

pub(crate) struct ChannelContext {
    pub(crate) config: BusConfig,
    pub(crate) log: Option<Arc<dyn EventLog>>,
    /// The stages that each draft passes when it gets its place, in order.
    pub(crate) sequencers: Arc<[Arc<dyn Sequencer>]>,
    pub(crate) ownership: Arc<dyn Ownership>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    /// The times that publishers wait for the acks of events that are not ephemeral.
    pub(crate) publishing: LatencyWindow,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) memory: MemoryBudget,
    /// The number of uses of all caches, by which the least recently used one is found.
    pub(crate) cache_uses: AtomicU64,
    /// The map of the channels, set once.
    pub(crate) channels: OnceLock<Weak<ChannelMap>>,
    pub(crate) runtime: Handle,
    /// The channels' writers, waited for when the bus stops.
    pub(crate) writers: TaskGroup,
}

impl ChannelContext {
    /// The number of the next use of a cache.
    pub(crate) fn next_cache_use(&self) -> u64 {
        self.cache_uses.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of uses so far.
    pub(crate) fn cache_uses(&self) -> u64 {
        self.cache_uses.load(Ordering::Relaxed)
    }

    /// Drops caches while they take more memory than they may. Not to be called under a channel's lock.
    pub(crate) fn relieve_memory(&self) {
        if self.are_caches_over()
            && let Some(channels) = self.channels.get().and_then(Weak::upgrade)
        {
            channels.drop_caches();
        }
    }

    /// True when the caches take more than their share, or when less than an eighth of the total is free. What others ask for
    /// is refused before the total is over its limit. Where there is no log, the caches are the history, which gives no way to
    /// others.
    pub(crate) fn are_caches_over(&self) -> bool {
        let (caches, total) = (self.memory.caches(), self.memory.total());
        // Where the caches have given all they can, others took the rest, and looking at the documents would find nothing.
        let gives = self.log.is_some() && caches.used() > total.limit() / 64;
        caches.is_over() || (gives && total.used() > total.limit() - total.limit() / 8)
    }

    /// The moment from which the publishing of `draft` is timed, if it is: waiting for the log always is, while of what
    /// takes less time than looking at the clock one in [`SAMPLED`] has to do.
    pub(crate) fn timing(&self, draft: &Draft) -> Option<Monotonic> {
        let is_timed = match (draft.kind.class(), &self.log) {
            (DeliveryClass::Ephemeral, _) | (DeliveryClass::Logged, None) => false,
            (DeliveryClass::Sequenced | DeliveryClass::Logged, Some(_)) => true,
            (DeliveryClass::Sequenced, None) => {
                self.counters.sequenced_published.get().is_multiple_of(SAMPLED)
            }
        };
        is_timed.then(|| self.clock.monotonic())
    }

    /// Returns `event` as readers get it now. An event without a time to live asks no clock.
    pub(crate) fn present(&self, event: Arc<Event>) -> Option<Arc<Event>> {
        if event.ttl.is_none() { Some(event) } else { event.at(self.clock.wall()) }
    }
}

impl fmt::Debug for ChannelContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelContext")
            .field("config", &self.config)
            .field("log", &self.log.is_some())
            .finish_non_exhaustive()
    }
}
