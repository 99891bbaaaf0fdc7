//! [`ShardRequest`]: a request to a shard from outside; and the run queue with such requests.
//!
//! The shard, its rooms and its connections use the queue, so this module depends on none of them.

use std::sync::Arc;
use std::time::Duration;

use relay_core::{ConnectionId, DocumentId, MemoryShare};
use tokio::sync::oneshot;

use crate::connection_limiter::ConnectionPermit;
use crate::framing::DeflateParams;
use crate::handshake::Protocol;
use crate::request::Identity;
use crate::run_queue::{RunQueue, Wakeup};
use crate::socket::Socket;
use crate::stats::{ConnectionStats, Member};

/// The run queue of a shard.
pub(crate) type ShardQueue = RunQueue<ShardRequest>;
/// The waker of a task of a shard.
pub(crate) type ShardWakeup = Wakeup<ShardRequest>;

/// A request to a shard.
pub(crate) enum ShardRequest {
    /// Serve this connection.
    Serve(Box<NewConnection>),
    /// Ask all clients to connect again, and close their connections, spread over the given time.
    Drain { over: Duration },
    /// End with the last connection. No new one follows.
    End,
    /// Send the members of the document.
    Members(DocumentId, oneshot::Sender<Vec<Member>>),
    /// Send the numbers of the connection, or of all connections.
    Connections(Option<ConnectionId>, oneshot::Sender<Vec<ConnectionStats>>),
}

/// A connection after its handshake, on its way to a shard.
pub(crate) struct NewConnection {
    pub(crate) socket: Socket,
    pub(crate) identity: Identity,
    pub(crate) protocol: Protocol,
    /// The compression of the server's messages; `None` without compression.
    pub(crate) deflate: Option<DeflateParams>,
    pub(crate) permit: ConnectionPermit,
    /// The connection's share of memory.
    pub(crate) memory: MemoryShare,
}

/// Closes the queue of a shard when it is dropped.
pub(crate) struct CloseOnDrop(pub(crate) Arc<ShardQueue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
