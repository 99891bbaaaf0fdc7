//! Clocks whose time a test decides.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::time::{Clock, Monotonic, Timestamp};

/// A clock that stands still until it is told to go on.
///
/// ```
/// use std::time::Duration;
/// use relay_core::Clock;
/// use relay_core::testing::ManualClock;
///
/// let clock = ManualClock::new();
/// let before = clock.wall();
/// clock.advance(Duration::from_secs(30));
/// assert_eq!(clock.wall().since(before), Duration::from_secs(30));
/// ```
#[derive(Debug)]
pub struct ManualClock {
    wall_micros: AtomicI64,
    monotonic_micros: AtomicU64,
}

impl ManualClock {
    /// A clock that shows 2026-01-01T00:00:00Z.
    pub fn new() -> Self {
        Self { wall_micros: AtomicI64::new(1_767_225_600_000_000), monotonic_micros: AtomicU64::new(0) }
    }

    /// Moves both times forward, at most to their ends.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        let later = |monotonic: u64| Some(monotonic.saturating_add(micros));
        let _ = self.monotonic_micros.fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
        let later = |wall: i64| Some(wall.saturating_add_unsigned(micros));
        let _ = self.wall_micros.fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
    }

    /// Sets the wall clock alone, as an operator or NTP may do, backwards too.
    pub fn set_wall(&self, to: Timestamp) {
        self.wall_micros.store(to.as_micros(), Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(self.wall_micros.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::from_elapsed(Duration::from_micros(self.monotonic_micros.load(Ordering::SeqCst)))
    }
}

/// A clock that shows the time that a function returns, for instance that of a paused runtime.
pub struct FnClock<F>(F);

impl<F: Fn() -> Duration> FnClock<F> {
    /// A clock that starts in 2023, when `elapsed` returns zero. `elapsed` must never go backwards.
    pub fn new(elapsed: F) -> Self {
        Self(elapsed)
    }
}

impl<F> fmt::Debug for FnClock<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FnClock").finish_non_exhaustive()
    }
}

impl<F: Fn() -> Duration + Send + Sync + 'static> Clock for FnClock<F> {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000).saturating_add((self.0)())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::from_elapsed((self.0)())
    }
}
