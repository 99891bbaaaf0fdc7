//! The numbers of a server: of all connections together, of a shard, of one connection, and of a document's members.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use relay_core::{ConnectionId, DocumentId, UserId};
use serde::Serialize;

/// A snapshot of a server's counters. All but the `…_open` fields only grow while the server lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WsStats {
    /// Connections that are open now.
    pub connections_open: u64,
    /// Documents that at least one connection has joined now.
    pub rooms_open: u64,
    /// Connections that were ever opened.
    pub connections: u64,
    /// Upgrades that were refused, by reason: `bad_request`, `origin`, `too_many_connections`, `closed`.
    pub refused: BTreeMap<&'static str, u64>,
    /// Connections that this side closed, by close code.
    pub closed: BTreeMap<u16, u64>,
    /// Connections that the client closed.
    pub closed_by_client: u64,
    /// Connections that ended without a close.
    pub lost: u64,
    /// Connections that ended because of a bug in this server.
    pub panicked: u64,
    /// WebSocket messages that came in.
    pub messages_in: u64,
    /// WebSocket messages that went out.
    pub messages_out: u64,
    /// Bytes that came in, framing included.
    pub bytes_in: u64,
    /// Bytes that went out, framing included.
    pub bytes_out: u64,
    /// Heartbeats that were answered.
    pub heartbeats: u64,
    /// Joins that succeeded.
    pub joins: u64,
    /// Pushes that became events.
    pub pushes: u64,
    /// Requests besides joins and pushes that were granted, for instance `presence:update`.
    pub requests: u64,
    /// Events that were sent to members.
    pub deliveries: u64,
    /// Batches of events for which a member's socket was full, so that the member went on at its own pace.
    pub slow: u64,
    /// Messages that came for a channel that was closed already.
    pub stale_messages: u64,
    /// Error replies, by the reason in them.
    pub errors: BTreeMap<&'static str, u64>,
    /// Channels that ended by a failure, by the reason that the client was told, for instance `lagged`.
    pub channel_errors: BTreeMap<&'static str, u64>,
}

impl WsStats {
    /// These numbers and those of `other` together.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        fn add<K: Ord>(to: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
            for (key, count) in from {
                *to.entry(key).or_default() += count;
            }
        }
        self.connections_open += other.connections_open;
        self.rooms_open += other.rooms_open;
        self.connections += other.connections;
        add(&mut self.refused, other.refused);
        add(&mut self.closed, other.closed);
        self.closed_by_client += other.closed_by_client;
        self.lost += other.lost;
        self.panicked += other.panicked;
        self.messages_in += other.messages_in;
        self.messages_out += other.messages_out;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.heartbeats += other.heartbeats;
        self.joins += other.joins;
        self.pushes += other.pushes;
        self.requests += other.requests;
        self.deliveries += other.deliveries;
        self.slow += other.slow;
        self.stale_messages += other.stale_messages;
        add(&mut self.errors, other.errors);
        add(&mut self.channel_errors, other.channel_errors);
        self
    }
}

/// The numbers of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShardStats {
    /// The shard, from 0.
    pub shard: usize,
    /// The numbers of its connections. `rooms_open` counts the rooms of this shard. A document with members on several shards
    /// has a room on each of them, and one more where some of its members take no part in presence.
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
    /// The shard that it lives on, from 0.
    pub shard: usize,
    /// The documents that it has joined.
    pub documents: Vec<DocumentId>,
    /// Messages that came in.
    pub messages_in: u64,
    /// Messages that went out.
    pub messages_out: u64,
    /// Bytes that came in, framing included.
    pub bytes_in: u64,
    /// Bytes that its socket has taken, framing included.
    pub bytes_out: u64,
    /// Bytes that wait for its socket.
    pub bytes_waiting: u64,
    /// Batches of events for which its socket was full.
    pub slow: u64,
}

/// A connection that has joined a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The connection.
    pub connection: ConnectionId,
    /// The connection's user.
    pub user: UserId,
}

/// The number of connections that have joined a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoomStats {
    /// The document.
    pub document: DocumentId,
    /// Connections that have joined it.
    pub connections: usize,
}

/// A counter, or a gauge that is set.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn set(&self, to: u64) {
        self.0.store(to, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by a key of a small fixed set. It has a lock: nothing on the hot path uses it.
#[derive(Debug)]
pub(crate) struct Tally<K>(Mutex<BTreeMap<K, u64>>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<K: Ord + Copy> Tally<K> {
    pub(crate) fn increment(&self, key: K) {
        *self.0.lock().entry(key).or_default() += 1;
    }

    fn get(&self) -> BTreeMap<K, u64> {
        self.0.lock().clone()
    }
}

/// The counters behind [`WsStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections_open: Counter,
    pub(crate) rooms_open: Counter,
    pub(crate) connections: Counter,
    pub(crate) refused: Tally<&'static str>,
    pub(crate) closed: Tally<u16>,
    pub(crate) closed_by_client: Counter,
    pub(crate) lost: Counter,
    pub(crate) panicked: Counter,
    pub(crate) messages_in: Counter,
    pub(crate) messages_out: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) heartbeats: Counter,
    pub(crate) joins: Counter,
    pub(crate) pushes: Counter,
    pub(crate) requests: Counter,
    pub(crate) deliveries: Counter,
    pub(crate) slow: Counter,
    pub(crate) stale_messages: Counter,
    pub(crate) errors: Tally<&'static str>,
    pub(crate) channel_errors: Tally<&'static str>,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> WsStats {
        WsStats {
            connections_open: self.connections_open.get(),
            rooms_open: self.rooms_open.get(),
            connections: self.connections.get(),
            refused: self.refused.get(),
            closed: self.closed.get(),
            closed_by_client: self.closed_by_client.get(),
            lost: self.lost.get(),
            panicked: self.panicked.get(),
            messages_in: self.messages_in.get(),
            messages_out: self.messages_out.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            heartbeats: self.heartbeats.get(),
            joins: self.joins.get(),
            pushes: self.pushes.get(),
            requests: self.requests.get(),
            deliveries: self.deliveries.get(),
            slow: self.slow.get(),
            stale_messages: self.stale_messages.get(),
            errors: self.errors.get(),
            channel_errors: self.channel_errors.get(),
        }
    }
}
