//! [`ErrorReply`]: the response of a reply that refuses a client's request.

use relay_core::{CommandError, ErrorCode, JoinError, PublishError, SubscribeError};
use relay_events::json::JsonError;
use relay_events::{ErrorBody, PayloadError};
use serde::Serialize;

use crate::text::excerpt;

/// The most characters of a message, which may quote text from the client.
const MAX_MESSAGE_CHARS: usize = 512;

/// The message for a failure of the log. The log's own message names files and disks; it is for operators.
const LOG_FAILED: &str = "the log does not take or give events at the moment; try again later";

/// The response of a reply that refuses a client's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct ErrorReply(ErrorBody);

impl ErrorReply {
    /// The reply to a message on a topic that does not exist or is not joined. Phoenix gives no message with it.
    pub(crate) const UNMATCHED_TOPIC: Self = Self(ErrorBody::new("unmatched topic"));

    /// The reason, for counters.
    pub(crate) const fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// A refusal of a malformed request.
    pub(crate) fn invalid_request(message: &impl ToString) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// The refusal of an event that is neither a kind nor a command.
    pub(crate) fn unknown_event(name: &str) -> Self {
        let name = excerpt(name, 64);
        Self::new(ErrorCode::UnknownEvent, &format!("there is no request `{name}` on this topic"))
    }

    /// The refusal of a command from a member that takes no part in presence.
    pub(crate) fn no_participant() -> Self {
        Self::new(
            ErrorCode::NotJoined,
            &"this member takes no part in presence; join without `presence: false` to ask for this",
        )
    }

    /// A defect of the server. Its log has the details.
    pub(crate) fn internal() -> Self {
        Self::new(ErrorCode::Internal, &"the server failed to answer; try again, or ask its operator")
    }

    /// The refusal of a join beyond the limit of topics, with the reason that Phoenix gives it.
    pub(crate) fn too_many_channels(max: usize) -> Self {
        let message = format!("this connection has joined {max} topics, the most it may; leave one first");
        Self(ErrorBody::new("too many channels joined").message(message))
    }

    fn new(code: ErrorCode, message: &impl ToString) -> Self {
        Self(ErrorBody::from_code(code, excerpt(&message.to_string(), MAX_MESSAGE_CHARS)))
    }
}

impl From<&PublishError> for ErrorReply {
    fn from(error: &PublishError) -> Self {
        match error.code() {
            code @ ErrorCode::LogFailed => Self::new(code, &LOG_FAILED),
            code => Self(Self::new(code, error).0.holder(error.holder().cloned())),
        }
    }
}

impl From<JoinError> for ErrorReply {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Refused(error) => error.into(),
            error => Self::new(error.code(), &error),
        }
    }
}

impl From<CommandError> for ErrorReply {
    fn from(error: CommandError) -> Self {
        Self(Self::new(error.code, &error).0.holder(error.holder))
    }
}

impl From<&SubscribeError> for ErrorReply {
    fn from(error: &SubscribeError) -> Self {
        match error.code() {
            code @ ErrorCode::LogFailed => Self::new(code, &LOG_FAILED),
            code => Self::new(code, error),
        }
    }
}

impl From<PayloadError> for ErrorReply {
    fn from(error: PayloadError) -> Self {
        Self::new(error.code(), &error)
    }
}

impl From<JsonError> for ErrorReply {
    fn from(error: JsonError) -> Self {
        Self::new(error.code(), &error)
    }
}
