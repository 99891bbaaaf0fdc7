//! The numbers of a server, of a shard, of one connection, and of the members of a document.

use std::sync::atomic::{AtomicUsize, Ordering};

use relay_core::{ConnectionId, DocumentId, UserId};
use relay_metrics::{Counter, CounterMap};
use serde::Serialize;

relay_metrics::counters! {
    /// The live counters of a server or of one shard.
    pub(crate) struct Counters;

    /// A snapshot of a server's counters. All but the `…_open` fields only grow while the server lives. The values are not
    /// of one moment.
    pub struct WsStats {
        gauges: {
            /// Connections that are open now.
            connections_open: u64,
            /// Documents that at least one connection has joined now.
            rooms_open: u64,
        }
        counters: {
            /// Connections opened.
            connections: Counter,
            /// Upgrades refused, by reason: `bad_request`, `origin`, `too_many_connections`,
            /// `too_many_connections_from_address`, `too_fast`, `closed`.
            refused: CounterMap<&'static str>,
            /// Connections that the server closed, by close code.
            closed: CounterMap<u16>,
            /// Connections that the client closed.
            closed_by_client: Counter,
            /// Connections that ended without a close message.
            lost: Counter,
            /// Connections and rooms that ended because of a defect in the server.
            panicked: Counter,
            /// WebSocket messages received.
            messages_in: Counter,
            /// WebSocket messages sent.
            messages_out: Counter,
            /// Bytes received, with the frames' headers.
            bytes_in: Counter,
            /// Bytes sent, with the frames' headers.
            bytes_out: Counter,
            /// Heartbeats answered.
            heartbeats: Counter,
            /// Joins that succeeded.
            joins: Counter,
            /// Pushes that became events.
            pushes: Counter,
            /// Commands that succeeded, for instance `presence:update`.
            requests: Counter,
            /// Events sent to members, one for each member.
            deliveries: Counter,
            /// Batches of events for which a member's socket was full, so that the member went on at its own pace.
            slow: Counter,
            /// Error replies, by the reason in them.
            errors: CounterMap<&'static str>,
            /// Channels that ended by a failure, by the reason in their last message, for instance `lagged`.
            channel_errors: CounterMap<&'static str>,
        }
    }
}

/// The gauges of one shard, as it set them last.
#[derive(Debug, Default)]
pub(crate) struct ShardGauges {
    connections: AtomicUsize,
    rooms: AtomicUsize,
}

impl ShardGauges {
    /// Sets the numbers of open connections and rooms.
    pub(crate) fn set(&self, connections: usize, rooms: usize) {
        self.connections.store(connections, Ordering::Relaxed);
        self.rooms.store(rooms, Ordering::Relaxed);
    }

    /// A snapshot of `counters` with these gauges.
    pub(crate) fn snapshot(&self, counters: &Counters) -> WsStats {
        let [connections, rooms] =
            [&self.connections, &self.rooms].map(|gauge| gauge.load(Ordering::Relaxed));
        counters.snapshot(connections as u64, rooms as u64)
    }
}

/// The numbers of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShardStats {
    /// The index of the shard, from 0.
    pub shard: usize,
    /// The numbers of its connections. `rooms_open` counts the rooms of the shard. A document has a room on
    /// each shard with members, and there a second one for members that take no part in presence.
    #[serde(flatten)]
    pub stats: WsStats,
}

impl ShardStats {
    pub(crate) fn new(shard: usize, stats: WsStats) -> Self {
        Self { shard, stats }
    }
}

/// The numbers of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// The connection.
    pub connection: ConnectionId,
    /// The connection's user.
    pub user: UserId,
    /// The index of its shard, from 0.
    pub shard: usize,
    /// The documents that it has joined.
    pub documents: Vec<DocumentId>,
    /// WebSocket messages received.
    pub messages_in: u64,
    /// WebSocket messages sent.
    pub messages_out: u64,
    /// Bytes received, with the frames' headers.
    pub bytes_in: u64,
    /// Bytes that its socket has taken, with the frames' headers.
    pub bytes_out: u64,
    /// Bytes that wait for its socket.
    pub bytes_waiting: u64,
    /// Batches of events for which its socket was full.
    pub slow: u64,
}

/// A connection that has joined a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Member {
    /// The connection.
    pub connection: ConnectionId,
    /// The connection's user.
    pub user: UserId,
}

/// The number of connections that have joined a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RoomStats {
    /// The document.
    pub document: DocumentId,
    /// Connections that have joined it.
    pub connections: usize,
}
