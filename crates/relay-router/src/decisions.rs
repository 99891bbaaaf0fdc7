//! The decision log: a record of where each event went, and why.
//!
//! Recording a `Decision` never waits. A thread explains the decision, keeps it in bounded memory, sends it
//! to followers, and optionally writes it to rotated files. Decisions that come faster than that are dropped
//! and counted.
//!
//! A decision about lost events is stored first, in the batch that takes the event from its queue, and then kept at once. The log of
//! the next run begins with the latest of them.

mod config;
mod files;
mod log;
mod record;

pub use self::config::{DecisionLogConfig, DecisionLogError};
pub use self::log::{DecisionLog, DecisionLogStats, DecisionStream, DecisionStreamItem};
pub(crate) use self::record::{DecidedEvent, Decision};
pub use self::record::{DecisionFilter, DecisionRecord, Gap, Outcome};

#[cfg(test)]
mod tests;
