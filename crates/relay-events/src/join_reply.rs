//! [`JoinReply`]: the JSON form of a completed join, the same in every protocol.

use relay_core::{ConnectionId, Joined, Lease, SessionId};
use serde::Serialize;

/// The JSON form of a completed join: the body of an HTTP reply to it, and the last fields of a WebSocket reply.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct JoinReply<'a> {
    connection: ConnectionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locks: Option<&'a [Lease]>,
}

impl<'a> JoinReply<'a> {
    /// The reply to the join of `connection`. `joined` is `None` for a member that takes no part in presence.
    pub fn new(connection: ConnectionId, joined: Option<&'a Joined>) -> Self {
        Self {
            connection,
            session: joined.map(|joined| joined.session),
            locks: joined.map(|joined| &*joined.locks),
        }
    }
}
