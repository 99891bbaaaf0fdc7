//! [`LockError`]: the refusal of a request about a lock.

use std::net::IpAddr;
use std::time::Duration;

use relay_core::{
    BudgetFull, CommandError, ErrorCode, FencingToken, LockScope, PublishError, TokenError,
    TooManyFromAddress, UserId,
};
use relay_events::PayloadError;

/// The refusal of a request about a lock.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another user holds a lock that overlaps. Wait for it, or try again later.
    #[error(
        "{wanted} cannot be locked: {scope} is locked by `{holder}`; wait for it with `wait_ms`, or try again later"
    )]
    Locked {
        /// The requested scope.
        wanted: LockScope,
        /// The scope that is locked.
        scope: LockScope,
        /// The user who holds the lock.
        holder: UserId,
    },
    /// The scope is free, and another user waits for a scope that overlaps.
    #[error(
        "{wanted} cannot be locked: `{first}` waits for {scope} already; wait too with `wait_ms`, or try again later"
    )]
    Awaited {
        /// The requested scope.
        wanted: LockScope,
        /// The scope that the other user waits for.
        scope: LockScope,
        /// The other user.
        first: UserId,
    },
    /// The time to wait is over. Try again.
    #[error("{wanted} did not become free within {} ms: `{holder}` holds {scope} or was first to wait for it; try again", wait.as_millis())]
    WaitTimeout {
        /// The requested scope.
        wanted: LockScope,
        /// The longest wait of the request.
        wait: Duration,
        /// The scope that stood in the way.
        scope: LockScope,
        /// The user who stood in the way.
        holder: UserId,
    },
    /// The user holds no lock with this token: the lock has ended, or belongs to another user. Acquire it again.
    #[error("you hold no lock with token {token} any more; acquire it again")]
    Stale {
        /// The token.
        token: FencingToken,
    },
    /// The requested lease is too short or too long.
    #[error("a lease of {} ms is not possible; ask for 1 to {} ms", ttl.as_millis(), max.as_millis())]
    InvalidTtl {
        /// The requested lease.
        ttl: Duration,
        /// The longest lease.
        max: Duration,
    },
    /// The time to wait is too long.
    #[error("a request cannot wait for {} ms; ask for at most {} ms", wait.as_millis(), max.as_millis())]
    InvalidWait {
        /// The requested wait.
        wait: Duration,
        /// The longest wait.
        max: Duration,
    },
    /// The document has as many locks as the limit allows. Release some, or wait until some end.
    #[error("the document has {max} locks, the most that are allowed; release some, or try again later")]
    TooManyLocks {
        /// The limit.
        max: usize,
    },
    /// The clients of the address have as many locks of the document, and requests for them, as the limit allows. Release some,
    /// or try again later.
    #[error(
        "clients from {address} have {max} locks of the document, the most that are allowed; release some, or try again later"
    )]
    TooManyLocksOfAddress {
        /// The limit.
        max: usize,
        /// The address.
        address: IpAddr,
    },
    /// The document has as many requests that wait as the limit allows. Try again later.
    #[error("{max} requests wait for locks of the document, the most that are allowed; try again later")]
    TooManyWaiters {
        /// The limit.
        max: usize,
    },
    /// The server has locks in as many documents as the limit allows. Try again later.
    #[error("{max} documents have locks, the most that are allowed; try again later")]
    TooManyDocuments {
        /// The limit.
        max: usize,
    },
    /// The clients of the address have locks in as many documents as the limit allows. Release some, or try again later.
    #[error("the document cannot be locked: {0}")]
    TooManyDocumentsOfAddress(#[from] TooManyFromAddress),
    /// The lock, or the request for it, has no space in memory. Try again later.
    #[error(transparent)]
    NoMemory(#[from] BudgetFull),
    /// The document's locks change faster than their changes are published. Try again later.
    #[error(
        "{max} changes of the document's locks wait to be published, the most that are allowed; try again later"
    )]
    Overloaded {
        /// The limit.
        max: usize,
    },
    /// The change could not be published as an event. An acquired lock was released again. A lease was prolonged all the same,
    /// without an event. A released lock is released.
    #[error("the change of the lock could not be published: {0}")]
    Unpublished(#[source] PublishError),
    /// The change cannot be written as an event.
    #[error(transparent)]
    Unwritable(#[from] PayloadError),
    /// The source of fencing tokens failed. Its error is for operators.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// The user left the document while the request waited. Join again before asking.
    #[error("the request has ended: its user has left the document; join again, then ask again")]
    UserGone,
    /// The server is stopping: all locks have ended.
    #[error("the server is stopping and gives out no more locks")]
    Closed,
}

impl LockError {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Locked { .. } | Self::Awaited { .. } => ErrorCode::Locked,
            Self::WaitTimeout { .. } => ErrorCode::WaitTimeout,
            Self::Stale { .. } => ErrorCode::StaleLock,
            Self::InvalidTtl { .. } | Self::InvalidWait { .. } => ErrorCode::InvalidRequest,
            Self::TooManyLocks { .. } | Self::TooManyLocksOfAddress { .. } => ErrorCode::TooManyLocks,
            Self::TooManyWaiters { .. } => ErrorCode::TooManyWaiters,
            Self::TooManyDocuments { .. } => ErrorCode::TooManyDocuments,
            Self::TooManyDocumentsOfAddress(error) => error.code(),
            Self::Overloaded { .. } | Self::NoMemory(_) => ErrorCode::Overloaded,
            Self::Unpublished(error) => error.code(),
            Self::Unwritable(_) | Self::Tokens(_) => ErrorCode::LogFailed,
            Self::UserGone => ErrorCode::NotJoined,
            Self::Closed => ErrorCode::Closed,
        }
    }

    /// The user who stands in the way, where one does.
    pub const fn holder(&self) -> Option<&UserId> {
        match self {
            Self::Locked { holder, .. } | Self::WaitTimeout { holder, .. } => Some(holder),
            Self::Awaited { first, .. } => Some(first),
            _ => None,
        }
    }
}

impl From<LockError> for CommandError {
    fn from(error: LockError) -> Self {
        Self::new(error.code(), error.to_string()).holder(error.holder().cloned())
    }
}
