//! How much of what was decided is kept.

/// Limits of the decision log.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DecisionLogConfig {
    /// Decisions that may wait for the log's thread; further ones are dropped and counted. Default 4,096.
    pub queue: usize,
    /// Decisions that are kept in memory. Default 10,000.
    pub memory_records: usize,
    /// The share of events whose decisions are kept, 0 to 1: all decisions about an event, or none. What went wrong is
    /// always kept. Default 1.
    pub sample: f64,
    /// Whether decisions are written to files too. Default no.
    pub disk: bool,
    /// Size of one file in bytes, after which the next one begins. Default 16 MiB.
    pub max_file_bytes: u64,
    /// The most files; the oldest make room. Default 8.
    pub max_files: usize,
}

impl Default for DecisionLogConfig {
    fn default() -> Self {
        Self {
            queue: 4_096,
            memory_records: 10_000,
            sample: 1.0,
            disk: false,
            max_file_bytes: 16 * 1024 * 1024,
            max_files: 8,
        }
    }
}

/// Why a decision log is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecisionLogError {
    /// A limit is zero, with which nothing would be kept.
    #[error("`{field}` is 0; it must be at least 1")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// The sampled share is none.
    #[error("`sample` is {0}; it must be between 0 and 1")]
    Sample(f64),
    /// The files or the thread cannot be had.
    #[error("the decision log in {directory}: {source}")]
    Io {
        /// Where it is.
        directory: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Reading ended by a bug.
    #[error("reading the decision log ended by a bug: {0}")]
    Panicked(tokio::task::JoinError),
}

impl DecisionLogConfig {
    pub(super) fn validate(&self) -> Result<(), DecisionLogError> {
        let fields = [
            ("queue", self.queue == 0),
            ("memory_records", self.memory_records == 0),
            ("max_file_bytes", self.max_file_bytes == 0),
            ("max_files", self.max_files == 0),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(DecisionLogError::Zero { field });
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(DecisionLogError::Sample(self.sample));
        }
        Ok(())
    }
}
