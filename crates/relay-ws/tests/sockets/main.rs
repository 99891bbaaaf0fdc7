//! The server over real sockets, as clients see it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

mod attending;
mod bad_input;
mod connecting;
mod ending;
mod joining;
mod pushing;
mod replies;
mod support;
