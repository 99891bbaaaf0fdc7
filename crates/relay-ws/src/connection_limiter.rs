//! [`ConnectionLimiter`]: a limit of the connections that are open at once, in total and from one address. It has no clock
//! and does no I/O. A server has one for each kind of connection that it limits.
//!
//! Without a limit of its own, an address has at most three times as many connections as are free. So one address alone takes
//! three quarters of all, a second one three quarters of the rest, and an address that has few gets the last ones. A fixed share would
//! either keep out the clients behind one proxy, or let a few addresses take everything.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// The most connections that may be open at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The limit in total. At 0 every connection is refused.
    pub total: usize,
    /// The limit for each address. At 0 every connection with a known address is refused. `None` limits each address to three
    /// times the connections that are free.
    pub per_address: Option<usize>,
}

/// A counter of open connections that refuses connections beyond a limit. Clones share their counts.
///
/// ```
/// use relay_ws::{ConnectionLimiter, ConnectionLimits, LimitReached};
///
/// let limiter = ConnectionLimiter::new(ConnectionLimits { total: 1, per_address: None });
/// let permit = limiter.acquire(None)?;
/// assert_eq!(limiter.acquire(None).unwrap_err(), LimitReached::Total { max: 1 });
///
/// drop(permit);
/// assert!(limiter.acquire(None).is_ok());
/// # Ok::<(), LimitReached>(())
/// ```
#[derive(Debug, Clone)]
pub struct ConnectionLimiter {
    limits: ConnectionLimits,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    /// An address has an entry as long as it has a connection.
    by_address: HashMap<IpAddr, usize>,
}

/// The permit of one open connection. The connection counts until the permit is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    counts: Arc<Mutex<Counts>>,
    address: Option<IpAddr>,
}

/// The refusal of a connection, since as many are open as a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// The limit in total is reached.
    #[error("{max} connections are open, the most that are allowed; try again later")]
    Total {
        /// The limit.
        max: usize,
    },
    /// The limit for an address is reached.
    #[error("{max} connections from {address} are open, the most that are allowed for now; close one first")]
    Address {
        /// The limit. Without one of its own, the connections that the address has.
        max: usize,
        /// The address.
        address: IpAddr,
    },
}

impl LimitReached {
    /// The stable name of the refusal, for programs.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Total { .. } => "too_many_connections",
            Self::Address { .. } => "too_many_connections_from_address",
        }
    }
}

impl ConnectionLimiter {
    /// A limiter with no open connections.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// The number of connections that are open now.
    pub fn open(&self) -> usize {
        self.counts.lock().total
    }

    /// The number of connections from `address` that are open now.
    pub(crate) fn open_from(&self, address: IpAddr) -> usize {
        self.counts.lock().by_address.get(&address).copied().unwrap_or(0)
    }

    /// Counts a connection from `address` as open until the permit is dropped. With `None` it counts in total alone.
    ///
    /// # Errors
    /// [`LimitReached`]. The limit in total is checked first.
    pub fn acquire(&self, address: Option<IpAddr>) -> Result<ConnectionPermit, LimitReached> {
        let ConnectionLimits { total, per_address } = self.limits;
        let mut counts = self.counts.lock();
        if counts.total >= total {
            return Err(LimitReached::Total { max: total });
        }
        if let Some(address) = address {
            let open = counts.by_address.get(&address).copied().unwrap_or(0);
            let max = per_address.unwrap_or((total - counts.total).saturating_mul(3));
            if open >= max {
                return Err(LimitReached::Address { max: per_address.unwrap_or(open), address });
            }
            counts.by_address.insert(address, open + 1);
        }
        counts.total += 1;
        Ok(ConnectionPermit { counts: Arc::clone(&self.counts), address })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.total -= 1;
        if let Some(address) = self.address
            && let Some(open) = counts.by_address.get_mut(&address)
        {
            *open -= 1;
            if *open == 0 {
                counts.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ADA: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const BEN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn each_limit_refuses_and_a_permit_that_is_dropped_makes_room() {
        let limiter = ConnectionLimiter::new(ConnectionLimits { total: 3, per_address: Some(2) });
        let first = limiter.acquire(Some(ADA)).unwrap();
        let _second = limiter.acquire(Some(ADA)).unwrap();
        assert_eq!(limiter.acquire(Some(ADA)).unwrap_err(), LimitReached::Address { max: 2, address: ADA });
        let _third = limiter.acquire(Some(BEN)).unwrap();
        assert_eq!(limiter.acquire(None).unwrap_err(), LimitReached::Total { max: 3 });
        drop(first);
        let _proxied = limiter.acquire(None).unwrap();
        assert_eq!(limiter.open(), 3);
    }

    /// The connections that each of these addresses gets, one after the other.
    fn shares(total: usize, addresses: u8) -> Vec<usize> {
        let limiter = ConnectionLimiter::new(ConnectionLimits { total, per_address: None });
        let mut permits = Vec::new();
        let take = |last| {
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
            let taken = std::iter::from_fn(|| limiter.acquire(Some(address)).ok()).collect::<Vec<_>>();
            let count = taken.len();
            permits.extend(taken);
            count
        };
        (0..addresses).map(take).collect()
    }

    #[test]
    fn without_a_limit_of_its_own_an_address_leaves_a_part_of_what_is_free() {
        assert_eq!(shares(10_000, 5), [7_500, 1_875, 469, 117, 30]);
        let unlimited = ConnectionLimiter::new(ConnectionLimits { total: usize::MAX, per_address: None });
        assert!(unlimited.acquire(Some(ADA)).is_ok());
        // Where there are few, one address may have them all.
        assert_eq!([1, 2, 3, 4].map(|total| shares(total, 1)), [[1], [2], [3], [3]].map(Vec::from));
        // Clients without a known address are not limited.
        let limiter = ConnectionLimiter::new(ConnectionLimits { total: 4, per_address: None });
        let permits: Vec<_> = std::iter::from_fn(|| limiter.acquire(None).ok()).collect();
        assert_eq!(permits.len(), 4);
    }

    #[test]
    fn nothing_of_an_address_stays_behind() {
        let limiter = ConnectionLimiter::new(ConnectionLimits { total: 3, per_address: Some(2) });
        let permits = [limiter.acquire(Some(ADA)).unwrap(), limiter.acquire(Some(BEN)).unwrap()];
        drop(permits);
        assert_eq!(limiter.open(), 0);
        assert!(limiter.counts.lock().by_address.is_empty());
    }
}
