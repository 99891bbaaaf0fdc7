//! Delivery that survives: lanes that keep each document's order, attempts, retries, dead letters, replays.

pub(crate) mod attempt;
pub(crate) mod dead_letters;
pub(crate) mod engine;
pub(crate) mod event_rate;
pub(crate) mod partition_queues;
pub(crate) mod pool;
pub(crate) mod replay;
pub(crate) mod selection;
