//! Which documents have been joined, and by how many connections, over all shards.

use std::collections::HashMap;

use parking_lot::Mutex;
use relay_core::{ConnectionId, DocumentId, UserId};
use serde::Serialize;

/// A connection that has joined a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The connection.
    pub connection: ConnectionId,
    /// Its user.
    pub user: UserId,
}

/// How many have joined a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoomStats {
    /// The document.
    pub document: DocumentId,
    /// Connections that have joined it.
    pub connections: usize,
}

/// An entry lives as long as somebody is there.
#[derive(Debug, Default)]
pub(crate) struct MembershipCounts(Mutex<HashMap<DocumentId, usize>>);

impl MembershipCounts {
    pub(crate) fn increment(&self, document: &DocumentId) {
        let mut rooms = self.0.lock();
        match rooms.get_mut(document) {
            Some(connections) => *connections += 1,
            None => {
                rooms.insert(document.clone(), 1);
            }
        }
    }

    pub(crate) fn decrement(&self, document: &DocumentId) {
        let mut rooms = self.0.lock();
        if let Some(connections) = rooms.get_mut(document) {
            *connections -= 1;
            if *connections == 0 {
                rooms.remove(document);
            }
        }
    }

    pub(crate) fn list(&self) -> Vec<RoomStats> {
        let rooms = self.0.lock();
        rooms
            .iter()
            .map(|(document, connections)| RoomStats {
                document: document.clone(),
                connections: *connections,
            })
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }
}
