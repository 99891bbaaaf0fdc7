//! The failures of the store.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

/// A failure to write to the router's store or to read from it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk failed, or a stored value is not readable.
    #[error("the router's store in {directory} failed: {detail}")]
    Failed {
        /// The store's directory.
        directory: Arc<str>,
        /// The failure, in words.
        detail: String,
    },
    /// The router is stopping.
    #[error("the router is stopping")]
    Closed,
}

impl StoreError {
    pub(super) fn failed(directory: &Arc<str>, detail: &dyn fmt::Display) -> Self {
        Self::Failed { directory: Arc::clone(directory), detail: detail.to_string() }
    }
}

/// Reads a stored value.
pub(super) fn parse<T: DeserializeOwned>(directory: &Arc<str>, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|error| StoreError::failed(directory, &error))
}
