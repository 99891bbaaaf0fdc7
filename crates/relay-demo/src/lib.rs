#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! Each service is a [`Profile`] in the list [`SERVICES`]. `shell.rs` makes an HTTP service of it, and `documents.rs` gives
//! it a document's history. Within the process of `relay demo` they speak HTTP with the relay, too.

mod cast;
mod documents;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
mod fake_relay;
mod prose;
mod relay;
mod seen;
mod shared_text;
mod shell;
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

use self::documents::Documents;
use self::relay::{Relay, RelayError};
pub use self::shell::Running;
pub use self::standalone::run_alone;

/// What a service does with events.
#[async_trait]
trait Service: Send + Sync + 'static {
    /// Returns when what follows from `event` has been published, or when nothing follows.
    ///
    /// The same event may come again, even while it is being dealt with. Cancel-safe: what was not published then is
    /// published when the event comes again.
    ///
    /// # Errors
    /// [`TakeError`]; the event has not been dealt with then.
    async fn take(&self, event: Event) -> Result<(), TakeError>;
}

/// Why an event could not be dealt with.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    /// The relay does not answer, or does not take the result.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// A bug in what the service does.
    #[error("the event's result could not be made: {0}")]
    Work(#[from] tokio::task::JoinError),
}

/// A service: its name at the relay, what it registers for, and what it does.
pub struct Profile {
    /// Its name; it publishes as `service:<name>`.
    pub name: &'static str,
    /// The capability by which the relay's rules find it.
    pub capability: &'static str,
    service: fn(Relay) -> Arc<dyn Service>,
}

/// All of them.
pub const SERVICES: [Profile; 4] = [
    Profile {
        name: "sift",
        capability: "quality",
        service: |relay| Arc::new(Documents::<sift::Quality>::new(relay)),
    },
    Profile { name: "cast", capability: "tags", service: |relay| Arc::new(cast::Cast::new(relay)) },
    Profile {
        name: "spawn",
        capability: "metadata",
        service: |relay| Arc::new(Documents::<spawn::Facts>::new(relay)),
    },
    Profile {
        name: "stitch",
        capability: "coordination",
        service: |relay| Arc::new(Documents::<stitch::Summary>::new(relay)),
    },
];
