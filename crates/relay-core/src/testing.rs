//! For tests: a log in memory that plays the disk, and the suite that every [`EventLog`](crate::EventLog) must pass.

mod log_suite;
mod memory_log;

pub use log_suite::log_suite;
pub use memory_log::MemoryLog;
