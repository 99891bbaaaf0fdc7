//! Who is let in: how many at once, how many from one address, and how fast. Pure: it is handed the time.
//!
//! The rate is kept by the generic cell rate algorithm (ITU-T I.371): one number, the moment at which the next connection
//! would come if all came at the rate. Who comes too early waits for that moment, and is refused when that is too long.

use relay_core::Monotonic;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::WsConfig;
use crate::rejection::Rejection;

/// Where a connection comes from, for counting connections per address: a request's extension, put there by whoever
/// accepts connections, who knows whether a proxy stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// How many are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AdmissionLimits {
    /// Connections that are open at once.
    pub(crate) connections: usize,
    /// Of them from one address.
    pub(crate) per_address: usize,
    /// Connections per second.
    pub(crate) rate: u32,
    /// How many may come at once before the rate counts.
    pub(crate) burst: u32,
    /// The longest time that a connection waits for its turn.
    pub(crate) max_wait: Duration,
}

impl From<&WsConfig> for AdmissionLimits {
    fn from(config: &WsConfig) -> Self {
        Self {
            connections: config.max_connections,
            per_address: config.max_connections_per_address.unwrap_or(usize::MAX),
            rate: config.admission_rate,
            burst: config.admission_burst,
            max_wait: config.admission_wait,
        }
    }
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    Full { max: usize },
    TooManyFromAddress { max: usize, address: IpAddr },
    TooFast { wait: Duration },
    Stopping,
}

#[derive(Debug)]
pub(crate) struct Admissions {
    limits: AdmissionLimits,
    state: Arc<Mutex<AdmissionState>>,
}

#[derive(Debug, Default)]
struct AdmissionState {
    open: usize,
    /// An entry lives as long as a connection of its address.
    by_address: HashMap<IpAddr, usize>,
    /// When the next connection would come if all came at the rate.
    next: Monotonic,
    stopping: bool,
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct AdmissionPermit {
    state: Arc<Mutex<AdmissionState>>,
    address: Option<IpAddr>,
}

/// Who is let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) permit: AdmissionPermit,
    /// How long it is to wait for its turn.
    pub(crate) wait: Duration,
}

impl Admissions {
    pub(crate) fn new(limits: AdmissionLimits) -> Self {
        Self { limits, state: Arc::default() }
    }

    /// How many are open, those that wait for their turn included.
    pub(crate) fn open(&self) -> usize {
        self.state.lock().open
    }

    /// Lets nobody in any more.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
    }

    /// Lets a connection in at `now`, by the monotonic clock.
    pub(crate) fn admit(&self, address: Option<IpAddr>, now: Monotonic) -> Result<Admitted, NotAdmitted> {
        let AdmissionLimits { connections, per_address, rate, burst, max_wait } = self.limits;
        let mut state = self.state.lock();
        if state.stopping {
            return Err(NotAdmitted::Stopping);
        }
        if state.open >= connections {
            return Err(NotAdmitted::Full { max: connections });
        }
        if let Some(address) = address
            && state.by_address.get(&address).is_some_and(|open| *open >= per_address)
        {
            return Err(NotAdmitted::TooManyFromAddress { max: per_address, address });
        }
        let interval = Duration::from_secs(1) / rate.max(1);
        let next = state.next.max(now);
        let wait = next.since(now + interval * burst.saturating_sub(1));
        if wait > max_wait {
            return Err(NotAdmitted::TooFast { wait });
        }
        state.next = next + interval;
        state.open += 1;
        if let Some(address) = address {
            *state.by_address.entry(address).or_default() += 1;
        }
        Ok(Admitted { permit: AdmissionPermit { state: Arc::clone(&self.state), address }, wait })
    }
}

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.open -= 1;
        if let Some(address) = self.address
            && let Some(open) = state.by_address.get_mut(&address)
        {
            *open -= 1;
            if *open == 0 {
                state.by_address.remove(&address);
            }
        }
    }
}

/// When there is no room, nobody knows when there will be. Those who are refused come back over this time.
const RETRY_WITHIN: Duration = Duration::from_secs(10);

impl From<NotAdmitted> for Rejection {
    fn from(refused: NotAdmitted) -> Self {
        // Spread, so that those who are refused together do not come back together.
        let spread = |over: Duration| over.mul_f64(rand::random());
        match refused {
            NotAdmitted::Full { max } => Self::unavailable(
                "too_many_connections",
                format!("{max} connections are open, the most that are allowed; try again later"),
                spread(RETRY_WITHIN),
            ),
            NotAdmitted::TooManyFromAddress { max, address } => Self::unavailable(
                "too_many_connections_from_address",
                format!(
                    "{max} connections from {address} are open, the most that are allowed; close one first"
                ),
                spread(RETRY_WITHIN),
            ),
            NotAdmitted::TooFast { wait } => Self::unavailable(
                "too_fast",
                format!("connections come too fast; {} ms of others wait already", wait.as_millis()),
                wait + spread(wait),
            ),
            NotAdmitted::Stopping => Self::unavailable(
                "closed",
                "the server is stopping; connect again".to_owned(),
                spread(Duration::from_secs(2)),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: AdmissionLimits = AdmissionLimits {
        connections: 4,
        per_address: 2,
        rate: 10,
        burst: 3,
        max_wait: Duration::from_millis(250),
    };

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    #[test]
    fn a_place_that_is_given_back_can_be_taken_again() {
        let admissions = Admissions::new(LIMITS);
        let now = Monotonic::from_elapsed(Duration::from_secs(100));
        let first = admissions.admit(Some(address(1)), now).unwrap();
        let _second = admissions.admit(Some(address(1)), now).unwrap();
        let third = admissions.admit(Some(address(1)), now).unwrap_err();
        assert_eq!(third, NotAdmitted::TooManyFromAddress { max: 2, address: address(1) });
        drop(first);
        assert!(admissions.admit(Some(address(1)), now).is_ok());
        admissions.stop();
        assert_eq!(admissions.admit(None, now).unwrap_err(), NotAdmitted::Stopping);
    }

    #[test]
    fn after_a_burst_everyone_waits_for_their_turn_and_nobody_for_too_long() {
        let admissions = Admissions::new(AdmissionLimits { connections: 100, ..LIMITS });
        let now = Monotonic::from_elapsed(Duration::from_secs(100));
        let waits: Vec<u128> = std::iter::repeat_with(|| admissions.admit(None, now))
            .map_while(Result::ok)
            .map(|admitted| admitted.wait.as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        let later = now + Duration::from_millis(50);
        assert_eq!(admissions.admit(None, later).unwrap().wait, Duration::from_millis(250));
    }

    proptest! {
        /// Beside plain counting: limits hold, and in no span of time more begin than rate and burst allow.
        #[test]
        fn limits_hold(steps in prop::collection::vec((0_u8..4, 0_u64..120, any::<prop::sample::Index>()), 1..200)) {
            let admissions = Admissions::new(LIMITS);
            let mut now = Monotonic::from_elapsed(Duration::from_secs(100));
            let mut open: Vec<(u8, AdmissionPermit)> = Vec::new();
            let mut begun: Vec<Monotonic> = Vec::new();
            for (who, millis, gone) in steps {
                now += Duration::from_millis(millis);
                if who == 0 && !open.is_empty() {
                    open.swap_remove(gone.index(open.len()));
                    prop_assert_eq!(admissions.open(), open.len());
                    continue;
                }
                let from = open.iter().filter(|(other, _)| *other == who).count();
                match admissions.admit(Some(address(who)), now) {
                    Ok(admitted) => {
                        prop_assert!(open.len() < 4 && from < 2 && admitted.wait <= LIMITS.max_wait);
                        begun.push(now + admitted.wait);
                        open.push((who, admitted.permit));
                    }
                    Err(NotAdmitted::Full { .. }) => prop_assert_eq!(open.len(), 4),
                    Err(NotAdmitted::TooManyFromAddress { .. }) => prop_assert_eq!(from, 2),
                    Err(NotAdmitted::TooFast { wait }) => prop_assert!(wait > LIMITS.max_wait),
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
