//! [`AcceptPolicy`]: the decision about each accepted connection. It only counts.
//!
//! A connection beyond a limit gets an answer that says so. A fixed number of connections get one at the same time: the
//! newest. The one that was accepted first makes place for another, and is closed without an answer if it has none yet. So
//! clients that send nothing do not keep others from theirs.

use std::collections::BTreeMap;
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

/// The connections that are being refused, in the order in which they were accepted.
#[derive(Debug, Default)]
struct Refusals {
    open: BTreeMap<u64, CancellationToken>,
    last: u64,
}

/// The permit of a connection that is being refused. It counts until it is dropped.
#[derive(Debug)]
pub(super) struct RefusalPermit {
    refusals: Arc<Mutex<Refusals>>,
    number: u64,
    /// Cancelled when the connection makes place for a newer one.
    pub(super) revoked: CancellationToken,
}

impl Drop for RefusalPermit {
    fn drop(&mut self) {
        self.refusals.lock().open.remove(&self.number);
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
            Err(reached) => AcceptDecision::Refuse(self.begin_refusal(), reached),
        }
    }

    fn begin_refusal(&self) -> RefusalPermit {
        let mut refusals = self.refusals.lock();
        if refusals.open.len() >= MAX_REFUSALS
            && let Some((_, oldest)) = refusals.open.pop_first()
        {
            oldest.cancel();
        }
        refusals.last += 1;
        let (number, revoked) = (refusals.last, CancellationToken::new());
        refusals.open.insert(number, revoked.clone());
        RefusalPermit { refusals: Arc::clone(&self.refusals), number, revoked }
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
        assert!(policy.refusals.lock().open.is_empty());
    }
}
