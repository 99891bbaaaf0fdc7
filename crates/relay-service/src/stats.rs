//! What a service has done and is doing, in numbers.

use std::sync::Arc;
use std::time::Duration;

use relay_bus::{Bus, BusStats};
use relay_core::{Clock, DocumentId, EventLog, LogError};
use relay_log::{EmbeddedLog, LogStats};
use relay_presence::{LockStats, Presence, PresenceStats};
use relay_ws::{WsServer, WsStats};
use serde::{Serialize, Serializer};

use crate::server::{HttpStats, Server};

/// A snapshot of the numbers of all parts. They are read one after the other, not at one instant.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceStats {
    /// Seconds since the service started.
    pub uptime_seconds: f64,
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
    /// The log. `None` when histories are in memory.
    #[serde(serialize_with = "log_stats")]
    pub log: Option<LogStats>,
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
    pub(crate) presence: Presence,
    /// `None` when the service does not listen.
    pub(crate) http: Option<Server>,
    pub(crate) ws: WsServer,
    pub(crate) log: Option<EmbeddedLog>,
    pub(crate) clock: Arc<dyn Clock>,
    /// By the clock's monotonic time.
    pub(crate) started: Duration,
}

impl Gauges {
    pub(crate) fn read(&self) -> ServiceStats {
        ServiceStats {
            uptime_seconds: self.clock.monotonic().saturating_sub(self.started).as_secs_f64(),
            bus: self.bus.stats(),
            presence: self.presence.stats(),
            locks: self.presence.locks().stats(),
            http: self.http.as_ref().map(Server::stats).unwrap_or_default(),
            ws: self.ws.stats(),
            log: self.log.as_ref().map(EmbeddedLog::stats),
        }
    }

    /// Why the log takes nothing, if that is so. A log that failed says so to every question.
    pub(crate) async fn log_error(&self) -> Option<LogError> {
        let log = self.log.as_ref()?;
        let any = DocumentId::new("health").ok()?;
        log.head(&any).await.err()
    }
}
