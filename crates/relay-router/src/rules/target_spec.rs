//! How a target wants its deliveries: what the rule document says of one, and what a service that registers may say of
//! itself. Every value here has been checked.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use relay_core::ServiceName;
use serde::{Deserialize, Serialize};

use super::{Capability, ProbeSpec, duration_text};

/// A target that the rule document names.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct TargetSpec {
    /// Its name, under which rules name it.
    pub name: ServiceName,
    /// Where deliveries go: `http` or `https`. Whether that address may be called is the outbound policy's business.
    pub url: String,
    /// The form of deliveries.
    pub format: DeliveryFormat,
    /// What deliveries are signed with, all of them at once; the newest first. Without any they are not signed.
    pub secrets: Vec<String>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// Its share beside others of the same rule.
    pub weight: NonZeroU32,
    /// How it is delivered to.
    pub policy: TargetPolicy,
    /// How its health is asked for; only its deliveries tell when there is none.
    pub probe: Option<ProbeSpec>,
}

/// Secrets are left out.
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

/// The form in which events are delivered over HTTP, as CloudEvents 1.0 names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeliveryFormat {
    /// One event in a JSON envelope.
    #[default]
    Structured,
    /// One event: its properties are headers, its payload is the body.
    Binary,
    /// A JSON array of envelopes, several of one document at once.
    Batch,
}

/// How a target is delivered to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TargetPolicy {
    /// The most requests at once.
    pub concurrency: NonZeroUsize,
    /// The most events a second; no limit when there is none.
    pub rate: Option<NonZeroU32>,
    /// How long one request may take.
    pub timeout: Duration,
    /// The most events of one document in one request; 1 unless the format is batch.
    pub batch_size: NonZeroUsize,
    /// What is kept in order.
    pub ordering: DeliveryOrder,
    /// What happens after a failure.
    pub retry: RetryPolicy,
    /// When it is left alone for a while.
    pub breaker: BreakerConfig,
}

impl TargetPolicy {
    /// The most requests at once that can be asked for.
    pub const MAX_CONCURRENCY: usize = 1_000;
    /// The most events in one request that can be asked for.
    pub const MAX_BATCH_SIZE: usize = 1_000;
    /// The longest time that can be given to one request.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(5 * 60);
}

/// 16 requests at once, no rate, 15 seconds, one event at a time in the order of its document.
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

/// What is kept in order towards a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeliveryOrder {
    /// Events of one document come one after the other; a failing one holds up those after it, in its document alone.
    #[default]
    Document,
    /// Nothing: events come as soon as they can.
    None,
}

/// What happens after a failed delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How often delivering is tried before the event goes to the dead letters, the first time included.
    pub max_attempts: NonZeroU32,
    /// The rest after the first failure; each further one is twice as long.
    pub initial: Duration,
    /// The longest rest.
    pub max: Duration,
    /// After which answers it is of use to try again. Where no answer comes it always is.
    pub statuses: RetryStatuses,
}

impl RetryPolicy {
    /// The most attempts that can be asked for.
    pub const MAX_ATTEMPTS: u32 = 1_000;
    /// The longest rest that can be asked for.
    pub const MAX_REST: Duration = Duration::from_secs(24 * 60 * 60);
}

/// 10 attempts, from half a second to five minutes apart.
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

/// When a breaker opens, for how long, and how it is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct BreakerConfig {
    /// Failures in a row after which it opens. Default 5.
    pub failures: NonZeroU32,
    /// How long it is open. Default 10 s.
    #[serde(with = "duration_text")]
    pub open_for: Duration,
    /// How many requests try the target at once after that. Default 1.
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

/// HTTP statuses after which a delivery is tried again: single ones, and whole classes.
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
    /// Whether a delivery that was answered with `status` is tried again.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }

    /// Those that `words` name: numbers of 300 to 599, and classes such as `5xx`.
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
