//! [`Problem`]: an error as HTTP clients see it, a status and an [`ErrorBody`].
//!
//! The cause of a failure of the server is logged here, in the span of the request, and is not part of the answer.

use std::fmt::Display;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use relay_core::{
    BudgetFull, CommandError, ErrorClass, ErrorCode, InvalidId, JoinError, PublishError, StreamError,
    SubscribeError, TooManyFromAddress,
};
use relay_events::json::JsonError;
use relay_events::{ErrorBody, PayloadError};
use relay_tasks::TaskFailure;

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

    pub(super) fn invalid_request(message: impl Display) -> Self {
        Self::of(ErrorCode::InvalidRequest, message)
    }

    pub(super) fn too_large(message: impl Display) -> Self {
        Self::of(ErrorCode::TooLarge, message)
    }

    pub(super) fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    pub(super) fn stopping() -> Self {
        Self::of(ErrorCode::Closed, "the server is stopping; come back in a moment")
    }

    /// The refusal of a request that failed by a defect of the server.
    pub(super) fn internal(error: impl Display) -> Self {
        Self::of(ErrorCode::Internal, error)
    }

    /// The refusal of a request for which the router's store failed.
    pub(super) fn store_failed(error: &dyn Display) -> Self {
        const REASON: &str = "store_failed";
        log_failure(REASON, error);
        let message = "the router's store has failed; restart the server when its disk works again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, REASON, message)
    }

    /// The refusal of a server of which a task has ended. The panic is in the log.
    pub(super) fn task_failed(failure: &TaskFailure) -> Self {
        const REASON: &str = "task_failed";
        log_failure(REASON, failure);
        let message = format!("the task {} panicked; {}", failure.task, failure.advice());
        Self::new(StatusCode::SERVICE_UNAVAILABLE, REASON, message)
    }

    /// Returns the body, for an answer that holds it as one part of several.
    pub(super) fn into_body(self) -> ErrorBody {
        self.body
    }

    /// The problem for `code`.
    fn of(code: ErrorCode, message: impl Display) -> Self {
        let body = ErrorBody::from_code(code, &message);
        Self::refused(code, &message, body)
    }

    /// The problem with `body`, for an error of the kind `code`. Logs the error if it is a failure of the server.
    fn refused(code: ErrorCode, error: &dyn Display, body: ErrorBody) -> Self {
        if code.is_server_failure() {
            log_failure(body.reason, error);
        }
        Self { status: status(code), body }
    }
}

fn log_failure(reason: &'static str, error: &dyn Display) {
    tracing::warn!(reason, %error, "a request failed");
}

/// The status that belongs to `code`.
const fn status(code: ErrorCode) -> StatusCode {
    match code.class() {
        ErrorClass::Malformed => StatusCode::BAD_REQUEST,
        ErrorClass::Forbidden => StatusCode::FORBIDDEN,
        ErrorClass::NotFound => StatusCode::NOT_FOUND,
        ErrorClass::Conflict => StatusCode::CONFLICT,
        ErrorClass::Gone => StatusCode::GONE,
        ErrorClass::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorClass::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorClass::Locked => StatusCode::LOCKED,
        ErrorClass::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorClass::Failure => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorClass::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        Self::of(error.code(), error)
    }
}

impl From<PayloadError> for Problem {
    fn from(error: PayloadError) -> Self {
        Self::of(error.code(), error)
    }
}

impl From<BudgetFull> for Problem {
    fn from(error: BudgetFull) -> Self {
        Self::of(ErrorCode::Overloaded, error)
    }
}

impl From<TooManyFromAddress> for Problem {
    fn from(error: TooManyFromAddress) -> Self {
        Self::of(error.code(), error)
    }
}

impl From<InvalidId> for Problem {
    fn from(error: InvalidId) -> Self {
        Self::invalid_request(error)
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        Self::refused(error.code(), &error, (&error).into())
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        Self::refused(error.code(), &error, (&error).into())
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        Self::refused(error.code, &error, (&error).into())
    }
}

impl From<SubscribeError> for Problem {
    fn from(error: SubscribeError) -> Self {
        Self::refused(error.code(), &error, (&error).into())
    }
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        Self::refused(error.code(), &error, (&error).into())
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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use relay_core::{DocumentId, LogError, Seq};

    use super::*;

    const PROTOCOL: &str = include_str!("../../../../docs/protocol.md");

    /// The statuses with which the protocol's documentation lists `reason`.
    fn documented_statuses(reason: &str) -> BTreeSet<u16> {
        let reason = format!("`{reason}`");
        let rows = PROTOCOL.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
        let statuses = rows.filter(|(_, reasons)| reasons.contains(&reason)).map(|(statuses, _)| statuses);
        statuses.flat_map(|statuses| statuses.split(", ")).filter_map(|status| status.parse().ok()).collect()
    }

    #[track_caller]
    fn check(problem: impl Into<Problem>, reason: &str) {
        let problem = problem.into();
        assert_eq!(problem.body.reason, reason);
        assert_eq!(documented_statuses(reason), [problem.status.as_u16()].into(), "{reason}");
    }

    #[test]
    fn every_error_has_the_documented_status_of_its_reason() {
        let document = DocumentId::new("notes").unwrap();
        let unknown = relay_events::kind("no.such.kind").unwrap_err();
        check(JsonError::from(unknown), "unknown_event");
        check(JsonError::Malformed("not JSON".to_owned()), "invalid_request");
        check(PublishError::TooLarge { bytes: 2, max: 1 }, "too_large");
        check(PublishError::Overloaded { document: document.clone(), waited: Duration::ZERO }, "overloaded");
        check(PublishError::Closed, "closed");
        check(PublishError::TooManyDocuments { open: 1 }, "too_many_documents");
        check(PublishError::Log(LogError::Corrupt { detail: String::new() }), "log_failed");
        check(SubscribeError::Log(LogError::Trimmed { document, first: Seq::FIRST }), "trimmed");
        check(CommandError::new(ErrorCode::Internal, "a defect"), "internal");
    }

    #[test]
    fn the_protocol_lists_each_code_with_its_status() {
        for &code in ErrorCode::ALL {
            // A reader that lagged gets the end of its stream, and no status.
            let statuses =
                if code == ErrorCode::Lagged { BTreeSet::new() } else { [status(code).as_u16()].into() };
            assert_eq!(documented_statuses(code.as_str()), statuses, "{code}");
            assert!(PROTOCOL.contains(&format!("`{code}`")), "{code} is not in docs/protocol.md");
        }
    }

    #[test]
    fn the_cause_of_a_failure_of_the_server_is_not_in_its_body() {
        let log = PublishError::Log(LogError::Corrupt { detail: "secret".to_owned() });
        let command = CommandError::new(ErrorCode::Internal, "secret");
        for problem in
            [log.into(), command.into(), Problem::internal("secret"), Problem::store_failed(&"secret")]
        {
            let message = problem.into_body().message.unwrap();
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn an_answer_that_allows_another_try_names_the_time() {
        let response = Problem::from(PublishError::Closed).into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let response = Problem::invalid_request("no").into_response();
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
}
