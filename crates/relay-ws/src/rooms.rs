//! Who is in which document: the rooms, each with its members. An entry lives as long as the channel that made it,
//! so there are never more than connections × topics.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::{ConnectionId, DocumentId, UserId};

use crate::request::Identity;

/// A connection that has joined a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The connection.
    pub connection: ConnectionId,
    /// Its user.
    pub user: UserId,
}

/// How many have joined a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomStats {
    /// The document.
    pub document: DocumentId,
    /// Connections that have joined it.
    pub connections: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Rooms {
    rooms: Mutex<HashMap<DocumentId, HashMap<ConnectionId, UserId>>>,
}

impl Rooms {
    /// Puts a connection into a room for as long as the membership is held.
    pub(crate) fn enter(self: &Arc<Self>, document: DocumentId, identity: &Identity) -> Membership {
        let member = (identity.connection, identity.user.clone());
        self.rooms.lock().entry(document.clone()).or_default().extend([member]);
        Membership { rooms: Arc::clone(self), document, connection: identity.connection }
    }

    pub(crate) fn list(&self) -> Vec<RoomStats> {
        let rooms = self.rooms.lock();
        rooms
            .iter()
            .map(|(document, members)| RoomStats { document: document.clone(), connections: members.len() })
            .collect()
    }

    pub(crate) fn members(&self, document: &DocumentId) -> Vec<Member> {
        let rooms = self.rooms.lock();
        let members = rooms.get(document).into_iter().flatten();
        members.map(|(connection, user)| Member { connection: *connection, user: user.clone() }).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.rooms.lock().len()
    }
}

/// A place in a room, given back when dropped.
#[derive(Debug)]
pub(crate) struct Membership {
    rooms: Arc<Rooms>,
    document: DocumentId,
    connection: ConnectionId,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut rooms = self.rooms.rooms.lock();
        if let Some(members) = rooms.get_mut(&self.document) {
            members.remove(&self.connection);
            if members.is_empty() {
                rooms.remove(&self.document);
            }
        }
    }
}
