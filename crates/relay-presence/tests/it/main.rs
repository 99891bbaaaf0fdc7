//! The tests of presence through its public API, as one program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by unwrapping it"
)]

mod leftovers;
mod locks;
mod locks_endings;
mod presence;
mod suites;
mod support;
