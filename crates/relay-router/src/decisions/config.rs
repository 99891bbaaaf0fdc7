//! The configuration of the decision log.

use relay_core::ConfigError;

/// The highest value of [`DecisionLogConfig::queue`].
const MAX_QUEUE: usize = 1 << 20;

/// The limits of the decision log.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DecisionLogConfig {
    /// The most decisions that wait for the log's thread; further ones are dropped and counted. Default
    /// 4,096. At least 1, for otherwise no decision would be recorded, and at most 1,048,576: the queue's slots take memory
    /// from the start.
    pub queue: usize,
    /// The most bytes of these decisions and of their events. Default 16 MiB. A single decision may be larger. At
    /// least 1.
    pub queue_bytes: usize,
    /// The most decisions that are kept in memory. Default 10,000. At least 1, because requests are answered
    /// from memory. Half as many about lost events are kept on disk, and outlive a restart.
    pub memory_records: usize,
    /// The most bytes of these decisions; the oldest give way first. Default 32 MiB. At least 1.
    pub memory_bytes: usize,
    /// The share of events whose decisions are kept: all decisions about an event, or none. Failures are
    /// always kept. Default 1. From 0 to 1, for it is a share.
    pub sample: f64,
    /// True to write decisions to files as well. Default false.
    pub disk: bool,
    /// The bytes of a file after which the next one begins. Default 16 MiB. At least 1, for a file has at least
    /// one decision.
    pub max_file_bytes: u64,
    /// The most files; the oldest are deleted first. Default 8. At least 1: the file that is being written.
    pub max_files: usize,
}

impl Default for DecisionLogConfig {
    fn default() -> Self {
        Self {
            queue: 4_096,
            queue_bytes: 16 * 1024 * 1024,
            memory_records: 10_000,
            memory_bytes: 32 * 1024 * 1024,
            sample: 1.0,
            disk: false,
            max_file_bytes: 16 * 1024 * 1024,
            max_files: 8,
        }
    }
}

/// The reason that a decision log fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecisionLogError {
    /// The files or the thread cannot be created, or the files cannot be read.
    #[error("the decision log in {directory}: {source}")]
    Io {
        /// The directory of the files.
        directory: String,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The reading task panicked.
    #[error("reading the decision log panicked: {0}")]
    Panicked(tokio::task::JoinError),
}

impl DecisionLogConfig {
    /// The number of decisions about losses that memory keeps beside any number of others, and the router's store over restarts.
    pub(crate) fn max_losses(&self) -> usize {
        self.memory_records.div_ceil(2)
    }

    /// Checks the bounds that the fields' documentation names.
    ///
    /// # Errors
    /// [`ConfigError`], about the first field that breaks its bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fields = [
            ("queue", self.queue == 0),
            ("queue_bytes", self.queue_bytes == 0),
            ("memory_bytes", self.memory_bytes == 0),
            ("memory_records", self.memory_records == 0),
            ("max_file_bytes", self.max_file_bytes == 0),
            ("max_files", self.max_files == 0),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ConfigError::new(field, "is 0; it must be at least 1"));
        }
        if self.queue > MAX_QUEUE {
            let rule = format!("is {}; it must be at most {MAX_QUEUE}", self.queue);
            return Err(ConfigError::new("queue", rule));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            let rule = format!("is {}; it must be between 0 and 1", self.sample);
            return Err(ConfigError::new("sample", rule));
        }
        Ok(())
    }
}
