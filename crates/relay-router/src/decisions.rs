//! The decision log: why each event went where it went.
//!
//! Whoever decides hands a [`Decision`] over without ever waiting: a thread of the log's own explains it, keeps it in a
//! bounded memory, tells those who follow, and writes it to files that are rotated, if that is wanted. What comes faster
//! than that thread works is dropped and counted.

mod config;
mod files;
mod log;
mod record;

pub use self::config::{DecisionLogConfig, DecisionLogError};
pub use self::log::{DecisionLog, DecisionLogStats, DecisionStream, DecisionStreamItem};
pub(crate) use self::record::Decision;
pub use self::record::{DecisionFilter, DecisionRecord, Outcome};

#[cfg(test)]
mod tests;
