//! WebSocket connections for collaborative documents, speaking Phoenix Channels (serializer 2.0.0), so that the
//! unmodified `phoenix` npm client works.
//!
//! [`WsServer::upgrade`] answers a request and serves the connection; what clients publish goes to an
//! [`EventSink`](relay_core::EventSink), what their documents give comes from an
//! [`EventSource`](relay_core::EventSource). The protocol itself, without any I/O, is [`codec`].
//!
#![doc = include_str!("../README.md")]

mod channels;
mod close;
pub mod codec;
mod config;
mod connection;
mod farewell;
pub mod framing;
mod handshake;
mod meter;
mod registry;
mod request;
mod rooms;
mod server;
mod stats;

pub use config::{ConfigError, OriginPolicy, WsConfig};
pub use rooms::{Member, RoomStats};
pub use server::WsServer;
pub use stats::WsStats;
