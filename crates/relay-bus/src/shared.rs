//! What all channels of a bus have in common.

use std::fmt;
use std::sync::Arc;

use relay_core::{Clock, Draft, EventLog, PlacementGuard, PublishError};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::config::BusConfig;
use crate::counters::Counters;
use crate::mailbox::Mailboxes;

pub(crate) struct Shared {
    pub(crate) config: BusConfig,
    pub(crate) log: Option<Arc<dyn EventLog>>,
    pub(crate) guard: Option<Arc<dyn PlacementGuard>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) runtime: Handle,
    /// The channels' writers, waited for when the bus stops.
    pub(crate) writers: TaskTracker,
}

impl Shared {
    /// Whether `draft` may have its place now.
    pub(crate) fn check(&self, draft: &Draft) -> Result<(), PublishError> {
        self.guard.as_ref().map_or(Ok(()), |guard| guard.check(draft))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .field("log", &self.log.is_some())
            .finish_non_exhaustive()
    }
}
