//! [`Components`]: the running parts of a service, as one value that the service and its HTTP side share.

use std::collections::BTreeMap;
use std::sync::Arc;

use relay_bus::Bus;
use relay_core::{Clock, DocumentId, EventLog, LogError, MemoryBudget, Monotonic};
use relay_presence::LocalPresence;
use relay_router::{Router, VerifiedSink};
use relay_tasks::Supervisor;
use relay_ws::WsServer;

use crate::config::DroppedLogLines;
use crate::outcomes::RequestOutcomes;
use crate::server::Server;
use crate::stats::{MemoryStats, RequestStats, ServiceStats};

/// The running parts of a service. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Components {
    pub(crate) bus: Bus,
    /// The bus, for drafts whose publisher may be a service: its causes are verified.
    pub(crate) verified_sink: VerifiedSink,
    pub(crate) presence: LocalPresence,
    /// `None` when the service does not listen.
    pub(crate) http: Option<Server>,
    pub(crate) outcomes: Arc<RequestOutcomes>,
    pub(crate) ws: WsServer,
    /// `None` when events are not routed.
    pub(crate) router: Option<Router>,
    /// `None` when histories are in memory.
    pub(crate) log: Option<Arc<dyn EventLog>>,
    pub(crate) memory: MemoryBudget,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) dropped_log_lines: DroppedLogLines,
    pub(crate) supervisor: Supervisor,
    /// The moment at which the service started.
    pub(crate) started: Monotonic,
}

impl Components {
    /// Reads the numbers of all parts.
    pub(crate) fn stats(&self) -> ServiceStats {
        let (bus, ws, log) = (self.bus.stats(), self.ws.stats(), self.log.as_ref().map(|log| log.stats()));
        let (presence, locks) = (self.presence.stats(), self.presence.locks().stats());
        ServiceStats {
            uptime_seconds: self.clock.monotonic().since(self.started).as_secs_f64(),
            requests: RequestStats::new(&self.outcomes, &ws),
            publish_latency: self.bus.publish_latency(),
            broadcast_latency: self.ws.broadcast_latency(),
            queues: BTreeMap::from([
                ("log_requests", log.as_ref().map_or(0, |log| log.queued_requests)),
                ("presence_events", presence.waiting_events as u64),
                ("lock_changes", locks.pending_changes as u64),
            ]),
            drops: BTreeMap::from([
                ("ephemeral_limit", bus.ephemeral_dropped),
                ("logged_limit", bus.logged_dropped),
                ("reader_lagged", bus.readers_lagged),
                ("retention", log.as_ref().map_or(0, |log| log.dropped_events)),
                ("retention_held", log.as_ref().map_or(0, |log| log.dropped_held_events)),
                ("logged_retention", log.as_ref().map_or(0, |log| log.dropped_logged_events)),
                ("presence_event_failed", presence.failed),
                ("lock_change_failed", locks.failed_changes),
                ("log_line", self.dropped_log_lines.get()),
            ]),
            memory: MemoryStats::new(&self.memory, bus.caches_dropped),
            tasks: self.supervisor.stats(),
            bus,
            presence,
            locks,
            http: self.http.as_ref().map(Server::stats).unwrap_or_default(),
            ws,
            router: self.router.as_ref().map(Router::stats),
            log,
        }
    }

    /// Returns the error of a log that takes no events. A log that failed answers every question with its error.
    pub(crate) async fn log_error(&self) -> Option<LogError> {
        let log = self.log.as_ref()?;
        let any = DocumentId::new("health").ok()?;
        log.head(&any).await.err()
    }
}
