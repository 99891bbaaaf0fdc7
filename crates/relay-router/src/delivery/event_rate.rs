//! Limits of events per second, by the router's own clock.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use relay_core::{Clock, Monotonic};

/// The router's clock as the rate limiter reads it.
#[derive(Debug, Clone)]
struct RateClock(Arc<dyn Clock>);

impl governor::clock::Clock for RateClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic().elapsed()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, RateClock, NoOpMiddleware<Duration>>;

/// A limit of events per second. One second's worth may come at once.
pub(crate) struct EventRate {
    limiter: Limiter,
    clock: RateClock,
    burst: NonZeroU32,
}

impl EventRate {
    pub(crate) fn new(per_second: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        let clock = RateClock(clock);
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(per_second), clock.clone());
        Self { limiter, clock, burst: per_second }
    }

    /// Takes `events` from the limit. More than one second's worth counts as one second's worth.
    ///
    /// # Errors
    /// The moment at which the limit allows them.
    pub(crate) fn take(&self, events: usize) -> Result<(), Monotonic> {
        let events = u32::try_from(events).unwrap_or(u32::MAX).clamp(1, self.burst.get());
        let events = NonZeroU32::new(events).unwrap_or(NonZeroU32::MIN);
        match self.limiter.check_n(events) {
            Ok(Err(not_until)) => {
                let now = self.clock.now();
                Err(Monotonic::from_elapsed(now) + not_until.wait_time_from(now))
            }
            // The outer error stands for more events than the burst, which the clamp excludes.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}
