//! Sessions of documents, presence that merges between servers, and exclusive locks with fencing tokens.
//!
#![doc = include_str!("../README.md")]
//!
//! [`LocalPresence`] is the whole; [`Locks`] work alone, too. A [`ReplicaDelta`] carries presence between servers. Fencing tokens
//! come from [`FileTokens`] or [`MemoryTokens`].

mod commands;
mod config;
mod crdt;
mod document;
mod documents;
mod flushing;
mod leftovers;
mod locks;
mod outbox;
mod presence;
mod presence_view;
mod publishing;
mod query;
mod session;
mod sharded;
mod state;
mod stats;
mod stream;
mod tokens;
mod tombstones;
mod version;

pub use commands::{GetSession, MoveCursor, UpdateState, Updated};
pub use config::PresenceConfig;
pub use crdt::ReplicaDelta;
pub use leftovers::LeftoversError;
pub use locks::{
    AcquireLock, AcquireRequest, LockChange, LockConfig, LockError, LockStats, Locks, Publication,
    ReleaseLock, RenewLock,
};
pub use presence::LocalPresence;
pub use query::{ParticipantInfo, SessionInfo, SessionQuery};
pub use session::{SessionCounters, SessionState};
pub use stats::PresenceStats;
pub use tokens::{FileTokens, MemoryTokens, TokenFileError};
