//! WebSocket connections for collaborative documents. They speak Phoenix Channels (serializer 2.0.0).
//!
//! [`WsServer::upgrade`] answers a request and serves the connection. The pushes of clients go to an
//! [`EventSink`](relay_core::EventSink), and the events of their documents come from an
//! [`EventSource`](relay_core::EventSource). [`codec`] has the protocol without any I/O, and [`framing`] the frames of
//! WebSocket.
//!
#![doc = include_str!("../README.md")]

mod admission;
mod close;
pub mod codec;
mod config;
mod connection;
mod connection_limiter;
mod document_stream;
mod frame_batch;
mod frame_writer;
pub mod framing;
mod handshake;
mod joined_topics;
mod member_list;
mod membership_counts;
mod parts;
mod refusal;
mod rejection;
mod request;
mod room;
mod run_queue;
mod schedule;
mod send_queue;
mod server;
mod shard;
mod shard_context;
mod shard_queue;
mod shard_resources;
mod socket;
mod stats;
mod text;
mod timer_wheel;

pub use admission::ClientAddress;
pub use config::{OriginPolicy, WsConfig};
pub use connection_limiter::{ConnectionLimiter, ConnectionLimits, ConnectionPermit, LimitReached};
pub use parts::WsParts;
pub use server::WsServer;
pub use socket::{ByteStream, Transport, TransportUnwrapper};
pub use stats::{ConnectionStats, Member, RoomStats, ShardStats, WsStats};
