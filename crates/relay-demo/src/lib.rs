#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! Each service is a [`Profile`] in the list [`SERVICES`]. `server.rs` makes an HTTP service of it, and `documents.rs` gives
//! it a document's history. Within the process of `relay demo` they speak HTTP with the relay, too.
#![allow(clippy::disallowed_methods, reason = "a program beside the server")]

mod cast;
mod client;
mod documents;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
mod fake_relay;
mod prose;
mod recent_ids;
mod server;
mod shared_text;
mod sift;
mod spawn;
mod standalone;
mod stitch;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use relay_core::Event;

use self::client::{RelayClient, RelayError};
use self::documents::FoldService;
pub use self::server::RunningService;
pub use self::standalone::run_alone;

/// The work of a service on events.
#[async_trait]
trait Service: Send + Sync + 'static {
    /// Publishes the result of `event`, if it has one.
    ///
    /// The same event may come again, even while it is being handled. The future is cancel-safe: a result that was not
    /// published is published when the event comes again.
    ///
    /// # Errors
    /// [`HandleError`]; the result has not been published then.
    async fn handle(&self, event: Event) -> Result<(), HandleError>;
}

/// The failure of handling an event.
#[derive(Debug, thiserror::Error)]
enum HandleError {
    /// The relay does not answer, or refuses the result.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// A bug in the service's work.
    #[error("the event's result could not be computed: {0}")]
    Work(#[from] tokio::task::JoinError),
}

/// A service: its name at the relay, its capability, and its work.
pub struct Profile {
    /// The service's name; it publishes as `service:<name>`.
    pub name: &'static str,
    /// The capability by which the relay's rules find it.
    pub capability: &'static str,
    service: fn(RelayClient) -> Arc<dyn Service>,
}

/// The four services.
pub const SERVICES: [Profile; 4] = [
    Profile {
        name: "sift",
        capability: "quality",
        service: |relay| Arc::new(FoldService::<sift::Quality>::new(relay)),
    },
    Profile { name: "cast", capability: "tags", service: |relay| Arc::new(cast::Cast::new(relay)) },
    Profile {
        name: "spawn",
        capability: "metadata",
        service: |relay| Arc::new(FoldService::<spawn::Facts>::new(relay)),
    },
    Profile {
        name: "stitch",
        capability: "coordination",
        service: |relay| Arc::new(FoldService::<stitch::Summary>::new(relay)),
    },
];
