//! The tests of the router through its public API, as one program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

mod dead_letters;
mod delivery;
mod dry_runs;
mod failures;
mod loops;
mod losses;
mod missing_offsets;
mod order_model;
mod panics;
mod rules_conditions;
mod rules_documents;
mod rules_model;
mod scheduling;
mod support;
mod waiting_events;
mod waiting_model;
