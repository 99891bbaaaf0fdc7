//! [`ConnectionMemory`]: the share of memory of one connection, for all that its requests hold.

use std::net::IpAddr;

use parking_lot::Mutex;
use relay_core::{MemoryBudget, MemoryShare};

/// The share of memory of one connection. The head, the body and the answer of a request count to it, and so does the WebSocket
/// that the connection becomes.
pub(super) struct ConnectionMemory {
    budget: MemoryBudget,
    /// The share of what arrives before the client's address is known.
    own: MemoryShare,
    /// The latest client of the connection, and the share of its requests.
    client: Mutex<Option<(IpAddr, MemoryShare)>>,
}

impl ConnectionMemory {
    /// The memory of a connection from `address`. It is `None` for a trusted proxy, whose requests tell their clients.
    pub(super) fn new(budget: MemoryBudget, address: Option<IpAddr>) -> Self {
        let own = budget.connection(address);
        let client = Mutex::new(address.map(|address| (address, own.clone())));
        Self { budget, own, client }
    }

    /// The share of what arrives before the client's address is known.
    pub(super) fn own(&self) -> &MemoryShare {
        &self.own
    }

    /// The share of a request from `client`. The requests of one client have the same share.
    pub(super) fn of_client(&self, client: IpAddr) -> MemoryShare {
        let mut latest = self.client.lock();
        match &*latest {
            Some((address, share)) if *address == client => share.clone(),
            _ => latest.insert((client, self.budget.connection(Some(client)))).1.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use relay_core::MemoryPurpose;

    use super::*;

    const ADA: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const BEN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn a_client_has_one_share_of_a_connection_also_through_a_proxy() {
        for address in [Some(ADA), None] {
            let memory = ConnectionMemory::new(MemoryBudget::default(), address);
            let _held = memory.of_client(ADA).charge(MemoryPurpose::Bodies, 1);
            assert_eq!(memory.of_client(ADA).used(), 1);
            assert_eq!(memory.own().used(), usize::from(address.is_some()));
        }
        let proxied = ConnectionMemory::new(MemoryBudget::default(), None);
        let _held = proxied.of_client(ADA).charge(MemoryPurpose::Bodies, 1);
        assert_eq!(proxied.of_client(BEN).used(), 0);
    }
}
