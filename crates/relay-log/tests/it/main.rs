//! Tests of the embedded log through its public interface.
#![allow(clippy::disallowed_methods, reason = "a test ends with its tasks")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod common;
mod crash;
mod damage;
mod limits;
mod logged;
mod model;
mod recovery;
mod suite;
