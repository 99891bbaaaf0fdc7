//! What the writer thread and the handles share: counters and whether the log has failed.

use std::sync::{Arc, OnceLock};

use relay_core::LogError;

use crate::stats::Counters;

/// See the module.
#[derive(Default)]
pub(crate) struct LogStatus {
    pub(crate) counters: Counters,
    failure: OnceLock<Arc<dyn std::error::Error + Send + Sync>>,
}

impl LogStatus {
    /// Marks the log as failed for good; the first failure is the one that is told.
    pub(crate) fn fail(&self, error: impl std::error::Error + Send + Sync + 'static) -> LogError {
        let source = Arc::clone(self.failure.get_or_init(|| {
            tracing::error!(%error, "the log failed and takes no more events until it is opened again");
            Arc::new(error)
        }));
        LogError::Failed { source }
    }

    /// Refuses when the log has failed.
    pub(crate) fn check(&self) -> Result<(), LogError> {
        match self.failure.get() {
            Some(source) => Err(LogError::Failed { source: Arc::clone(source) }),
            None => Ok(()),
        }
    }
}
