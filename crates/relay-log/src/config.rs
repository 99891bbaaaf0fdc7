//! What a log is opened with.

use std::path::PathBuf;
use std::time::Duration;

use relay_core::Retention;

use crate::error::OpenError;

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogDurability {
    /// When the operating system has it: it survives the death of the process, not that of the machine.
    Logged,
    /// When the disk has it: it survives the loss of power too. One fsync serves all appends that wait.
    Synced,
}

/// How a log works. Made with [`LogConfig::new`]; every field but the directory has a default.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Where the log lies. It is created when missing, and belongs to the log alone.
    pub directory: PathBuf,
    /// When an append is answered; [`LogDurability::Synced`] by default.
    pub durability: LogDurability,
    /// How much of each document is kept. A document may exceed a limit by an eighth before it is cut back to it.
    pub retention: Retention,
    /// How often idle documents are looked at for events that are too old. One minute by default.
    pub sweep_interval: Duration,
    /// The largest event in bytes, encoded; 4 MiB by default.
    pub max_event_bytes: u32,
    /// The most appends and trims that wait for the writer; 4,096 by default.
    pub queue_requests: u32,
    /// The most bytes of events that wait for the writer; 32 MiB by default. A larger batch waits until it is alone.
    pub queue_bytes: u32,
    /// How long an append waits for room in the queue before it is refused; 5 seconds by default.
    pub queue_timeout: Duration,
    /// How many reads run at once, the others wait; 16 by default.
    pub concurrent_reads: u32,
    /// How many documents' heads the writer keeps in memory; 65,536 by default.
    pub cached_heads: usize,
    /// The engine's block cache in bytes; 64 MiB by default.
    pub cache_bytes: u64,
}

impl LogConfig {
    /// A log in `directory` with the defaults.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            durability: LogDurability::Synced,
            retention: Retention::default(),
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

    /// Checks every value.
    ///
    /// # Errors
    /// [`OpenError::Config`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), OpenError> {
        let checks = [
            ("directory", !self.directory.as_os_str().is_empty(), "must not be empty"),
            ("retention.max_events", self.retention.max_events > 0, "must be at least 1"),
            ("retention.max_age", self.retention.max_age != Some(Duration::ZERO), "must be more than 0"),
            ("retention.max_bytes", self.retention.max_bytes != Some(0), "must be more than 0"),
            ("sweep_interval", !self.sweep_interval.is_zero(), "must be more than 0"),
            ("max_event_bytes", self.max_event_bytes > 0, "must be more than 0"),
            ("max_event_bytes", self.max_event_bytes <= 1 << 30, "must be at most 1 GiB"),
            ("queue_requests", self.queue_requests > 0, "must be at least 1"),
            ("queue_bytes", self.queue_bytes > 0, "must be more than 0"),
            ("concurrent_reads", self.concurrent_reads > 0, "must be at least 1"),
            ("cached_heads", self.cached_heads > 0, "must be at least 1"),
        ];
        match checks.into_iter().find(|(_, fits, _)| !fits) {
            Some((field, _, rule)) => Err(OpenError::Config { field, rule }),
            None => Ok(()),
        }
    }
}
