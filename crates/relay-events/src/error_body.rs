//! [`ErrorBody`]: the JSON form of a refusal, the same in every protocol.
//!
//! It is the `response` of a WebSocket error reply, the body of an HTTP error, and the data of the last server-sent event.

use std::fmt::Display;

use relay_core::{
    CommandError, ErrorCode, JoinError, LogError, PublishError, Seq, StreamError, SubscribeError, UserId,
};
use serde::Serialize;

use crate::json::JsonError;
use crate::vocabulary::PayloadError;

/// The most characters of a message, which may quote text from the client.
const MAX_MESSAGE_CHARS: usize = 512;
/// The time after which an overloaded server may be asked again. The HTTP side says the same as `Retry-After`.
const RETRY_AFTER_MS: u64 = 1000;

/// The JSON form of a refusal.
///
/// ```
/// use relay_core::ErrorCode;
/// use relay_events::ErrorBody;
///
/// let body = ErrorBody::from_code(ErrorCode::Overloaded, "the queue is full; try again later");
/// assert_eq!(
///     serde_json::to_string(&body)?,
///     r#"{"reason":"overloaded","message":"the queue is full; try again later","retry_after_ms":1000}"#
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ErrorBody {
    /// The stable name of the refusal, for programs: the text form of an [`ErrorCode`], or a name of the protocol's own.
    pub reason: &'static str,
    /// The message for people: what is wrong, with which value, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The first seq that is kept, when the events that were asked for are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seq: Option<Seq>,
    /// The user whose lock stands in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<UserId>,
    /// The time to wait before trying again, in milliseconds, when the server was overloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ErrorBody {
    /// A body with a reason alone.
    pub const fn new(reason: &'static str) -> Self {
        Self { reason, message: None, first_seq: None, holder: None, retry_after_ms: None }
    }

    /// The body of a refusal of the kind `code`, with its first 512 characters of `cause` as the message.
    ///
    /// After a [server failure](ErrorCode::is_server_failure) the message is a general one, since the cause is not for
    /// clients. The caller logs it.
    pub fn from_code(code: ErrorCode, cause: impl Display) -> Self {
        let retry_after_ms = (code == ErrorCode::Overloaded).then_some(RETRY_AFTER_MS);
        let body = Self { retry_after_ms, ..Self::new(code.as_str()) };
        match code {
            ErrorCode::LogFailed => body.message(
                "the log does not take or give events; try again later, or ask the server's operator",
            ),
            ErrorCode::Internal => {
                body.message("the server failed to answer; try again, or ask its operator")
            }
            _ => body.message(cause.to_string().chars().take(MAX_MESSAGE_CHARS).collect::<String>()),
        }
    }

    /// Sets the message.
    #[must_use]
    pub fn message(self, message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..self }
    }
}

impl From<&PublishError> for ErrorBody {
    fn from(error: &PublishError) -> Self {
        Self { holder: error.holder().cloned(), ..Self::from_code(error.code(), error) }
    }
}

impl From<&SubscribeError> for ErrorBody {
    fn from(error: &SubscribeError) -> Self {
        let first_seq = match error {
            SubscribeError::Log(LogError::Trimmed { first, .. }) => Some(*first),
            _ => None,
        };
        Self { first_seq, ..Self::from_code(error.code(), error) }
    }
}

impl From<&StreamError> for ErrorBody {
    fn from(error: &StreamError) -> Self {
        Self::from_code(error.code(), error)
    }
}

impl From<&JoinError> for ErrorBody {
    fn from(error: &JoinError) -> Self {
        match error {
            JoinError::Refused(error) => error.into(),
            error => Self::from_code(error.code(), error),
        }
    }
}

impl From<&CommandError> for ErrorBody {
    fn from(error: &CommandError) -> Self {
        Self { holder: error.holder.clone(), ..Self::from_code(error.code, error) }
    }
}

impl From<PayloadError> for ErrorBody {
    fn from(error: PayloadError) -> Self {
        Self::from_code(error.code(), error)
    }
}

impl From<JsonError> for ErrorBody {
    fn from(error: JsonError) -> Self {
        Self::from_code(error.code(), error)
    }
}
