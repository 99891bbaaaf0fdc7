//! The errors of starting a service, publishing and joining.

use std::net::SocketAddr;

use relay_core::{ConfigError, DuplicateCommand, SubscribeError};
use relay_events::PayloadError;
use relay_router::RouterError;

use crate::server::TlsError;
use crate::storage::StorageError;

/// The error of a service that does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A value of the configuration breaks its rule. The field is named by its path from
    /// [`ServiceConfig`](crate::ServiceConfig).
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log, or the file of the fencing tokens beside it, cannot be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Two parts of the service have a command of the same name.
    #[error(transparent)]
    Commands(#[from] DuplicateCommand),
    /// The certificate or its key cannot be used.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    /// The router does not start.
    #[error("router: {0}")]
    Router(#[from] RouterError),
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}; is another server running there? Port 0 takes a free one")]
    Listen {
        /// The wanted address.
        address: SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
}

/// The error of a draft that did not become an event.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The payload does not fit its kind.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The document's channel refused it.
    #[error(transparent)]
    Channel(#[from] relay_core::PublishError),
}

/// The error of a join.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The document cannot be followed.
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
    /// The participant is refused.
    #[error(transparent)]
    Refused(#[from] relay_core::JoinError),
}
