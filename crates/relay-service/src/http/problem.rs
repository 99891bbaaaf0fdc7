//! [`Problem`]: an error as HTTP clients see it, a status and an [`ErrorBody`].

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use relay_core::{CommandError, ErrorCode, InvalidId, JoinError, LogError, PublishError, SubscribeError};
use relay_events::ErrorBody;
use relay_events::json::JsonError;

/// The refusal of a request.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    body: ErrorBody,
}

/// An extension of the response to a refused request, for counting it: the reason of the [`Problem`].
#[derive(Debug, Clone, Copy)]
pub(super) struct RefusalReason(pub(super) &'static str);

impl Problem {
    pub(super) fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, body: ErrorBody::new(reason).message(message) }
    }

    pub(super) fn invalid_request(message: impl Into<String>) -> Self {
        Self::of(ErrorCode::InvalidRequest, message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::of(ErrorCode::TooLarge, message)
    }

    pub(super) fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    pub(super) fn stopping() -> Self {
        Self::of(ErrorCode::Closed, "the server is stopping; come back in a moment")
    }

    /// The refusal of a request that failed by a defect of the server.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::of(ErrorCode::Internal, message)
    }

    /// Returns the body, for a batch that holds it as one of several outcomes.
    pub(super) fn into_body(self) -> ErrorBody {
        self.body
    }

    /// The problem for `code`, with the status that belongs to it.
    fn of(code: ErrorCode, message: impl Into<String>) -> Self {
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
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        Self { status, body: ErrorBody::from_code(code, message) }
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
        let Self { status, body } = Self::of(error.code(), error.to_string());
        Self { status, body: body.holder(error.holder().cloned()) }
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
        let status = Self::of(error.code, "").status;
        Self { status, body: error.into() }
    }
}

impl From<SubscribeError> for Problem {
    fn from(error: SubscribeError) -> Self {
        let first_seq = match &error {
            SubscribeError::Log(LogError::Trimmed { first, .. }) => Some(*first),
            _ => None,
        };
        let Self { status, body } = Self::of(error.code(), error.to_string());
        Self { status, body: body.first_seq(first_seq) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let later = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let reason = RefusalReason(self.body.reason);
        let mut response = (self.status, Json(self.body)).into_response();
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

    use relay_core::{DocumentId, Seq};

    use super::*;

    #[track_caller]
    fn check(problem: impl Into<Problem>, status: u16, reason: &str) {
        let problem = problem.into();
        assert_eq!((problem.status.as_u16(), problem.body.reason), (status, reason));
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
