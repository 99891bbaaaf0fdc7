//! [`ErrorBody`]: the JSON form of a refusal, the same in every protocol.
//!
//! It is the `response` of a WebSocket error reply, the body of an HTTP error, and the data of the last server-sent event.

use relay_core::{CommandError, ErrorCode, Seq, UserId};
use serde::Serialize;

/// The JSON form of a refusal.
///
/// ```
/// use relay_core::ErrorCode;
/// use relay_events::ErrorBody;
///
/// let body = ErrorBody::from_code(ErrorCode::Overloaded, "the queue is full; try again later");
/// assert_eq!(
///     serde_json::to_string(&body)?,
///     r#"{"reason":"overloaded","message":"the queue is full; try again later"}"#
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
}

impl ErrorBody {
    /// A body with a reason alone.
    pub const fn new(reason: &'static str) -> Self {
        Self { reason, message: None, first_seq: None, holder: None }
    }

    /// The body of a refusal of the kind `code`.
    pub fn from_code(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(code.as_str()).message(message)
    }

    /// Sets the message.
    #[must_use]
    pub fn message(self, message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..self }
    }

    /// Sets the first seq that is kept.
    #[must_use]
    pub fn first_seq(self, first_seq: Option<Seq>) -> Self {
        Self { first_seq, ..self }
    }

    /// Sets the user whose lock stands in the way.
    #[must_use]
    pub fn holder(self, holder: Option<UserId>) -> Self {
        Self { holder, ..self }
    }
}

impl From<CommandError> for ErrorBody {
    fn from(error: CommandError) -> Self {
        Self::from_code(error.code, error.message).holder(error.holder)
    }
}
