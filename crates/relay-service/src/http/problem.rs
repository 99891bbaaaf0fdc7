//! Errors as HTTP clients see them: a status, a stable `reason`, and a `message` that says what to do.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use relay_core::{
    CommandError, ErrorCode, InvalidId, JoinError, LogError, PublishError, Seq, SubscribeError, UserId,
};
use relay_events::json::JsonError;
use serde::Serialize;

use super::outcomes::Reason;

/// Why a request was not done.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(skip)]
    status: StatusCode,
    reason: &'static str,
    message: String,
    /// Where what is kept begins, when the events that were asked for are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_seq: Option<Seq>,
    /// The user who stands in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<UserId>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), first_seq: None, holder: None }
    }

    pub(crate) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "closed", "the server is stopping; come back in a moment")
    }

    /// The problem that `code` is over HTTP.
    fn of(code: ErrorCode, message: String) -> Self {
        let status = match code {
            ErrorCode::UnknownEvent | ErrorCode::InvalidPayload => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::Overloaded | ErrorCode::TooManyLocks | ErrorCode::TooManyWaiters => {
                StatusCode::TOO_MANY_REQUESTS
            }
            ErrorCode::IdConflict | ErrorCode::StaleLock => StatusCode::CONFLICT,
            ErrorCode::Locked | ErrorCode::WaitTimeout => StatusCode::LOCKED,
            ErrorCode::ReservedEvent => StatusCode::FORBIDDEN,
            ErrorCode::NotJoined => StatusCode::NOT_FOUND,
            ErrorCode::Trimmed => StatusCode::GONE,
            ErrorCode::Closed | ErrorCode::LogFailed | ErrorCode::TooManyDocuments | ErrorCode::NotOwner => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, code.as_str(), message)
    }
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        Self::of(error.code(), error.to_string())
    }
}

impl From<InvalidId> for Problem {
    fn from(error: InvalidId) -> Self {
        Self::invalid_request(error.to_string())
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        Self { holder: error.holder().cloned(), ..Self::of(error.code(), error.to_string()) }
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid_request(format!("the path is malformed: {}", rejection.body_text()))
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Refused(error) => error.into(),
            error => Self::of(error.code(), error.to_string()),
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        Self { holder: error.holder, ..Self::of(error.code, error.message) }
    }
}

impl From<SubscribeError> for Problem {
    fn from(error: SubscribeError) -> Self {
        let first_seq = match &error {
            SubscribeError::Log(LogError::Trimmed { first, .. }) => Some(*first),
            _ => None,
        };
        Self { first_seq, ..Self::of(error.code(), error.to_string()) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let later = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let reason = Reason(self.reason);
        let mut response = (self.status, Json(self)).into_response();
        response.extensions_mut().insert(reason);
        if later {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use relay_core::DocumentId;

    use super::*;

    #[track_caller]
    fn check(problem: impl Into<Problem>, status: u16, reason: &str) {
        let problem = problem.into();
        assert_eq!((problem.status.as_u16(), problem.reason), (status, reason));
    }

    #[test]
    fn every_documented_reason_has_its_status() {
        let document = DocumentId::new("notes").unwrap();
        let unknown = relay_events::kind("no.such.kind").unwrap_err();
        check(JsonError::from(unknown), 422, "unknown_event");
        check(JsonError::Malformed("not JSON".to_owned()), 400, "invalid_request");
        check(PublishError::TooLarge { bytes: 2, max: 1 }, 413, "too_large");
        check(
            PublishError::Overloaded { document: document.clone(), waited: Duration::ZERO },
            429,
            "overloaded",
        );
        check(PublishError::Closed, 503, "closed");
        check(PublishError::TooManyDocuments { open: 1 }, 503, "too_many_documents");
        check(PublishError::Log(LogError::Corrupt { detail: String::new() }), 503, "log_failed");
        check(SubscribeError::Log(LogError::Trimmed { document, first: Seq::FIRST }), 410, "trimmed");
    }

    #[test]
    fn who_may_try_again_is_told_when() {
        let response = Problem::from(PublishError::Closed).into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let response = Problem::invalid_request("no").into_response();
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
}
