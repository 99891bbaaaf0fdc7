//! The requests that a shard takes from outside, and its run queue with them.
//!
//! These are values alone, below the shard, its rooms and its connections, all of which use the queue.

use std::time::Duration;

use relay_core::{ConnectionId, DocumentId};
use tokio::sync::oneshot;

use crate::connection_limiter::ConnectionPermit;
use crate::framing::DeflateParams;
use crate::handshake::Protocol;
use crate::request::Identity;
use crate::run_queue::{RunQueue, Wakeup};
use crate::socket::Socket;
use crate::stats::{ConnectionStats, Member};

pub(crate) type ShardQueue = RunQueue<ShardRequest>;
pub(crate) type ShardWakeup = Wakeup<ShardRequest>;

/// A request to a shard.
pub(crate) enum ShardRequest {
    /// Serve this connection.
    Serve(Box<NewConnection>),
    /// Ask all clients to connect again, and close their connections over the given time.
    Drain { over: Duration },
    /// End with the last connection; no other comes.
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
    /// The compression of what the server sends; `None` without any.
    pub(crate) deflate: Option<DeflateParams>,
    pub(crate) permit: ConnectionPermit,
}
