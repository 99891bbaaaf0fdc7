//! Who is in a document: sessions, presence that merges between servers, and exclusive locks with fencing tokens.
//!
#![doc = include_str!("../README.md")]
//!
//! [`LocalPresence`] is all of it together, and [`Locks`] work alone, too. What merges is in [`crdt`]; where a session stands is a
//! [`SessionState`]; tokens come from [`FileTokens`] or [`MemoryTokens`].

mod commands;
mod config;
pub mod crdt;
mod document;
mod documents;
mod flushing;
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

pub use commands::{GetSession, MoveCursor, UpdateState, Updated};
pub use config::PresenceConfig;
pub use locks::{
    AcquireLock, AcquireRequest, LockChange, LockConfig, LockError, LockStats, Locks, Publication,
    ReleaseLock, RenewLock,
};
pub use presence::LocalPresence;
pub use query::{Participant, SessionInfo, SessionQuery};
pub use session::{IllegalTransition, SessionCounters, SessionState, Transition};
pub use stats::PresenceStats;
pub use tokens::{FileTokens, MemoryTokens, TokenFileError};
