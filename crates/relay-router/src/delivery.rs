//! Delivery that survives: lanes that keep each document's order, attempts, retries, dead letters, replays.

pub(crate) mod attempt;
pub(crate) mod dead;
pub(crate) mod engine;
pub(crate) mod entry;
pub(crate) mod lanes;
pub(crate) mod pool;
pub(crate) mod replay;

pub use self::entry::{Attempt, DeadLetter, DeadLetterId, DeadReason, InvalidDeadLetterId};
pub(crate) use self::entry::{RouteId, RouteKey, Waiting};
