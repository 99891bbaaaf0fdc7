//! The configuration of a log.

use std::path::PathBuf;
use std::time::Duration;

use relay_core::{ConfigError, Offset, Retention};

/// The highest value of [`LogConfig::max_event_bytes`].
const MAX_EVENT_BYTES: u32 = 1 << 30;
/// The highest value of [`LogConfig::queue_requests`].
const MAX_QUEUE_REQUESTS: u32 = 1 << 20;

/// The durability of an event when its append returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogDurability {
    /// The operating system has the event. It survives the death of the process, but not that of the machine.
    Logged,
    /// The disk has the event. It survives a loss of power too. One fsync serves all appends that wait.
    Synced,
}

/// The logged events that are kept, over all documents. Beyond either limit they are dropped from the old end, soon but not
/// at once. The content of documents counts nothing here, and logged events count nothing against a document's
/// [`Retention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedRetention {
    /// Sum of the events' sizes in bytes; 256 MiB by default, which is about a million events. At least 1.
    pub max_bytes: u64,
    /// Age of an event, by its time; 30 days by default. With `None` events of any age are kept.
    pub max_age: Option<Duration>,
}

impl Default for LoggedRetention {
    fn default() -> Self {
        Self { max_bytes: 256 * 1024 * 1024, max_age: Some(Duration::from_secs(30 * 24 * 60 * 60)) }
    }
}

/// The configuration of a log. [`LogConfig::new`] gives every field but the directory its default;
/// [`LogConfig::validate`] checks the bounds that the fields state.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogConfig {
    /// The directory of the log, created when missing. No other program may write to it. Not empty.
    pub directory: PathBuf,
    /// The durability of an event when its append returns; [`LogDurability::Synced`] by default.
    pub durability: LogDurability,
    /// The history that each document keeps. A document may exceed a limit by an eighth before it is trimmed, so that not
    /// every append trims. Each limit is at least 1: a document's newest event is its place in the order.
    pub retention: Retention,
    /// The bytes that all documents which a [hold](relay_core::EventLog::hold) keeps beyond `retention` may take together; 1 GiB
    /// by default. With more, retention drops held events too. With 0 a hold has no effect.
    pub max_held_bytes: u64,
    /// The hold that the log opens with; none by default. A reader that continues where it ended can set its hold only later,
    /// and needs what comes before it.
    pub initial_hold: Option<Offset>,
    /// The logged events that the log keeps, with the same slack of an eighth.
    pub logged_retention: LoggedRetention,
    /// The interval between scans of all documents for events that are too old; 1 minute by default. Appends trim their own
    /// documents; the scan finds idle ones. More than 0, for without a pause the scan would occupy the writer.
    pub sweep_interval: Duration,
    /// The largest encoded event in bytes; 4 MiB by default. Between 1 byte and 1 GiB: a record states its length in 32
    /// bits, and a read holds at least one event in memory.
    pub max_event_bytes: u32,
    /// The most requests that wait for the writer; 4,096 by default. At least 1, for without a slot nothing is written, and at
    /// most 1,048,576: the slots take memory from the start.
    pub queue_requests: u32,
    /// The most bytes of events that wait for the writer; 32 MiB by default. At least 1; a batch that is larger than the
    /// whole queue waits until the queue is empty.
    pub queue_bytes: u32,
    /// The longest wait of an append for a slot in the queue; 5 seconds by default. Then it is refused as overloaded.
    /// With 0 a full queue refuses at once.
    pub queue_timeout: Duration,
    /// The most reads that run at once; 16 by default. Further reads wait. At least 1. Each read occupies a blocking thread
    /// of the runtime and holds one page in memory.
    pub concurrent_reads: u32,
    /// The most documents whose heads the writer keeps in memory; 65,536 by default, about 10 MiB. At least 1. An append to
    /// a document outside of this cache reads its head from the store.
    pub cached_heads: usize,
    /// The engine's block cache in bytes; 64 MiB by default. With 0 every read goes to the files.
    pub cache_bytes: u64,
}

impl LogConfig {
    /// Returns the default configuration of a log in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            durability: LogDurability::Synced,
            retention: Retention::default(),
            max_held_bytes: 1024 * 1024 * 1024,
            initial_hold: None,
            logged_retention: LoggedRetention::default(),
            sweep_interval: Duration::from_secs(60),
            max_event_bytes: 4 * 1024 * 1024,
            queue_requests: 4096,
            queue_bytes: 32 * 1024 * 1024,
            queue_timeout: Duration::from_secs(5),
            concurrent_reads: 16,
            cached_heads: 65_536,
            cache_bytes: 64 * 1024 * 1024,
        }
    }

    /// Checks every field against its bounds. [`EmbeddedLog::open`](crate::EmbeddedLog::open) does this first.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { retention, logged_retention, max_event_bytes, .. } = self;
        let at_least_1 = "is 0; it must be at least 1";
        let more_than_0 = "is 0; it must be more than 0";
        let is_zero = |duration: Duration| duration.is_zero();
        let checks = [
            ("directory", self.directory.as_os_str().is_empty(), "is empty; it must name a directory"),
            ("retention.max_events", retention.max_events == 0, at_least_1),
            ("retention.max_age", retention.max_age.is_some_and(is_zero), more_than_0),
            ("retention.max_bytes", retention.max_bytes == Some(0), more_than_0),
            ("logged_retention.max_bytes", logged_retention.max_bytes == 0, more_than_0),
            ("logged_retention.max_age", logged_retention.max_age.is_some_and(is_zero), more_than_0),
            ("sweep_interval", is_zero(self.sweep_interval), more_than_0),
            ("max_event_bytes", *max_event_bytes == 0, more_than_0),
            ("queue_requests", self.queue_requests == 0, at_least_1),
            ("queue_bytes", self.queue_bytes == 0, more_than_0),
            ("concurrent_reads", self.concurrent_reads == 0, at_least_1),
            ("cached_heads", self.cached_heads == 0, at_least_1),
        ];
        if let Some((field, _, rule)) = checks.into_iter().find(|(_, is_broken, _)| *is_broken) {
            return Err(ConfigError::new(field, rule));
        }
        let limits = [
            ("max_event_bytes", *max_event_bytes, MAX_EVENT_BYTES),
            ("queue_requests", self.queue_requests, MAX_QUEUE_REQUESTS),
        ];
        match limits.into_iter().find(|(_, value, most)| value > most) {
            Some((field, value, most)) => {
                Err(ConfigError::new(field, format!("is {value}; it must be at most {most}")))
            }
            None => Ok(()),
        }
    }
}
