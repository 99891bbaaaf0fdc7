//! Why somebody does not get, keep or give back a lock.

use std::time::Duration;

use relay_core::{CommandError, ErrorCode, FencingToken, LockScope, PublishError, TokenError, UserId};
use relay_events::PayloadError;

/// Why a request about a lock was refused.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds a lock that overlaps. Wait for it, or try again later.
    #[error(
        "{wanted} cannot be locked: {scope} is locked by `{holder}`; wait for it with `wait_ms`, or try again later"
    )]
    Locked {
        /// What was asked for.
        wanted: LockScope,
        /// What is locked.
        scope: LockScope,
        /// Who holds it.
        holder: UserId,
    },
    /// Nobody holds it, but somebody asked before for something that overlaps, and waits for it.
    #[error(
        "{wanted} cannot be locked: `{first}` waits for {scope} already; wait too with `wait_ms`, or try again later"
    )]
    Awaited {
        /// What was asked for.
        wanted: LockScope,
        /// What the other waits for.
        scope: LockScope,
        /// Who was first.
        first: UserId,
    },
    /// The time to wait is over. Try again.
    #[error("{wanted} did not become free within {} ms: `{holder}` holds {scope} or was first to wait for it; try again", wait.as_millis())]
    WaitTimeout {
        /// What was asked for.
        wanted: LockScope,
        /// How long the request would wait.
        wait: Duration,
        /// What stood in the way.
        scope: LockScope,
        /// Who stood in the way.
        holder: UserId,
    },
    /// The user holds no lock with this token: it has ended, or it is not theirs. Acquire it again.
    #[error("you hold no lock with token {token} any more; acquire it again")]
    Stale {
        /// The token.
        token: FencingToken,
    },
    /// The lease that is asked for is too short or too long.
    #[error("a lease of {} ms is not possible; ask for 1 to {} ms", ttl.as_millis(), max.as_millis())]
    InvalidTtl {
        /// What was asked for.
        ttl: Duration,
        /// The longest that is possible.
        max: Duration,
    },
    /// The time to wait is too long.
    #[error("a request cannot wait for {} ms; ask for at most {} ms", wait.as_millis(), max.as_millis())]
    InvalidWait {
        /// What was asked for.
        wait: Duration,
        /// The longest that is possible.
        max: Duration,
    },
    /// The document has as many locks as it may. Release some, or wait until some end.
    #[error("the document has {max} locks, the most that are allowed; release some, or try again later")]
    TooManyLocks {
        /// The limit.
        max: usize,
    },
    /// As many requests wait in the document as may. Try again later.
    #[error("{max} requests wait for locks of the document, the most that are allowed; try again later")]
    TooManyWaiters {
        /// The limit.
        max: usize,
    },
    /// As many documents have locks as may. Try again later.
    #[error("{max} documents have locks, the most that are allowed; try again later")]
    TooManyDocuments {
        /// The limit.
        max: usize,
    },
    /// The document's locks change faster than the changes can be published. Try again later.
    #[error(
        "{max} changes of the document's locks wait to be published, the most that are allowed; try again later"
    )]
    Overloaded {
        /// The limit.
        max: usize,
    },
    /// The change could not be published as an event. An acquired lock was released again; a lease was prolonged all the
    /// same, but nobody else knows; a released lock is released.
    #[error("the change of the lock could not be published: {0}")]
    Unpublished(#[source] PublishError),
    /// The change cannot be written as an event.
    #[error(transparent)]
    Unwritable(#[from] PayloadError),
    /// There are no fencing tokens to be had. Operators see why.
    #[error(transparent)]
    Tokens(#[from] TokenError),
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
            Self::TooManyLocks { .. } => ErrorCode::TooManyLocks,
            Self::TooManyWaiters { .. } => ErrorCode::TooManyWaiters,
            Self::TooManyDocuments { .. } => ErrorCode::TooManyDocuments,
            Self::Overloaded { .. } => ErrorCode::Overloaded,
            Self::Unpublished(error) => error.code(),
            Self::Unwritable(_) | Self::Tokens(_) => ErrorCode::LogFailed,
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
    /// What the client is told. Failures of the server's own storage are named and not explained: that is for operators.
    fn from(error: LockError) -> Self {
        let message = match error.code() {
            ErrorCode::LogFailed => {
                "the server cannot keep changes of locks at present; try again later".to_owned()
            }
            _ => error.to_string(),
        };
        Self::new(error.code(), message).holder(error.holder().cloned())
    }
}
