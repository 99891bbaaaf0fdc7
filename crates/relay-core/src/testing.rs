//! Doubles and conformance suites for tests: a log in memory that outlives a process as a disk does, an ownership that a
//! test directs, and for each trait of this crate the suite that every implementation must pass.

mod checked;
mod clocks;
mod closed_sink;
mod log_suite;
mod manual_ownership;
mod memory_log;
mod ownership_suite;
mod presence_suite;
mod pubsub_suite;
mod request_suites;
mod small_suites;
mod waiting;

pub use checked::checked;
pub use clocks::{FnClock, ManualClock};
pub use closed_sink::ClosedSink;
pub use log_suite::{DAMAGED, damaged_log_suite, fill_to_be_damaged, hold_suite, log_suite};
pub use manual_ownership::ManualOwnership;
pub use memory_log::{AppendFault, MemoryLog};
pub use ownership_suite::{exclusive_ownership_suite, ownership_loss_suite, ownership_suite};
pub use presence_suite::presence_suite;
pub use pubsub_suite::pubsub_suite;
pub use request_suites::{CommandCase, command_suite, vocabulary_suite};
pub use small_suites::{clock_suite, probe_suite, sequencer_suite, target_suite, token_suite};
