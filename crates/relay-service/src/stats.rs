//! What a service has done and is doing, in numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use relay_bus::{Bus, BusStats};
use relay_core::{Clock, DocumentId, EventLog, LogError, LogStats, Monotonic};
use relay_log::EmbeddedLog;
use relay_metrics::LatencyStats;
use relay_presence::{LocalPresence, LockStats, PresenceStats};
use relay_router::{Router, RouterStats};
use relay_ws::{WsServer, WsStats};
use serde::{Serialize, Serializer};

use crate::http::outcomes::Outcomes;
use crate::server::{HttpStats, Server};

/// A snapshot of the numbers of all parts. They are read one after the other, not at one instant.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceStats {
    /// Seconds since the service started.
    pub uptime_seconds: f64,
    /// What clients asked for, and how it was answered.
    pub requests: RequestStats,
    /// From a draft's being handed in to its ack; see [`Bus::publish_latency`].
    pub publish_latency: LatencyStats,
    /// From an event's being visible to the members' sockets; see [`WsServer::broadcast_latency`].
    pub broadcast_latency: LatencyStats,
    /// How much waits now, by queue: `log_requests` (appends for the writer), `presence_events` and `lock_changes` (to be
    /// published).
    pub queues: BTreeMap<&'static str, u64>,
    /// What was given up, by reason: `ephemeral_limit` (ephemeral events, too many different ones), `reader_lagged`
    /// (readers, too far behind), `retention` (events, older than what is kept), `presence_event_failed` and
    /// `lock_change_failed` (events that the log did not take).
    pub drops: BTreeMap<&'static str, u64>,
    /// Channels: publishing, subscriptions, replay.
    pub bus: BusStats,
    /// Connections as they are accepted, and HTTP. All 0 when the service does not listen.
    pub http: HttpStats,
    /// Who is where.
    pub presence: PresenceStats,
    /// Locks.
    pub locks: LockStats,
    /// WebSocket connections.
    pub ws: WsStats,
    /// Routing to services. `None` when events are not routed.
    pub router: Option<RouterStats>,
    /// The log. `None` when histories are in memory.
    #[serde(serialize_with = "log_stats")]
    pub log: Option<LogStats>,
}

/// Requests over HTTP that concern documents, and joins, pushes and other requests over WebSocket. A batch over HTTP is one
/// request, which succeeds when each of its events was answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RequestStats {
    /// How many were granted.
    pub successes: u64,
    /// How many were refused, by the `reason` in the answer.
    pub errors: BTreeMap<&'static str, u64>,
    /// The share of those granted, from 0 to 1. `None` before the first.
    pub success_rate: Option<f64>,
}

impl RequestStats {
    fn of(http: &Outcomes, ws: &WsStats) -> Self {
        let successes = http.successes() + ws.joins + ws.pushes + ws.requests;
        let mut errors = http.errors();
        for (reason, count) in &ws.errors {
            *errors.entry(reason).or_default() += count;
        }
        let all = successes + errors.values().sum::<u64>();
        Self { successes, errors, success_rate: (all > 0).then(|| successes as f64 / all as f64) }
    }
}

#[allow(clippy::ref_option, reason = "serde hands the field as it is")]
/// The log's numbers with times in seconds, as everywhere in JSON.
fn log_stats<S: Serializer>(stats: &Option<LogStats>, serializer: S) -> Result<S::Ok, S::Error> {
    let json = stats.as_ref().map(|log| {
        serde_json::json!({
            "appends": log.appends,
            "appended_events": log.appended_events,
            "appended_bytes": log.appended_bytes,
            "conflicts": log.conflicts,
            "overloads": log.overloads,
            "commits": log.commits,
            "largest_group": log.largest_group,
            "commit_seconds": log.commit_time.as_secs_f64(),
            "longest_commit_seconds": log.longest_commit.as_secs_f64(),
            "dropped_events": log.dropped_events,
            "retention_failures": log.retention_failures,
            "queued_requests": log.queued_requests,
            "queued_bytes": log.queued_bytes,
            "disk_bytes": log.disk_bytes,
        })
    });
    json.serialize(serializer)
}

/// Where the numbers come from.
#[derive(Clone)]
pub(crate) struct Gauges {
    pub(crate) bus: Bus,
    pub(crate) presence: LocalPresence,
    /// `None` when the service does not listen.
    pub(crate) http: Option<Server>,
    pub(crate) outcomes: Arc<Outcomes>,
    pub(crate) ws: WsServer,
    /// `None` when events are not routed.
    pub(crate) router: Option<Router>,
    pub(crate) log: Option<EmbeddedLog>,
    pub(crate) clock: Arc<dyn Clock>,
    /// By the clock's monotonic time.
    pub(crate) started: Monotonic,
}

impl Gauges {
    pub(crate) fn read(&self) -> ServiceStats {
        let (bus, ws, log) = (self.bus.stats(), self.ws.stats(), self.log.as_ref().map(EmbeddedLog::stats));
        let (presence, locks) = (self.presence.stats(), self.presence.locks().stats());
        ServiceStats {
            uptime_seconds: self.clock.monotonic().since(self.started).as_secs_f64(),
            requests: RequestStats::of(&self.outcomes, &ws),
            publish_latency: self.bus.publish_latency(),
            broadcast_latency: self.ws.broadcast_latency(),
            queues: BTreeMap::from([
                ("log_requests", log.as_ref().map_or(0, |log| log.queued_requests)),
                ("presence_events", presence.waiting_events as u64),
                ("lock_changes", locks.pending_changes as u64),
            ]),
            drops: BTreeMap::from([
                ("ephemeral_limit", bus.ephemeral_dropped),
                ("reader_lagged", bus.readers_lagged),
                ("retention", log.as_ref().map_or(0, |log| log.dropped_events)),
                ("presence_event_failed", presence.failed),
                ("lock_change_failed", locks.failed_changes),
            ]),
            bus,
            presence,
            locks,
            http: self.http.as_ref().map(Server::stats).unwrap_or_default(),
            ws,
            router: self.router.as_ref().map(Router::stats),
            log,
        }
    }

    /// Why the log takes nothing, if that is so. A log that failed says so to every question.
    pub(crate) async fn log_error(&self) -> Option<LogError> {
        let log = self.log.as_ref()?;
        let any = DocumentId::new("health").ok()?;
        log.head(&any).await.err()
    }
}
