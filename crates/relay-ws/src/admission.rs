//! [`Admissions`]: the limits of the connections that are open, and of their rate. The time is passed in; no I/O.

use std::cell::Cell;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use relay_core::Monotonic;

use crate::config::WsConfig;
use crate::connection_limiter::{ConnectionLimiter, ConnectionLimits, ConnectionPermit, LimitReached};
use crate::rejection::Rejection;

/// The address of a request's client, for the limits and shares of an address: an extension of the request. The server that
/// accepts connections adds it, since it knows which of them come from a proxy. Of an IPv6 address it is best the network,
/// since one machine may have many of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// The reason for refusing a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// Too many connections are open.
    LimitReached(LimitReached),
    /// The connection would wait longer than is allowed.
    TooFast {
        /// The wait for its turn.
        wait: Duration,
    },
    /// The server stops.
    Stopping,
}

/// The admission of connections to one server.
#[derive(Debug)]
pub(crate) struct Admissions {
    limiter: ConnectionLimiter,
    max_wait: Duration,
    state: Mutex<AdmissionState>,
}

#[derive(Debug)]
struct AdmissionState {
    turns: Turns,
    stopping: bool,
}

/// An admitted connection.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) permit: ConnectionPermit,
    /// The wait for its turn.
    pub(crate) wait: Duration,
}

impl Admissions {
    /// Admissions within the limits of `config`.
    pub(crate) fn new(config: &WsConfig) -> Self {
        let limits = ConnectionLimits {
            total: config.max_connections,
            per_address: config.max_connections_per_address,
        };
        let turns = Turns::new(config.admission_rate, config.admission_burst);
        Self {
            limiter: ConnectionLimiter::new(limits),
            max_wait: config.admission_wait,
            state: Mutex::new(AdmissionState { turns, stopping: false }),
        }
    }

    /// The number of connections that are open. Connections that wait for their turn count too.
    pub(crate) fn open(&self) -> usize {
        self.limiter.open()
    }

    /// Refuses every connection from now on.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
    }

    /// Admits a connection from `address` that comes at `now`. With `None` it counts in total alone.
    ///
    /// # Errors
    /// [`NotAdmitted`], without an effect on later connections.
    pub(crate) fn admit(&self, address: Option<IpAddr>, now: Monotonic) -> Result<Admitted, NotAdmitted> {
        let state = self.state.lock();
        if state.stopping {
            return Err(NotAdmitted::Stopping);
        }
        let has_others = address.is_some_and(|address| self.limiter.open_from(address) > 0);
        let permit = self.limiter.acquire(address).map_err(NotAdmitted::LimitReached)?;
        // The last turns are for those that have no connection. Otherwise one address could take all of them.
        let max_wait = if has_others { self.max_wait / 10 * 9 } else { self.max_wait };
        let wait = state.turns.take(now, max_wait).map_err(|wait| NotAdmitted::TooFast { wait })?;
        Ok(Admitted { permit, wait })
    }
}

/// The turns of connections: so many per second, after a burst that has its turn at once.
#[derive(Debug)]
struct Turns(RateLimiter<NotKeyed, InMemoryState, PassedTime, NoOpMiddleware<Duration>>);

/// The time that the rate limiter reads. It is set before each use.
#[derive(Debug, Default)]
struct PassedTime(Cell<Duration>);

impl governor::clock::Clock for PassedTime {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.get()
    }
}

impl Turns {
    fn new(per_second: u32, burst: u32) -> Self {
        let at_least_1 = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_1(per_second)).allow_burst(at_least_1(burst));
        Self(RateLimiter::direct_with_clock(quota, PassedTime::default()))
    }

    /// Takes the next free turn from `now` on. Returns the wait for it.
    ///
    /// # Errors
    /// The wait, when it is longer than `max_wait`. No turn is taken then.
    fn take(&self, now: Monotonic, max_wait: Duration) -> Result<Duration, Duration> {
        let mut wait = Duration::ZERO;
        loop {
            // A turn in the future is taken as by a connection that comes then.
            self.0.clock().0.set((now + wait).elapsed());
            let Err(too_early) = self.0.check() else { return Ok(wait) };
            wait = too_early.wait_time_from(now.elapsed());
            if wait > max_wait {
                return Err(wait);
            }
        }
    }
}

/// The time over which refused clients are asked to come back. Nothing tells how long a limit stays reached.
const RETRY_WITHIN: Duration = Duration::from_secs(10);
/// The time over which clients of a stopping server are asked to come back.
const RESTART_WITHIN: Duration = Duration::from_secs(2);

impl From<NotAdmitted> for Rejection {
    fn from(refused: NotAdmitted) -> Self {
        // Random, so that clients that are refused together do not come back together.
        let spread = |over: Duration| over.mul_f64(rand::random());
        match refused {
            NotAdmitted::LimitReached(reached) => {
                Self::unavailable(reached.reason(), reached.to_string(), spread(RETRY_WITHIN))
            }
            NotAdmitted::TooFast { wait } => Self::unavailable(
                "too_fast",
                format!("connections come too fast; the next turn is in {} ms", wait.as_millis()),
                wait + spread(wait),
            ),
            NotAdmitted::Stopping => Self::unavailable(
                "closed",
                "the server is stopping; connect again".to_owned(),
                spread(RESTART_WITHIN),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const MAX_WAIT: Duration = Duration::from_millis(250);

    /// At most `max_connections`, two of them from one address; 10 per second after a burst of 3.
    fn admissions(max_connections: usize) -> Admissions {
        Admissions::new(&WsConfig {
            max_connections,
            max_connections_per_address: Some(2),
            admission_rate: 10,
            admission_burst: 3,
            admission_wait: MAX_WAIT,
            ..WsConfig::default()
        })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    #[test]
    fn an_address_that_has_connections_leaves_the_last_turns_to_others() {
        let mut config = WsConfig::default();
        (config.admission_rate, config.admission_burst) = (100, 100);
        config.admission_wait = Duration::from_secs(1);
        let admissions = Admissions::new(&config);
        let now = Monotonic::from_elapsed(Duration::from_secs(100));
        let admit = |last| admissions.admit(Some(address(last)), now);
        let admitted: Vec<_> = std::iter::from_fn(|| admit(1).ok()).collect();
        assert_eq!(admitted.len(), 190);
        for other in 2..12 {
            assert!(admit(other).is_ok());
        }
        assert!(matches!(admit(12), Err(NotAdmitted::TooFast { .. })));
    }

    #[test]
    fn a_permit_that_is_dropped_makes_room_for_another_connection() {
        let admissions = admissions(4);
        let now = Monotonic::from_elapsed(Duration::from_secs(100));
        let first = admissions.admit(Some(address(1)), now).unwrap();
        let _second = admissions.admit(Some(address(1)), now).unwrap();
        let third = admissions.admit(Some(address(1)), now).unwrap_err();
        let reached = LimitReached::Address { max: 2, address: address(1) };
        assert_eq!(third, NotAdmitted::LimitReached(reached));
        drop(first);
        assert!(admissions.admit(Some(address(1)), now).is_ok());
        admissions.stop();
        assert_eq!(admissions.admit(None, now).unwrap_err(), NotAdmitted::Stopping);
    }

    #[test]
    fn after_a_burst_each_connection_waits_for_its_turn_and_none_for_too_long() {
        let admissions = admissions(100);
        let now = Monotonic::from_elapsed(Duration::from_secs(100));
        let waits: Vec<u128> = std::iter::repeat_with(|| admissions.admit(None, now))
            .map_while(Result::ok)
            .map(|admitted| admitted.wait.as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        let later = now + Duration::from_millis(50);
        assert_eq!(admissions.admit(None, later).unwrap().wait, Duration::from_millis(250));
    }

    #[test]
    fn a_connection_that_comes_too_fast_gives_its_permit_back() {
        let admissions = admissions(100);
        let now = Monotonic::from_elapsed(Duration::from_secs(100));
        let permits: Vec<Admitted> = (0..5).map(|_| admissions.admit(None, now).unwrap()).collect();
        let wait = Duration::from_millis(300);
        assert_eq!(admissions.admit(None, now).unwrap_err(), NotAdmitted::TooFast { wait });
        assert_eq!(admissions.open(), permits.len());
    }

    proptest! {
        /// Compared with plain counting: the limits hold, and within no time more connections begin than rate and burst allow.
        #[test]
        fn limits_hold(steps in prop::collection::vec((0_u8..4, 0_u64..120, any::<prop::sample::Index>()), 1..200)) {
            let admissions = admissions(4);
            let mut now = Monotonic::from_elapsed(Duration::from_secs(100));
            let mut open: Vec<(u8, ConnectionPermit)> = Vec::new();
            let mut begun: Vec<Monotonic> = Vec::new();
            for (source, millis, gone) in steps {
                now += Duration::from_millis(millis);
                if source == 0 && !open.is_empty() {
                    open.swap_remove(gone.index(open.len()));
                    prop_assert_eq!(admissions.open(), open.len());
                    continue;
                }
                let from = open.iter().filter(|(other, _)| *other == source).count();
                match admissions.admit(Some(address(source)), now) {
                    Ok(admitted) => {
                        prop_assert!(open.len() < 4 && from < 2 && admitted.wait <= MAX_WAIT);
                        begun.push(now + admitted.wait);
                        open.push((source, admitted.permit));
                    }
                    Err(NotAdmitted::LimitReached(LimitReached::Total { .. })) => prop_assert_eq!(open.len(), 4),
                    Err(NotAdmitted::LimitReached(LimitReached::Address { .. })) => prop_assert_eq!(from, 2),
                    Err(NotAdmitted::TooFast { wait }) => prop_assert!(wait > MAX_WAIT),
                    Err(NotAdmitted::Stopping) => prop_assert!(false, "nobody stopped it"),
                }
                prop_assert_eq!(admissions.open(), open.len());
            }
            for (index, from) in begun.iter().enumerate() {
                for (count, to) in (1_u128..).zip(&begun[index..]) {
                    let allowed = 3 + to.since(*from).as_millis() / 100;
                    prop_assert!(count <= allowed, "{count} between {from:?} and {to:?}");
                }
            }
        }
    }
}
