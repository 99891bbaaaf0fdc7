//! The types and traits that all of Relay's crates share: [ids](DocumentId), the [event envelope](Event), positions
//! ([`Seq`], [`Epoch`], [`Offset`]), [clocks](Clock), [commands](Command), and the traits through which the crates meet.
//!
//! This crate runs nothing and does no I/O, and it knows no wire format: it has values, rules about them, and contracts.
//! With the feature `testing` it has a suite for each trait, which every implementation must pass.
//!
//! A publisher makes a [`Draft`], a vocabulary [checks](CheckedDraft) it, and the owner of the document's order turns it into
//! an [`Event`]. [`SubscribeAck::decide`] says where a subscriber continues that was away:
//!
//! ```
//! use relay_core::{Epoch, Head, SubscribeAck, Recovery, ResetReason, Seq, StartPosition};
//!
//! let epoch = Epoch::from_u64(7);
//! let head = Head::new(epoch, Seq::new(11), Seq::new(50));
//!
//! // A client that has everything up to 40 gets 41 to 50, then live events.
//! let ack = SubscribeAck::decide(StartPosition::After { epoch: Some(epoch), seq: Seq::new(40) }, head);
//! assert_eq!((ack.position, ack.recovery), (Seq::new(40), Recovery::Recovered));
//!
//! // One that has only 5 cannot be given 6 to 10 any more, and is told so.
//! let ack = SubscribeAck::decide(StartPosition::After { epoch: Some(epoch), seq: Seq::new(5) }, head);
//! assert_eq!(ack.recovery, Recovery::Reset(ResetReason::Trimmed));
//! ```

mod actor;
mod checked;
mod command;
mod document_limiter;
mod encoding;
mod error;
mod event;
mod id;
mod kind;
mod lock;
mod log;
mod memory;
mod metadata;
mod ownership;
mod payload;
mod position;
mod presence;
mod pubsub;
mod sequencer;
mod subscribe_ack;
mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod time;
mod tokens;

pub use actor::Actor;
pub use checked::{CheckedDraft, Vocabulary};
pub use command::{Caller, Command, CommandHandler, Commands, DuplicateCommand, Reply, RunningCommand};
pub use document_limiter::{DocumentLimiter, DocumentPermit, TooManyFromAddress};
pub use encoding::{EncodingCache, FormatId};
pub use error::{CommandError, ConfigError, ErrorClass, ErrorCode};
pub use event::{Draft, Event};
pub use id::{ConnectionId, DocumentId, EventId, InvalidId, NodeId, Region, ServiceName, SessionId, UserId};
pub use kind::{DeliveryClass, Kind};
pub use lock::{FencingToken, InvalidClaim, Lease, LockClaim, LockScope};
pub use log::{EventLog, Head, LogError, LogStats, ReadLimit, Retention};
pub use memory::{
    BudgetFull, MemoryBudget, MemoryLimits, MemoryPurpose, MemoryShare, Reservation, ShareKind,
};
pub use metadata::{Metadata, TraceContext};
pub use ownership::{NotOwner, Ownership, OwnershipError, SoleOwner, Tenure};
pub use payload::{Absence, JsonObject, JsonText, NotAnObject, Payload};
pub use position::{Epoch, Offset, Seq};
pub use presence::{
    Activity, JoinError, JoinOptions, Joined, LeaveReason, Membership, Presence, PresenceChange,
    PresenceDiff, PresenceEntry, PresenceId, PresenceSnapshot, PresenceStream,
};
pub use pubsub::{
    EventSink, EventSource, EventStream, PublishAck, PublishError, StreamError, StreamPosition,
    SubscribeError,
};
pub use sequencer::{Place, Sequencer};
pub use subscribe_ack::{Recovery, ResetReason, StartPosition, SubscribeAck};
pub use target::{Delivery, DeliveryError, FailureKind, HealthProbe, ProbeFailure, Target};
pub use time::{Clock, Monotonic, Now, SystemClock, Timestamp};
pub use tokens::{TokenError, TokenSource};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
