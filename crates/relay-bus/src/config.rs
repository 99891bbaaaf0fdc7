//! The limits and times of a bus, with the defaults that suit one server.

use std::time::Duration;

use relay_core::{ConfigError, ReadLimit, Retention};

/// The limits and times of a [`Bus`](crate::Bus).
///
/// A configuration starts from its default, and fields are set on it. [`Bus::new`](crate::Bus::new) checks the bounds that
/// the fields state.
///
/// ```
/// use relay_bus::BusConfig;
///
/// let mut config = BusConfig::default();
/// config.max_channels = 500;
/// assert_eq!(config.validate(), Ok(()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusConfig {
    /// The largest payload in bytes; 1 MiB by default. At least 1: no JSON text is empty.
    pub max_payload_bytes: usize,
    /// The most documents with sequenced events that are in memory at once, in use or cached; 100,000 by default. At least 1. A
    /// further document evicts the longest idle one, or is refused when all are in use. A document without such events takes
    /// no place. An event that [closes](relay_core::CheckedDraft::closing) what an earlier one opened is never refused for it.
    pub max_channels: usize,
    /// The most bytes of events that wait for the log in each document; 4 MiB by default. An event counts at least
    /// 1 KiB. A value below the largest payload counts as one largest payload, since a draft must fit into the queue.
    pub max_pending_bytes: usize,
    /// The longest wait of a publisher for space in that queue, and for most readers of the document; 5 seconds by default. Then
    /// it is refused as [`Overloaded`](relay_core::PublishError::Overloaded). With 0 it is refused at once.
    pub publish_timeout: Duration,
    /// The events a second that each document takes although most of its readers are behind; 100 by default. A draft counts
    /// as one more for each KiB. With 0, readers that never read stop the document.
    pub min_events_per_second: u32,
    /// The most events of each document that memory holds beside a log; 1,000 by default. At least 1: live readers take
    /// events from memory.
    pub cache_events: usize,
    /// The most bytes of them, roughly, their encoded copies included; 16 MiB by default. The newest event stays, however
    /// large it is. Without a log the limit is that of `retention`, and at most a quarter of the
    /// [memory for caches](relay_core::MemoryLimits::max_cache_bytes).
    pub cache_bytes: usize,
    /// The events that are read from the log when a document is opened; 256 by default, and at most `cache_events`. With 0
    /// the latest event alone is read, so that the next one has no earlier time.
    pub preload_events: usize,
    /// The latest events of each document whose ids are recognised when a draft is sent again; 10,000 by default, and at
    /// least 1. Events that retention has dropped are not recognised. While a document is in memory and its publishers send
    /// ids, each such event takes about 40 bytes.
    pub idempotency_events: u64,
    /// The most bytes of events that are read from the log for their ids, the latest first; 64 MiB by default. That happens
    /// once, with the first draft that has an id after its document was opened. With 0 only ids of events that are in
    /// memory then are recognised, and later ones.
    pub idempotency_bytes: usize,
    /// The page that a reader takes from the log when memory does not reach back so far; 128 events, 128 KiB by default.
    /// Each such reader holds one page in memory. Each limit is at least 1.
    pub replay_page: ReadLimit,
    /// The history that readers of a document are served; 10,000 events by default. Without a log memory holds all of it.
    /// With a log, give the log the same retention. Each limit is at least 1, for an event is shown out of the history.
    pub retention: Retention,
    /// The most ephemeral events, by kind, actor and key, that each document holds for slow readers; 1,000 by default. The
    /// longest unchanged is dropped first. At least 1.
    pub max_ephemeral_keys: usize,
    /// The most bytes of them, roughly, their encoded copies included; 4 MiB by default. The newest event stays, however
    /// large it is.
    pub max_ephemeral_bytes: usize,
    /// The time that an unused document stays in memory beside a log; 60 seconds by default. It counts from the first sweep
    /// that finds the document unused. With 0 that sweep evicts it.
    pub idle_after: Duration,
    /// The interval between sweeps for idle documents, outdated events and lost documents; 10 seconds by default. More than
    /// 0, for without a pause the sweeper would occupy a core.
    pub sweep_interval: Duration,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            max_payload_bytes: 1024 * 1024,
            max_channels: 100_000,
            max_pending_bytes: 4 * 1024 * 1024,
            publish_timeout: Duration::from_secs(5),
            min_events_per_second: 100,
            cache_events: 1_000,
            cache_bytes: 16 * 1024 * 1024,
            preload_events: 256,
            idempotency_events: 10_000,
            idempotency_bytes: 64 * 1024 * 1024,
            replay_page: ReadLimit { events: 128, bytes: 128 * 1024 },
            retention: Retention::default(),
            max_ephemeral_keys: 1_000,
            max_ephemeral_bytes: 4 * 1024 * 1024,
            idle_after: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(10),
        }
    }
}

impl BusConfig {
    /// Checks every field against its bounds. [`Bus::new`](crate::Bus::new) does this first.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { replay_page, retention, .. } = self;
        let at_least_1 = "is 0; it must be at least 1";
        let more_than_0 = "is 0; it must be more than 0";
        let checks = [
            ("max_payload_bytes", self.max_payload_bytes == 0, at_least_1),
            ("max_channels", self.max_channels == 0, at_least_1),
            ("cache_events", self.cache_events == 0, at_least_1),
            ("idempotency_events", self.idempotency_events == 0, at_least_1),
            ("replay_page.events", replay_page.events == 0, at_least_1),
            ("replay_page.bytes", replay_page.bytes == 0, at_least_1),
            ("retention.max_events", retention.max_events == 0, at_least_1),
            ("retention.max_age", retention.max_age == Some(Duration::ZERO), more_than_0),
            ("retention.max_bytes", retention.max_bytes == Some(0), at_least_1),
            ("max_ephemeral_keys", self.max_ephemeral_keys == 0, at_least_1),
            ("sweep_interval", self.sweep_interval.is_zero(), more_than_0),
        ];
        match checks.into_iter().find(|(_, is_broken, _)| *is_broken) {
            Some((field, _, rule)) => Err(ConfigError::new(field, rule)),
            None => Ok(()),
        }
    }
}
