//! [`AcceptPolicy`]: the decision about each accepted connection. It only counts.
//!
//! A connection beyond a limit gets an answer that says so. A fixed number of connections get one at the same time. For a
//! further one the address with the most of them gives up its oldest, which is closed if it has no answer yet. So clients that
//! send nothing do not keep others from theirs, and neither does a flood from one address: a probe of another one is answered.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_ws::{ConnectionLimiter, ConnectionLimits, ConnectionPermit, LimitReached};
use tokio_util::sync::CancellationToken;

/// The most connections that are being refused with an answer at once.
const MAX_REFUSALS: usize = 256;

/// Decides about accepted connections.
#[derive(Debug)]
pub(super) struct AcceptPolicy {
    limiter: ConnectionLimiter,
    refusals: Arc<Mutex<Refusals>>,
}

/// The connections that are being refused.
#[derive(Debug, Default)]
struct Refusals {
    /// Those of each address, in the order in which they were accepted. No map is empty.
    by_address: HashMap<Option<IpAddr>, BTreeMap<u64, CancellationToken>>,
    open: usize,
    last: u64,
}

impl Refusals {
    fn insert(&mut self, address: Option<IpAddr>) -> (u64, CancellationToken) {
        self.last += 1;
        let revoked = CancellationToken::new();
        self.by_address.entry(address).or_default().insert(self.last, revoked.clone());
        self.open += 1;
        (self.last, revoked)
    }

    fn remove(&mut self, address: Option<IpAddr>, number: u64) -> Option<CancellationToken> {
        let of_address = self.by_address.get_mut(&address)?;
        let removed = of_address.remove(&number)?;
        if of_address.is_empty() {
            self.by_address.remove(&address);
        }
        self.open -= 1;
        Some(removed)
    }

    /// Closes the oldest connection of the address with the most of them.
    fn revoke_one(&mut self) {
        let most = self.by_address.iter().max_by_key(|(_, open)| open.len());
        let oldest = most.and_then(|(address, open)| Some((*address, *open.keys().next()?)));
        if let Some((address, number)) = oldest
            && let Some(revoked) = self.remove(address, number)
        {
            revoked.cancel();
        }
    }
}

/// The permit of a connection that is being refused. It counts until it is dropped.
#[derive(Debug)]
pub(super) struct RefusalPermit {
    refusals: Arc<Mutex<Refusals>>,
    address: Option<IpAddr>,
    number: u64,
    /// Cancelled when the connection makes place for a newer one.
    pub(super) revoked: CancellationToken,
}

impl Drop for RefusalPermit {
    fn drop(&mut self) {
        self.refusals.lock().remove(self.address, self.number);
    }
}

/// The decision about one connection.
#[derive(Debug)]
pub(super) enum AcceptDecision {
    /// Its requests are served.
    Serve(ConnectionPermit),
    /// It is answered that a limit is reached.
    Refuse(RefusalPermit, LimitReached),
}

impl AcceptPolicy {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limiter: ConnectionLimiter::new(limits), refusals: Arc::default() }
    }

    /// The number of connections that are being served.
    pub(super) fn open(&self) -> usize {
        self.limiter.open()
    }

    /// Decides about a connection from `address`; `None` is not counted by address.
    pub(super) fn decide(&self, address: Option<IpAddr>) -> AcceptDecision {
        match self.limiter.acquire(address) {
            Ok(permit) => AcceptDecision::Serve(permit),
            Err(reached) => AcceptDecision::Refuse(self.begin_refusal(address), reached),
        }
    }

    fn begin_refusal(&self, address: Option<IpAddr>) -> RefusalPermit {
        let mut refusals = self.refusals.lock();
        if refusals.open >= MAX_REFUSALS {
            refusals.revoke_one();
        }
        let (number, revoked) = refusals.insert(address);
        RefusalPermit { refusals: Arc::clone(&self.refusals), address, number, revoked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_told_that_they_are_refused_and_the_oldest_makes_place() {
        let policy = AcceptPolicy::new(ConnectionLimits { total: 1, per_address: None });
        let AcceptDecision::Serve(_permit) = policy.decide(None) else { panic!("not served") };
        let refuse = || match policy.decide(None) {
            AcceptDecision::Refuse(permit, _) => permit,
            served @ AcceptDecision::Serve(_) => panic!("not refused: {served:?}"),
        };
        let mut refusals: Vec<_> = (0..MAX_REFUSALS).map(|_| refuse()).collect();
        let are_revoked =
            |refusals: &[RefusalPermit]| refusals.iter().filter(|one| one.revoked.is_cancelled()).count();
        assert_eq!(are_revoked(&refusals), 0);
        refusals.push(refuse());
        assert_eq!((are_revoked(&refusals), refusals[0].revoked.is_cancelled()), (1, true));
        // One that ends makes place, too, and nothing of it stays behind.
        refusals.drain(..2);
        refusals.push(refuse());
        assert_eq!(are_revoked(&refusals), 0);
        drop(refusals);
        assert!(policy.refusals.lock().by_address.is_empty());
        assert_eq!(policy.refusals.lock().open, 0);
    }

    #[test]
    fn a_flood_from_one_address_closes_no_connection_of_another() {
        let policy = AcceptPolicy::new(ConnectionLimits { total: 1, per_address: None });
        let AcceptDecision::Serve(_permit) = policy.decide(None) else { panic!("not served") };
        let refuse = |last: u8| match policy.decide(Some(IpAddr::from([10, 0, 0, last]))) {
            AcceptDecision::Refuse(permit, _) => permit,
            served @ AcceptDecision::Serve(_) => panic!("not refused: {served:?}"),
        };
        let probe = refuse(1);
        let flood: Vec<_> = (0..3 * MAX_REFUSALS).map(|_| refuse(2)).collect();
        let others: Vec<_> = (0..MAX_REFUSALS / 4).map(|_| refuse(3)).collect();
        assert!(!probe.revoked.is_cancelled() && others.iter().all(|one| !one.revoked.is_cancelled()));
        let open = flood.iter().filter(|one| !one.revoked.is_cancelled()).count();
        assert_eq!(open, MAX_REFUSALS - 1 - MAX_REFUSALS / 4);
        // The newest of the flood are the ones that are answered.
        assert!(flood.iter().rev().take(open).all(|one| !one.revoked.is_cancelled()));
    }
}
