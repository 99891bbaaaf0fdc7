//! Tests of the vocabulary and its wire forms through the public interface.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod golden;
mod round_trip;
mod support;
mod vocabulary;
