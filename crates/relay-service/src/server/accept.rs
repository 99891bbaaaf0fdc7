//! [`AcceptPolicy`]: the decision about each accepted connection. It only counts.
//!
//! A connection beyond a limit gets an answer that says so. The answer costs a permit too, of a fixed number. Where those
//! are in use as well, the connection is closed without an answer.

use std::net::IpAddr;
use std::sync::Arc;

use relay_ws::{ConnectionLimiter, ConnectionLimits, ConnectionPermit, LimitReached};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most connections that are being refused with an answer at once.
const MAX_REFUSALS: usize = 256;

/// Decides about accepted connections.
#[derive(Debug)]
pub(super) struct AcceptPolicy {
    limiter: ConnectionLimiter,
    refusals: Arc<Semaphore>,
}

/// The decision about one connection.
#[derive(Debug)]
pub(super) enum AcceptDecision {
    /// Its requests are served.
    Serve(ConnectionPermit),
    /// It is answered that a limit is reached.
    Refuse(OwnedSemaphorePermit, LimitReached),
    /// It is closed without an answer.
    Close,
}

impl AcceptPolicy {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limiter: ConnectionLimiter::new(limits), refusals: Arc::new(Semaphore::new(MAX_REFUSALS)) }
    }

    /// The number of connections that are being served.
    pub(super) fn open(&self) -> usize {
        self.limiter.open()
    }

    /// Decides about a connection from `address`; `None` is not counted by address.
    pub(super) fn decide(&self, address: Option<IpAddr>) -> AcceptDecision {
        match self.limiter.acquire(address) {
            Ok(permit) => AcceptDecision::Serve(permit),
            Err(reached) => match Arc::clone(&self.refusals).try_acquire_owned() {
                Ok(permit) => AcceptDecision::Refuse(permit, reached),
                Err(_) => AcceptDecision::Close,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(decision: AcceptDecision) -> OwnedSemaphorePermit {
        match decision {
            AcceptDecision::Refuse(permit, _) => permit,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn only_so_many_are_told_that_they_are_refused() {
        let policy = AcceptPolicy::new(ConnectionLimits { total: 1, per_address: None });
        let AcceptDecision::Serve(_permit) = policy.decide(None) else { panic!("not served") };
        let mut refusals: Vec<_> = (0..MAX_REFUSALS).map(|_| refused(policy.decide(None))).collect();
        assert!(matches!(policy.decide(None), AcceptDecision::Close));
        refusals.pop();
        drop(refused(policy.decide(None)));
    }
}
