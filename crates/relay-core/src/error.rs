//! Errors that several crates and every wire protocol share: [`ErrorCode`], [`CommandError`] and [`ConfigError`].

use std::fmt;

use serde::{Serialize, Serializer};

use crate::id::UserId;

macro_rules! error_codes {
    ($( $(#[$doc:meta])* $variant:ident = $text:literal, $class:ident; )*) => {
        /// The kind of a refusal, for programs to decide by. Its text form is the `reason` of the wire protocols, and the
        /// label of counters; it never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $( $(#[$doc])* $variant, )*
        }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &[Self] = &[$( Self::$variant, )*];

            /// The code's text form.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( Self::$variant => $text, )*
                }
            }

            /// The class of the code, which decides about its HTTP status.
            pub const fn class(self) -> ErrorClass {
                match self {
                    $( Self::$variant => ErrorClass::$class, )*
                }
            }
        }
    };
}

/// The class of an [`ErrorCode`]: the part of it that a client needs which does not know the code.
///
/// The enum is exhaustive: every edge must give every class a status, and the compiler finds the edge that does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// The request is malformed, and will be refused again.
    Malformed,
    /// The request is well-formed, and its content does not fit.
    Unprocessable,
    /// The request is larger than a limit.
    TooLarge,
    /// The client may not do this.
    Forbidden,
    /// The thing that the request names does not exist.
    NotFound,
    /// The request contradicts the state of the document.
    Conflict,
    /// Another user's lock stands in the way.
    Locked,
    /// The events that the request needs are no longer there.
    Gone,
    /// A limit is reached at the moment. The same request may succeed later.
    Busy,
    /// The server as a whole, or this server, cannot serve the request at the moment.
    Unavailable,
    /// The server has a defect.
    Failure,
}

impl ErrorCode {
    /// True for a failure of the server itself. Its cause names files, disks and defects: operators find it in the server's
    /// log, and no client gets it.
    pub const fn is_server_failure(self) -> bool {
        matches!(self, Self::Internal | Self::LogFailed)
    }
}

error_codes! {
    /// The server is stopping.
    Closed = "closed", Unavailable;
    /// The event's id belongs to another event of the document.
    IdConflict = "id_conflict", Conflict;
    /// The server found a defect in itself.
    Internal = "internal", Failure;
    /// The payload does not fit its kind.
    InvalidPayload = "invalid_payload", Unprocessable;
    /// A request, a draft, a state or an id is malformed.
    InvalidRequest = "invalid_request", Malformed;
    /// A reader fell too far behind.
    Lagged = "lagged", Gone;
    /// Another user's lock stands in the way.
    Locked = "locked", Locked;
    /// The log does not take or give events.
    LogFailed = "log_failed", Unavailable;
    /// The connection has not joined the document.
    NotJoined = "not_joined", NotFound;
    /// This server does not own the document: another one does, or it is not known which one.
    NotOwner = "not_owner", Unavailable;
    /// A queue stayed full.
    Overloaded = "overloaded", Busy;
    /// Only the server publishes events of this kind.
    ReservedEvent = "reserved_event", Forbidden;
    /// The lock that a token names has ended, or does not cover the edit.
    StaleLock = "stale_lock", Conflict;
    /// A payload, a state or an event is larger than its limit.
    TooLarge = "too_large", TooLarge;
    /// The number of open documents has reached its limit.
    TooManyDocuments = "too_many_documents", Unavailable;
    /// The document has as many locks as the limit allows.
    TooManyLocks = "too_many_locks", Busy;
    /// The number of requests that wait for the document's locks has reached its limit.
    TooManyWaiters = "too_many_waiters", Busy;
    /// The events that were asked for are no longer kept.
    Trimmed = "trimmed", Gone;
    /// There is no event kind and no command of this name.
    UnknownEvent = "unknown_event", Unprocessable;
    /// The lock did not become free in time.
    WaitTimeout = "wait_timeout", Locked;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The refusal of a participant's [command](crate::Command).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct CommandError {
    /// The kind of the refusal.
    pub code: ErrorCode,
    /// The message for people: what was wrong, with which value, and what to do. After a
    /// [server failure](ErrorCode::is_server_failure) it is the cause, for operators.
    pub message: String,
    /// The user who stands in the way, where a lock does.
    pub holder: Option<UserId>,
}

impl CommandError {
    /// A refusal that no other user causes.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), holder: None }
    }

    /// Names the user who stands in the way.
    pub fn holder(mut self, holder: Option<UserId>) -> Self {
        self.holder = holder;
        self
    }
}

/// A configuration value that breaks its rule. Every configuration struct of Relay is validated once, when its owner is
/// made, and reports the first such value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}{}", self.bound())]
#[non_exhaustive]
pub struct ConfigError {
    /// The field, by its path from the struct that was validated, for instance `retention.max_events`.
    pub field: String,
    /// The rule, as the end of a sentence that the field begins, for instance `is 0; it must be at least 1`.
    pub rule: String,
    /// The other field that is the bound, with its value.
    other: Option<(String, String)>,
}

impl ConfigError {
    /// An error about `field`, which breaks `rule`.
    pub fn new(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { field: field.into(), rule: rule.into(), other: None }
    }

    /// An error about `field`, whose value is more than that of `other`, a field of the same struct.
    pub fn exceeds(
        (field, value): (&str, impl fmt::Display),
        (other, bound): (&str, impl fmt::Display),
    ) -> Self {
        let rule = format!("is {value}; it must be at most ");
        Self { field: field.to_owned(), rule, other: Some((other.to_owned(), bound.to_string())) }
    }

    fn bound(&self) -> String {
        self.other.as_ref().map_or_else(String::new, |(other, value)| format!("`{other}`, which is {value}"))
    }

    /// The same error seen from a struct that holds the validated one in its field `parent`.
    pub fn within(self, parent: &str) -> Self {
        let within = |field| format!("{parent}.{field}");
        let Self { field, rule, other } = self;
        Self { field: within(field), rule, other: other.map(|(other, value)| (within(other), value)) }
    }
}
