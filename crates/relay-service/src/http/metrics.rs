//! `GET /metrics`: the numbers of [`ServiceStats`] in the text format of Prometheus.
//!
//! Every scrape takes one snapshot, the same as `GET /v1/stats`. The values of labels are bounded: kinds by the bus, all others
//! by the program.

mod exposition;

use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use relay_bus::BusStats;
use relay_core::LogStats;
use relay_events::ServiceState;
use relay_presence::{LockStats, PresenceStats};
use relay_router::{RouterStats, TargetStats};
use relay_ws::WsStats;

use self::exposition::Exposition;
use super::api::Api;
use crate::server::HttpStats;
use crate::stats::{MemoryStats, ServiceStats};

/// Version 0.0.4, which every Prometheus reads.
const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    ([(CONTENT_TYPE, MEDIA_TYPE)], render(&api.stats()))
}

fn render(stats: &ServiceStats) -> String {
    let mut page = Exposition::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.gauge("relay_build_info", "The server's version, in a label; always 1.").labelled(&version, 1);
    page.gauge("relay_uptime_seconds", "Time since the service started.").value(stats.uptime_seconds);
    requests(&mut page, stats);
    memory(&mut page, &stats.memory);
    bus(&mut page, &stats.bus);
    page.summary(
        "relay_publish_duration_seconds",
        "Time from accepting a draft that is not ephemeral to its receipt. Quantiles cover the last minute. Without a log one draft in 64 is measured.",
        &stats.publish_latency,
    );
    page.summary(
        "relay_broadcast_duration_seconds",
        "Time from an event's visibility until it is written to all members of a room, once for each batch of events. Quantiles cover the last minute.",
        &stats.broadcast_latency,
    );
    tasks(&mut page, stats);
    presence(&mut page, &stats.presence, &stats.locks);
    websocket(&mut page, &stats.ws);
    http(&mut page, &stats.http);
    if let Some(log) = &stats.log {
        self::log(&mut page, log);
    }
    queues(&mut page, stats);
    if let Some(router) = &stats.router {
        self::router(&mut page, router);
    }
    page.into_text()
}

fn requests(page: &mut Exposition, stats: &ServiceStats) {
    page.counter("relay_requests_succeeded_total", "Requests over HTTP and WebSocket that were granted.")
        .value(stats.requests.successes);
    let mut errors = page.counter(
        "relay_request_errors_total",
        "Requests over HTTP and WebSocket that were refused, by the reason in the answer.",
    );
    for (reason, count) in &stats.requests.errors {
        errors.labelled(&[("reason", reason)], count);
    }
}

fn memory(page: &mut Exposition, memory: &MemoryStats) {
    let mut held = page.gauge(
        "relay_memory_held_bytes",
        "Bytes that the server holds for clients and services now, by purpose.",
    );
    for (purpose, bytes) in &memory.held_bytes {
        held.labelled(&[("purpose", purpose)], bytes);
    }
    page.gauge("relay_memory_limit_bytes", "Limit of the sum of these bytes.").value(memory.limit_bytes);
    let mut refused = page.counter(
        "relay_memory_refused_total",
        "Refusals because a share of this memory was used up, by the kind of the share.",
    );
    for (share, count) in &memory.refused {
        refused.labelled(&[("share", share)], count);
    }
    page.counter(
        "relay_memory_dropped_caches_total",
        "Caches of documents that were dropped because all together took too much memory.",
    )
    .value(memory.dropped_caches);
}

fn bus(page: &mut Exposition, bus: &BusStats) {
    let mut events = page.counter(
        "relay_events_total",
        "Events published, by kind. Kinds that begin with x- beyond the first 32 count together as x-other.",
    );
    for (kind, count) in &bus.by_kind {
        events.labelled(&[("kind", kind)], count);
    }
    page.counter("relay_publish_duplicates_total", "Drafts that were recognised as duplicates.")
        .value(bus.duplicates);
    page.counter(
        "relay_publish_waited_total",
        "Drafts that waited for their document: for its queue, or for most of its readers.",
    )
    .value(bus.drafts_waited);
    let mut refused =
        page.counter("relay_publish_refused_total", "Drafts that the channels refused, by reason.");
    for (reason, count) in [
        ("too_large", bus.refused_too_large),
        ("overloaded", bus.refused_overloaded),
        ("id_conflict", bus.refused_id_conflict),
        ("too_many_documents", bus.refused_too_many_documents),
        ("closed", bus.refused_closed),
        ("log_failed", bus.refused_log_failed),
        ("not_owner", bus.refused_not_owner),
        ("locked", bus.refused_by_guard),
    ] {
        refused.labelled(&[("reason", reason)], count);
    }
    page.gauge("relay_channels", "Documents in memory now.").value(bus.open_channels);
    page.gauge(
        "relay_channel_places",
        "Documents in memory now that have events, and with them a place among bus.max_channels.",
    )
    .value(bus.channel_places);
    page.counter("relay_channels_opened_total", "Documents that were loaded into memory.")
        .value(bus.channels_opened);
    page.counter("relay_channels_evicted_total", "Idle documents that were evicted from memory.")
        .value(bus.channels_evicted);
    page.counter("relay_subscriptions_total", "Subscriptions that began.").value(bus.subscribed);
    page.counter(
        "relay_replay_pages_total",
        "Pages of history read from the log for readers that were behind.",
    )
    .value(bus.replay_pages);
    let mut calls = page.counter("relay_handler_calls_total", "Calls of in-process handlers, by outcome.");
    for (outcome, count) in [
        ("success", bus.handler_successes),
        ("error", bus.handler_errors),
        ("timeout", bus.handler_timeouts),
        ("panic", bus.handler_panics),
    ] {
        calls.labelled(&[("outcome", outcome)], count);
    }
}

fn tasks(page: &mut Exposition, stats: &ServiceStats) {
    let mut running = page.gauge("relay_tasks_running", "Tasks and threads that run now, by their names.");
    for (name, task) in &stats.tasks {
        running.labelled(&[("task", name.as_str())], task.running);
    }
    let mut panicked =
        page.counter("relay_task_panics_total", "Tasks and threads that ended by a panic, by their names.");
    for (name, task) in &stats.tasks {
        panicked.labelled(&[("task", name.as_str())], task.panicked);
    }
}

fn presence(page: &mut Exposition, presence: &PresenceStats, locks: &LockStats) {
    page.gauge("relay_sessions", "Documents that have a session now.").value(presence.sessions);
    page.counter("relay_sessions_started_total", "Sessions that began.").value(presence.sessions_started);
    page.counter("relay_sessions_ended_total", "Sessions that ended.").value(presence.sessions_ended);
    page.gauge("relay_users", "Users that are present now, counted in each document.").value(presence.users);
    page.gauge(
        "relay_participants",
        "Connections that take part in a document now, counted in each document.",
    )
    .value(presence.connections);
    page.counter("relay_participants_joined_total", "Connections that joined a document.")
        .value(presence.joins);
    page.counter("relay_participants_left_total", "Connections that left a document.").value(presence.leaves);
    page.counter("relay_participants_returned_total", "Connections that came back within the grace time.")
        .value(presence.returns);
    page.counter("relay_presence_updates_total", "Changes of participants' states.").value(presence.updates);
    page.counter("relay_locks_granted_total", "Locks granted.").value(locks.granted);
    page.counter("relay_locks_renewed_total", "Leases of locks that were prolonged.").value(locks.renewed);
    page.counter("relay_locks_ended_total", "Locks that ended, for any reason.").value(locks.ended);
    page.counter("relay_locks_refused_total", "Requests for locks that were refused.").value(locks.refused);
}

fn websocket(page: &mut Exposition, ws: &WsStats) {
    page.gauge("relay_websocket_connections", "WebSocket connections that are open now.")
        .value(ws.connections_open);
    page.counter("relay_websocket_connections_opened_total", "WebSocket connections that were ever opened.")
        .value(ws.connections);
    let mut ended = page.counter(
        "relay_websocket_connections_ended_total",
        "WebSocket connections that ended: closed by the server or the client, lost, or by a bug.",
    );
    for (how, count) in [
        ("server", ws.closed.values().sum()),
        ("client", ws.closed_by_client),
        ("lost", ws.lost),
        ("panic", ws.panicked),
    ] {
        ended.labelled(&[("how", how)], count);
    }
    let mut refused = page.counter(
        "relay_websocket_upgrades_refused_total",
        "Upgrades to WebSocket that were refused, by reason.",
    );
    for (reason, count) in &ws.refused {
        refused.labelled(&[("reason", reason)], count);
    }
    page.gauge("relay_websocket_rooms", "Documents that at least one WebSocket connection has joined now.")
        .value(ws.rooms_open);
    page.counter("relay_websocket_received_messages_total", "WebSocket messages that were received.")
        .value(ws.messages_in);
    page.counter("relay_websocket_sent_messages_total", "WebSocket messages that were sent.")
        .value(ws.messages_out);
    page.counter(
        "relay_websocket_received_bytes_total",
        "Bytes that WebSocket connections received, framing included.",
    )
    .value(ws.bytes_in);
    page.counter(
        "relay_websocket_sent_bytes_total",
        "Bytes that WebSocket connections sent, framing included.",
    )
    .value(ws.bytes_out);
    page.counter(
        "relay_websocket_deliveries_total",
        "Events that were sent to members, counted for each member.",
    )
    .value(ws.deliveries);
    page.counter(
        "relay_websocket_slow_members_total",
        "Batches of events that found a member's socket full.",
    )
    .value(ws.slow);
}

fn http(page: &mut Exposition, http: &HttpStats) {
    page.gauge("relay_http_connections", "HTTP connections that are open now, event streams included.")
        .value(http.connections_open);
    page.counter(
        "relay_http_connections_accepted_total",
        "Connections that were ever accepted, refused ones included.",
    )
    .value(http.connections);
    let mut refused =
        page.counter("relay_http_connections_refused_total", "Connections that were refused, by reason.");
    for (reason, count) in [
        ("too_many_connections", http.refused.too_many_connections),
        ("too_many_connections_from_address", http.refused.too_many_connections_from_address),
    ] {
        refused.labelled(&[("reason", reason)], count);
    }
}

fn log(page: &mut Exposition, log: &LogStats) {
    page.counter("relay_log_commits_total", "Writes of the log to the disk.").value(log.commits);
    page.counter("relay_log_commit_seconds_total", "Total time of the log's writes to the disk.")
        .value(log.commit_time.as_secs_f64());
    page.counter("relay_log_appended_events_total", "Events that were appended to the log.")
        .value(log.appended_events);
    page.counter("relay_log_appended_bytes_total", "Bytes of the events that were appended to the log.")
        .value(log.appended_bytes);
    page.counter("relay_log_conflicts_total", "Appends that did not follow their document's head.")
        .value(log.conflicts);
    page.counter(
        "relay_log_lost_events_total",
        "Kept events that readers could not be given, since they cannot be read; each counts once.",
    )
    .value(log.lost_events);
    page.counter(
        "relay_log_retention_failures_total",
        "Documents that retention could not cut back, since a record is damaged.",
    )
    .value(log.retention_failures);
    page.gauge("relay_log_logged_bytes", "Bytes of the logged events that are kept now.")
        .value(log.logged_bytes);
    page.gauge("relay_log_disk_bytes", "Bytes that the log takes on the disk.").value(log.disk_bytes);
    page.gauge("relay_log_queued_bytes", "Bytes of events that wait to be written.").value(log.queued_bytes);
}

/// Routing to services.
fn router(page: &mut Exposition, router: &RouterStats) {
    let mut decisions = page.counter(
        "relay_router_decisions_total",
        "Decisions about events, by outcome: each attempt at a delivery, and each reason for making none.",
    );
    for (outcome, count) in &router.decisions {
        decisions.labelled(&[("outcome", outcome)], count);
    }
    page.summary(
        "relay_router_routing_duration_seconds",
        "Time from an event's place in its document to its entry in a queue. Quantiles cover the last minute.",
        &router.routing_latency,
    );
    page.gauge("relay_router_behind_events", "Events of the log that are not yet routed.")
        .value(router.behind);
    page.gauge(
        "relay_router_queued_bytes",
        "Bytes that waiting events take in memory beside their content, over all routes; limited by `router.queue_bytes`.",
    )
    .value(router.queued_bytes);
    let mut rules = page.counter("relay_router_matches_total", "Events that matched, by rule.");
    for (rule, count) in &router.rules {
        rules.labelled(&[("rule", rule)], count);
    }
    let mut log = page.counter(
        "relay_router_decision_log_total",
        "Decisions that the decision log kept, left out of its sample, dropped, or could not write.",
    );
    let kept = &router.decision_log;
    for (what, count) in [
        ("kept", kept.kept),
        ("unsampled", kept.unsampled),
        ("dropped", kept.dropped),
        ("unwritten", kept.unwritten),
    ] {
        log.labelled(&[("result", what)], count);
    }
    targets(page, router);
}

/// The targets, each family with a sample for each of them.
fn targets(page: &mut Exposition, router: &RouterStats) {
    type Counter = fn(&TargetStats) -> u64;
    type Gauge = fn(&TargetStats) -> f64;
    let counters: [(&'static str, &str, Counter); 8] = [
        ("relay_target_deliveries_total", "Events that were delivered to a target.", |target| {
            target.delivered
        }),
        ("relay_target_retries_total", "Failed attempts after which an event is tried again.", |target| {
            target.retries
        }),
        ("relay_target_failures_total", "Failed attempts, final ones included.", |target| target.failures),
        ("relay_target_fallbacks_total", "Attempts at a target as the fallback for others.", |target| {
            target.fallbacks
        }),
        ("relay_target_dead_lettered_total", "Events that became dead letters.", |target| {
            target.dead_lettered
        }),
        (
            "relay_target_dead_letters_dropped_total",
            "Dead letters that were dropped in favour of newer ones, since the router's store was made.",
            |target| target.dead_letters_dropped,
        ),
        ("relay_target_expired_total", "Events that expired before they were delivered.", |target| {
            target.expired
        }),
        (
            "relay_target_lost_total",
            "Events that a rule selected and the target never gets, since the router's store was made.",
            |target| target.lost,
        ),
    ];
    for (name, help, value) in counters {
        let mut family = page.counter(name, help);
        for (target, stats) in &router.targets {
            family.labelled(&[("target", target)], value(stats));
        }
    }
    let gauges: [(&'static str, &str, Gauge); 5] = [
        ("relay_target_dead_letters", "Dead letters that are kept now.", |target| target.dead_letters as f64),
        (
            "relay_target_queued_events",
            "Events that wait in the routes to a target, in memory and on disk.",
            |target| target.queued as f64,
        ),
        ("relay_target_requests_in_flight", "Requests to a target that are in flight.", |target| {
            target.in_flight as f64
        }),
        (
            "relay_target_lag_events",
            "Events that a target may still get, those that are not yet routed included.",
            |target| target.lag_events as f64,
        ),
        ("relay_target_lag_seconds", "Age of the oldest event that waits for a target.", |target| {
            target.lag_seconds
        }),
    ];
    for (name, help, value) in gauges {
        let mut family = page.gauge(name, help);
        for (target, stats) in &router.targets {
            family.labelled(&[("target", target)], value(stats));
        }
    }
    let mut states = page
        .gauge("relay_target_state", "Health of a target: 1 for the state that it is in, 0 for the others.");
    for (target, stats) in &router.targets {
        for (name, state) in STATES {
            states.labelled(&[("target", target), ("state", name)], u8::from(stats.state == state));
        }
    }
    let latencies = router.targets.iter().map(|(target, stats)| (&**target, &stats.latency));
    page.summaries(
        "relay_target_delivery_duration_seconds",
        "Duration of the requests that a target answered with success. Quantiles cover the last minute.",
        "target",
        latencies,
    );
}

const STATES: [(&str, ServiceState); 6] = [
    ("unknown", ServiceState::Unknown),
    ("healthy", ServiceState::Healthy),
    ("degraded", ServiceState::Degraded),
    ("unhealthy", ServiceState::Unhealthy),
    ("draining", ServiceState::Draining),
    ("gone", ServiceState::Gone),
];

fn queues(page: &mut Exposition, stats: &ServiceStats) {
    let mut depth = page.gauge("relay_queue_depth", "Entries that wait now, by queue.");
    for (queue, count) in &stats.queues {
        depth.labelled(&[("queue", queue)], count);
    }
    let mut drops = page.counter("relay_dropped_total", "Items that were dropped at a limit, by reason.");
    for (reason, count) in &stats.drops {
        drops.labelled(&[("reason", reason)], count);
    }
}
