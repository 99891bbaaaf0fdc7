//! [`ServiceStats`]: the counters and gauges of a service in one snapshot.

use std::collections::BTreeMap;

use relay_bus::BusStats;
use relay_core::{LogStats, MemoryBudget, MemoryPurpose, ShareKind};
use relay_metrics::LatencyStats;
use relay_presence::{LockStats, PresenceStats};
use relay_router::RouterStats;
use relay_tasks::{TaskName, TaskStats};
use relay_ws::WsStats;
use serde::{Serialize, Serializer};

use crate::outcomes::RequestOutcomes;
use crate::server::HttpStats;

/// A snapshot of the numbers of all parts. They are read one after the other, not at one instant.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceStats {
    /// Seconds since the service started.
    pub uptime_seconds: f64,
    /// Clients' requests, by how they were answered.
    pub requests: RequestStats,
    /// The time from handing in a draft to its acknowledgement; see
    /// [`Bus::publish_latency`](relay_bus::Bus::publish_latency).
    pub publish_latency: LatencyStats,
    /// The time from an event's becoming visible to the members' sockets; see
    /// [`WsServer::broadcast_latency`](relay_ws::WsServer::broadcast_latency).
    pub broadcast_latency: LatencyStats,
    /// The lengths of queues now: `log_requests` (appends for the log's writer), `presence_events` and `lock_changes`
    /// (events to be published).
    pub queues: BTreeMap<&'static str, u64>,
    /// Counts of dropped items, by reason: `ephemeral_limit` (ephemeral events, too many different ones or too many bytes),
    /// `logged_limit` (logged events, a handler's mailbox was full), `reader_lagged` (readers, too far behind), `retention`
    /// (sequenced events, beyond the limits of their history), `retention_held` (those of them that services still waited
    /// for), `logged_retention` (logged events, beyond their own limits), `presence_event_failed` and `lock_change_failed`
    /// (events that the log did not take), `log_line` (lines of the program's log, its output did not take them).
    pub drops: BTreeMap<&'static str, u64>,
    /// The memory that clients and services make the server hold.
    pub memory: MemoryStats,
    /// Tasks and threads, by their names.
    pub tasks: BTreeMap<TaskName, TaskStats>,
    /// Channels: publishing, subscriptions, replay.
    pub bus: BusStats,
    /// Accepted connections, and HTTP. All 0 when the service does not listen.
    pub http: HttpStats,
    /// Presence and sessions.
    pub presence: PresenceStats,
    /// Locks.
    pub locks: LockStats,
    /// WebSocket connections.
    pub ws: WsStats,
    /// Routing to services. `None` when events are not routed.
    pub router: Option<RouterStats>,
    /// The log. `None` when histories are in memory.
    #[serde(serialize_with = "serialize_log")]
    pub log: Option<LogStats>,
}

/// The memory that clients and services make the server hold, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// The bytes that are held now, by purpose.
    pub held_bytes: BTreeMap<&'static str, u64>,
    /// The limit of their sum.
    pub limit_bytes: u64,
    /// The refusals of bytes, by the kind of the share that was used up.
    pub refused: BTreeMap<&'static str, u64>,
    /// Caches of documents that were dropped because all together took too much.
    pub dropped_caches: u64,
}

impl MemoryStats {
    pub(crate) fn new(memory: &MemoryBudget, dropped_caches: u64) -> Self {
        let held = |purpose: &MemoryPurpose| (purpose.as_str(), memory.held(*purpose) as u64);
        let refused = |kind: &ShareKind| (kind.as_str(), memory.refusals(*kind));
        Self {
            held_bytes: MemoryPurpose::ALL.iter().map(held).collect(),
            limit_bytes: memory.total().limit() as u64,
            // A cache refuses nothing: it drops what it has.
            refused: ShareKind::ALL.iter().filter(|kind| **kind != ShareKind::Caches).map(refused).collect(),
            dropped_caches,
        }
    }
}

/// Requests over HTTP that concern documents, and joins, pushes and other requests over WebSocket. A batch over HTTP is one
/// request, which succeeds when each of its events was answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RequestStats {
    /// Requests that were granted.
    pub successes: u64,
    /// Requests that were refused, by the `reason` in the answer.
    pub errors: BTreeMap<&'static str, u64>,
    /// The share of those granted, from 0 to 1. `None` before the first.
    pub success_rate: Option<f64>,
}

impl RequestStats {
    pub(crate) fn new(http: &RequestOutcomes, ws: &WsStats) -> Self {
        let successes = http.successes() + ws.joins + ws.pushes + ws.requests;
        let mut errors = http.errors();
        for (reason, count) in &ws.errors {
            *errors.entry(reason).or_default() += count;
        }
        let all = successes + errors.values().sum::<u64>();
        Self { successes, errors, success_rate: (all > 0).then(|| successes as f64 / all as f64) }
    }
}

/// Serialises the log's numbers with times in seconds, as everywhere in JSON.
#[allow(clippy::ref_option, reason = "serde hands the field as it is")]
fn serialize_log<S: Serializer>(stats: &Option<LogStats>, serializer: S) -> Result<S::Ok, S::Error> {
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
            "dropped_held_events": log.dropped_held_events,
            "dropped_logged_events": log.dropped_logged_events,
            "retention_failures": log.retention_failures,
            "lost_events": log.lost_events,
            "logged_bytes": log.logged_bytes,
            "queued_requests": log.queued_requests,
            "queued_bytes": log.queued_bytes,
            "disk_bytes": log.disk_bytes,
        })
    });
    json.serialize(serializer)
}
