//! Relay as a service: the bus, the log and the WebSocket side put together, with HTTP beside them.
//!
//! A program that wants documents for itself embeds it; the `relay` command serves it.
//!
//! ```
//! use relay_core::{DocumentId, Payload, Seq, StartPosition, UserId};
//! use relay_service::{RelayService, ServiceConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = RelayService::start(ServiceConfig::in_process()).await?;
//!
//! let notes = DocumentId::new("notes")?;
//! let ada = service.join(notes.clone(), UserId::new("ada")?, StartPosition::Live).await?;
//! let ack = ada.publish(relay_events::kind("x-note")?, Payload::json(&"hello")?).await?;
//! assert_eq!(ack.seq, Some(Seq::FIRST));
//!
//! // Bob was not there, and gets what he missed.
//! let everything = StartPosition::After { epoch: None, seq: Seq::ZERO };
//! let mut bob = service.join(notes, UserId::new("bob")?, everything).await?;
//! let event = bob.next().await.ok_or("the service stopped")??;
//! assert_eq!(event.actor.to_string(), "user:ada");
//!
//! ada.leave();
//! assert!(service.stop().await?.complete);
//! # Ok(())
//! # }
//! ```
//!
//! [`ServiceConfig::default`] listens at `127.0.0.1:7400` and keeps its log in `relay-data`.

mod config;
mod http;
mod participant;
mod server;
mod service;
mod stats;

pub use config::{HostPolicy, HttpConfig, ServiceConfig, Storage, TlsConfig};
pub use participant::Participant;
pub use server::{HttpStats, RefusedConnections, TimedOut, TlsError};
pub use service::{JoinError, PublishError, RelayService, StartError, Stopped};
pub use stats::{RequestStats, ServiceStats};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
