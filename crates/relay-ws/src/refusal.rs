//! The refusals of a client's requests that this crate decides, and the log lines of failures.

use std::fmt::Display;

use relay_core::{DocumentId, ErrorCode, StreamError};
use relay_events::ErrorBody;

use crate::text::excerpt;

/// The reply to a message on a topic that does not exist or is not joined. Phoenix gives no message with it.
pub(crate) const UNMATCHED_TOPIC: ErrorBody = ErrorBody::new("unmatched topic");

/// The refusal of a request that waited when the server began to stop.
pub(crate) fn closed() -> ErrorBody {
    ErrorBody::from_code(ErrorCode::Closed, "the server is stopping; connect again, then ask again")
}

/// A refusal of a malformed request.
pub(crate) fn invalid_request(message: impl Display) -> ErrorBody {
    ErrorBody::from_code(ErrorCode::InvalidRequest, message)
}

/// The refusal of an event that is neither a kind nor a command.
pub(crate) fn unknown_event(name: &str) -> ErrorBody {
    let message = format!("there is no request `{}` on this topic", excerpt(name, 64));
    ErrorBody::from_code(ErrorCode::UnknownEvent, message)
}

/// The refusal of a command from a member that takes no part in presence.
pub(crate) fn no_participant() -> ErrorBody {
    ErrorBody::from_code(
        ErrorCode::NotJoined,
        "this member takes no part in presence; join without `presence: false` to ask for this",
    )
}

/// The refusal of a command on a topic whose join ended by a failure.
pub(crate) fn join_ended() -> ErrorBody {
    ErrorBody::from_code(
        ErrorCode::NotJoined,
        "this join has ended, as a `phx_error` said; join again to ask for this",
    )
}

/// The refusal of a join beyond the limit of topics, with the reason that Phoenix gives it.
pub(crate) fn too_many_topics(max: usize) -> ErrorBody {
    let message = format!("this connection has joined {max} topics, the most it may; leave one first");
    ErrorBody::new("too many channels joined").message(message)
}

/// The refusal of a message that has more than `max` bytes.
pub(crate) fn message_too_large(event: &str, max: usize) -> ErrorBody {
    let event = excerpt(event, 64);
    let message = format!(
        "the message `{event}` has more than {max} bytes, the most that one message may have; send less at once"
    );
    ErrorBody::from_code(ErrorCode::TooLarge, message)
}

/// The reason in the message that ends a join, whose stream has ended with `cause`. A server failure is logged.
pub(crate) fn end_reason(cause: Option<&StreamError>, document: &DocumentId) -> ErrorCode {
    let Some(error) = cause else { return ErrorCode::Closed };
    log_failure("stream", document, error.code(), error);
    error.code()
}

/// Logs the cause of a [server failure](ErrorCode::is_server_failure), which the client does not get.
pub(crate) fn log_failure(request: &str, document: &DocumentId, code: ErrorCode, cause: &dyn Display) {
    if code.is_server_failure() {
        tracing::warn!(request, %document, reason = code.as_str(), error = %cause, "a request failed");
    }
}
