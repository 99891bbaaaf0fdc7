//! The specification of a target in a rule document. Every value has been validated.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use relay_core::ServiceName;
use serde::{Deserialize, Serialize};

use super::{Capability, ProbeSpec};

/// A target that a rule document describes.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct TargetSpec {
    /// The name, by which rules refer to the target.
    pub name: ServiceName,
    /// The address of deliveries, `http` or `https`. The outbound policy decides if it may be reached.
    pub url: String,
    /// The form of deliveries.
    pub format: DeliveryFormat,
    /// The secrets that sign deliveries, all of them at once, the newest first. Without one, deliveries are
    /// not signed.
    pub secrets: Vec<String>,
    /// The capabilities.
    pub capabilities: Vec<Capability>,
    /// The weight among the targets of a rule, at most 1,000.
    pub weight: NonZeroU32,
    /// The limits and retries of deliveries.
    pub policy: TargetPolicy,
    /// The probe of its health. Without one, only the deliveries count.
    pub probe: Option<ProbeSpec>,
}

/// The output leaves out the secrets.
impl fmt::Debug for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetSpec")
            .field("name", &self.name)
            .field("url", &self.url)
            .field("format", &self.format)
            .field("secrets", &format_args!("{} of them", self.secrets.len()))
            .field("capabilities", &self.capabilities)
            .field("weight", &self.weight)
            .field("policy", &self.policy)
            .field("probe", &self.probe)
            .finish()
    }
}

/// The form of deliveries over HTTP, by the content modes of CloudEvents 1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeliveryFormat {
    /// One event in a JSON envelope.
    #[default]
    Structured,
    /// One event: its attributes are headers, its payload is the body.
    Binary,
    /// A JSON array of envelopes: several events of one document.
    Batch,
}

/// The limits, order and retries of a target's deliveries.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TargetPolicy {
    /// The most requests in flight. At most [`TargetPolicy::MAX_CONCURRENCY`].
    pub concurrency: NonZeroUsize,
    /// The most events per second, at most 1,000,000; `None` for no limit.
    pub rate: Option<NonZeroU32>,
    /// The time-out of one request. At most [`TargetPolicy::MAX_TIMEOUT`].
    pub timeout: Duration,
    /// The most events of one document in one request; 1 unless the format is batch. At most
    /// [`TargetPolicy::MAX_BATCH_SIZE`].
    pub batch_size: NonZeroUsize,
    /// The order of deliveries.
    pub ordering: DeliveryOrder,
    /// The retries after a failure.
    pub retry: RetryPolicy,
    /// The circuit breaker.
    pub breaker: BreakerConfig,
}

impl TargetPolicy {
    /// The largest number of requests in flight.
    pub const MAX_CONCURRENCY: usize = 1_000;
    /// The largest number of events in one request.
    pub const MAX_BATCH_SIZE: usize = 1_000;
    /// The longest time-out of a request.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(5 * 60);
}

/// 16 requests in flight, no rate limit, a time-out of 15 seconds, and single events in the order of their
/// document.
impl Default for TargetPolicy {
    fn default() -> Self {
        Self {
            concurrency: NonZeroUsize::MIN.saturating_add(15),
            rate: None,
            timeout: Duration::from_secs(15),
            batch_size: NonZeroUsize::MIN,
            ordering: DeliveryOrder::default(),
            retry: RetryPolicy::default(),
            breaker: BreakerConfig::default(),
        }
    }
}

/// The order of deliveries to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeliveryOrder {
    /// Events of one document come one after the other. A failing event holds up the later ones of its
    /// document.
    #[default]
    Document,
    /// Events come in any order, as soon as they can.
    None,
}

/// The retries of a failed delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The most attempts, including the first. At most [`RetryPolicy::MAX_ATTEMPTS`].
    pub max_attempts: NonZeroU32,
    /// The delay after the first failure; it doubles with each further one. At most `max`.
    pub initial: Duration,
    /// The longest delay. At most [`RetryPolicy::MAX_DELAY`].
    pub max: Duration,
    /// The statuses that are worth a retry. A missing answer always is.
    pub statuses: RetryStatuses,
}

impl RetryPolicy {
    /// The largest number of attempts.
    pub const MAX_ATTEMPTS: u32 = 1_000;
    /// The largest delay.
    pub const MAX_DELAY: Duration = Duration::from_secs(24 * 60 * 60);
}

/// 10 attempts, with delays from half a second to five minutes.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: NonZeroU32::MIN.saturating_add(9),
            initial: Duration::from_millis(500),
            max: Duration::from_secs(5 * 60),
            statuses: RetryStatuses::default(),
        }
    }
}

/// The configuration of a circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerConfig {
    /// The failures in a row that open it. Default 5. At most 1,000.
    pub failures: NonZeroU32,
    /// The time for which it stays open. Default 10 s. From 1 ms to 1 h.
    pub open_for: Duration,
    /// The most trial requests in flight after that. Default 1. At most 100.
    pub half_open: NonZeroU32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: NonZeroU32::MIN.saturating_add(4),
            open_for: Duration::from_secs(10),
            half_open: NonZeroU32::MIN,
        }
    }
}

/// The HTTP statuses after which a delivery is tried again: single ones, and classes.
///
/// ```
/// use relay_router::rules::RetryStatuses;
///
/// let statuses = RetryStatuses::default();
/// assert!(statuses.contains(429) && statuses.contains(503));
/// assert!(!statuses.contains(404));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryStatuses(Vec<std::ops::RangeInclusive<u16>>);

impl RetryStatuses {
    /// Returns true if a delivery answered with `status` is tried again.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }

    /// Parses `words`: numbers from 300 to 599, and classes such as `5xx`.
    pub(crate) fn of_words<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let range = |word: &'a str| match (word.parse(), word) {
            (Ok(status @ 300..=599), _) => Ok(status..=status),
            (_, "3xx") => Ok(300..=399),
            (_, "4xx") => Ok(400..=499),
            (_, "5xx") => Ok(500..=599),
            _ => Err(format!(
                "`{word}` is no status to retry; write one of 300 to 599, or `3xx`, `4xx` or `5xx`"
            )),
        };
        words.map(range).collect::<Result<_, _>>().map(Self)
    }
}

/// 408, 425, 429 and all of 5xx.
impl Default for RetryStatuses {
    fn default() -> Self {
        Self(vec![408..=408, 425..=425, 429..=429, 500..=599])
    }
}
