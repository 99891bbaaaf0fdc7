//! The parts and values that all channels of a bus share.

use std::fmt;
use std::sync::Arc;

use relay_core::{Clock, Draft, EventLog, Monotonic, Ownership, Sequencer};
use relay_metrics::LatencyWindow;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::config::BusConfig;
use crate::counters::Counters;
use crate::mailbox::Mailboxes;

/// Without a log, of how many durable events the publishing of one is timed.
const SAMPLED: u64 = 64;

pub(crate) struct ChannelContext {
    pub(crate) config: BusConfig,
    pub(crate) log: Option<Arc<dyn EventLog>>,
    /// The stages that each draft passes when it gets its place, in order.
    pub(crate) sequencers: Arc<[Arc<dyn Sequencer>]>,
    pub(crate) ownership: Arc<dyn Ownership>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    /// The times that publishers of durable events wait for their acks.
    pub(crate) publishing: LatencyWindow,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) runtime: Handle,
    /// The channels' writers, waited for when the bus stops.
    pub(crate) writers: TaskTracker,
}

impl ChannelContext {
    /// The moment from which the publishing of `draft` is timed, if it is: waiting for the log always is, while of what
    /// takes less time than looking at the clock one in [`SAMPLED`] has to do.
    pub(crate) fn timing(&self, draft: &Draft) -> Option<Monotonic> {
        let is_timed = !draft.kind.is_ephemeral()
            && (self.log.is_some() || self.counters.durable_published.get().is_multiple_of(SAMPLED));
        is_timed.then(|| self.clock.monotonic())
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
