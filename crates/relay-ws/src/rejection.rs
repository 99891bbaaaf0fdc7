//! [`Rejection`]: the refusal of an upgrade request.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION};
use http::{Response, StatusCode};
use http_body_util::Full;
use relay_events::ErrorBody;

/// The refusal of an upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    status: StatusCode,
    /// The stable name of the reason.
    pub(crate) reason: &'static str,
    message: String,
    /// The time after which the client may try again.
    retry_after: Option<Duration>,
}

impl Rejection {
    pub(crate) fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), retry_after: None }
    }

    /// The refusal of a malformed request.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The refusal for a limit that is reached at present.
    pub(crate) fn unavailable(reason: &'static str, message: String, retry_after: Duration) -> Self {
        let rejection = Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, message);
        Self { retry_after: Some(retry_after), ..rejection }
    }

    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let body = serde_json::to_vec(&ErrorBody::new(self.reason).message(self.message))
            .unwrap_or_else(|error| unreachable!("texts are JSON: {error}"));
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // The header takes whole seconds. 0 would ask the client to come back at once.
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
        if self.status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    }
}
