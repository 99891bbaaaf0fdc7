//! Relay as a service: the bus, the log, presence, routing and WebSocket connections in one, with HTTP beside them.
//!
//! A program embeds a [`RelayService`], and the `relay` command serves one.
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
//! // Bob joins later, and gets the events from the beginning.
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
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test ends with its tasks"))]

mod components;
mod config;
mod error;
mod http;
mod outcomes;
mod participant;
mod publish;
mod server;
mod service;
mod stats;
mod storage;

pub use config::{DroppedLogLines, HostPolicy, HttpConfig, ServiceConfig, TlsConfig};
pub use error::{JoinError, PublishError, StartError};
pub use participant::Participant;
pub use server::{HttpStats, RefusedConnections, TimedOut, TlsError};
pub use service::{RelayService, StopStep, Stopped};
pub use stats::{MemoryStats, RequestStats, ServiceStats};
pub use storage::{Storage, StorageError};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
