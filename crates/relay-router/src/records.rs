//! The values that the router's store keeps: routes, queued events, dead letters and replays.
//!
//! Their serialised form is on disk, so a field keeps its stored name for ever. The types hold data only: the store
//! writes and reads them, delivery decides with them.

mod dead_letter;
mod queued_event;
mod replay;
mod route;

pub(crate) use self::dead_letter::json_of;
pub use self::dead_letter::{DeadLetter, DeadLetterId, DeadReason, InvalidDeadLetterId};
pub use self::queued_event::Attempt;
pub(crate) use self::queued_event::{FailedAttempts, QueuedEvent, QueuedRecord, RequeuedBody, publisher_of};
pub use self::replay::{Replay, ReplayRequest, ReplayStart, ReplayState};
pub(crate) use self::route::{RouteId, RouteKey, RouteRecord, TargetSet};
