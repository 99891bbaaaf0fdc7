//! Delivery of queued events: order, attempts, retries, dead letters and replays, all of which survive a crash.

mod attempt;
pub(crate) mod deps;
pub(crate) mod dropped_offsets;
pub(crate) mod engine;
mod event_rate;
pub(crate) mod held_events;
pub(crate) mod loss_report;
mod needed_offsets;
mod partition_queues;
pub(crate) mod pool;
pub(crate) mod replay;
pub(crate) mod selection;
pub(crate) mod state;

pub(crate) use self::attempt::LOG_RETRY;
