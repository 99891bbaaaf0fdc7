//! Tests of the values, the commands and the testing doubles of `relay-core`, through its public interface.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod commands;
mod doubles;
mod values;
