//! Tests of the server, its codec and its framing through the public interface. The server is tested over real sockets.
#![allow(clippy::disallowed_methods, reason = "a test ends with its tasks")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

mod attending;
mod bad_input;
mod codec;
mod connecting;
mod ending;
mod framing;
mod joining;
mod memory;
mod pushing;
mod replies;
mod rooms;
mod scripted;
mod shards;
mod support;
mod turns;
