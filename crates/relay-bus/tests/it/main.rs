//! Tests of the bus through its public interface.
#![allow(clippy::disallowed_methods, reason = "a test ends with its tasks")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod channels;
mod config;
mod memory;
mod model;
mod multi_subscription;
mod ownership;
mod pace;
mod stages;
mod suite;
mod support;
mod time_to_live;
