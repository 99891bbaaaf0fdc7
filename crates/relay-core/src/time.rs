//! Time as values: wall-clock [`Timestamp`]s for events, [`Monotonic`] moments for spans, and a [`Clock`] that gives both.
//!
//! Nothing in Relay asks the operating system for the time except through a [`Clock`], so that every rule about
//! time (expiry, idling, leases) can be tested without waiting.

use std::fmt;
use std::ops::{Add, AddAssign};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{InvalidId, excerpt};

/// A moment by the wall clock in microseconds since 1970-01-01T00:00:00Z. Its text form is RFC 3339 in UTC.
///
/// ```
/// use relay_core::Timestamp;
///
/// let t: Timestamp = "2026-01-02T03:04:05.000006Z".parse()?;
/// assert_eq!(t.to_string(), "2026-01-02T03:04:05.000006Z");
/// # Ok::<(), relay_core::InvalidId>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The latest moment that can be named: late on the last day but one of the year 9999.
    pub const MAX: Self = Self(253_402_207_199_999_999);
    /// The earliest moment that can be named: 1970.
    pub const UNIX_EPOCH: Self = Self(0);

    /// The moment `micros` microseconds after 1970, clamped to the years 1970 to 9999.
    pub const fn from_micros(micros: i64) -> Self {
        if micros < 0 {
            Self::UNIX_EPOCH
        } else if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Self(micros)
        }
    }

    /// Microseconds since 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This moment plus `duration`, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In range by construction; should it ever not be, 1970 is shown rather than a panic.
        let time = jiff::Timestamp::from_microsecond(self.0).unwrap_or_default();
        write!(f, "{time:.6}")
    }
}

impl FromStr for Timestamp {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let time: jiff::Timestamp = text.parse().map_err(|_| InvalidId::Malformed {
            what: "time",
            value: excerpt(text),
            reason: "it must be RFC 3339, for instance `2026-01-02T03:04:05Z`",
        })?;
        let micros = time.as_microsecond();
        if !(0..=Self::MAX.0).contains(&micros) {
            return Err(InvalidId::Malformed {
                what: "time",
                value: excerpt(text),
                reason: "it must lie in the years 1970 to 9999",
            });
        }
        Ok(Self(micros))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A moment by a monotonic clock: the time since a fixed point that the clock chose. Moments of different clocks, and
/// of different runs of a program, cannot be compared.
///
/// Arithmetic saturates, so that no configured duration can make it panic.
///
/// ```
/// use std::time::Duration;
/// use relay_core::Monotonic;
///
/// let deadline = Monotonic::ZERO + Duration::from_secs(5);
/// assert_eq!(deadline.since(Monotonic::ZERO), Duration::from_secs(5));
/// assert_eq!(Monotonic::ZERO.since(deadline), Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// The clock's fixed point.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// A moment that no clock reaches.
    pub const MAX: Self = Self(Duration::MAX);

    /// The moment that lies `elapsed` after the clock's fixed point.
    pub const fn from_elapsed(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// The time from the clock's fixed point to this moment.
    pub const fn elapsed(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Monotonic {
    type Output = Self;

    /// The moment `span` later, at most [`Monotonic::MAX`].
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl AddAssign<Duration> for Monotonic {
    fn add_assign(&mut self, span: Duration) {
        *self = *self + span;
    }
}

/// The present moment by both clocks, read once and handed down, so that one decision uses one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The wall-clock time, for what is shown and stored.
    pub wall: Timestamp,
    /// The monotonic time, for measuring spans.
    pub monotonic: Monotonic,
}

/// A source of time. Calls are cheap (no allocation, no lock) and never fail.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The wall-clock time, for what is shown and stored. It may jump, backwards too.
    fn wall(&self) -> Timestamp;

    /// The monotonic time, for measuring spans. It never goes backwards.
    fn monotonic(&self) -> Monotonic;

    /// Both times, read one after the other.
    fn now(&self) -> Now {
        Now { wall: self.wall(), monotonic: self.monotonic() }
    }
}

/// The operating system's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.started.elapsed())
    }
}
