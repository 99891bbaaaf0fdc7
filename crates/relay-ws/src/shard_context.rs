//! The parts and values that a shard lends to its connections.

use std::sync::Arc;

use relay_core::{DocumentLimiter, Monotonic};
use relay_metrics::LatencyWindow;

use crate::config::WsConfig;
use crate::frame_writer::FrameWriter;
use crate::framing::Deflater;
use crate::membership_counts::MembershipCounts;
use crate::parts::WsParts;
use crate::room::Rooms;
use crate::stats::{Counters, ShardGauges};

/// The dependencies of a shard and of its connections. The counters and gauges are the shard's own, and the server's shards
/// share the others.
pub(crate) struct ShardDeps {
    pub(crate) config: Arc<WsConfig>,
    pub(crate) parts: WsParts,
    pub(crate) membership_counts: Arc<MembershipCounts>,
    pub(crate) documents: DocumentLimiter,
    /// The counters of the shard.
    pub(crate) counters: Arc<Counters>,
    /// The gauges of the shard.
    pub(crate) gauges: Arc<ShardGauges>,
    /// The latencies of broadcasts; see [`WsServer::broadcast_latency`](crate::WsServer::broadcast_latency).
    pub(crate) broadcasts: Arc<LatencyWindow>,
}

/// The state of a shard that a connection uses while it is polled.
pub(crate) struct ShardContext<'a> {
    pub(crate) deps: &'a ShardDeps,
    pub(crate) rooms: &'a mut Rooms,
    /// The buffer of the connection's encoded messages; see [`crate::frame_writer`].
    pub(crate) writer: &'a mut FrameWriter,
    pub(crate) deflater: &'a mut Deflater,
    /// The monotonic time at which the poll began.
    pub(crate) now: Monotonic,
    /// The connection's key in its shard.
    pub(crate) key: usize,
}
