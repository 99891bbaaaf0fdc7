//! The parts of a request that handlers take: the document of the path, and the body.

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use relay_core::DocumentId;
use serde::de::DeserializeOwned;

use super::api::Api;
use super::problem::Problem;
use crate::config::HttpConfig;

/// The document that a path names.
pub(super) struct DocumentPath(pub(super) DocumentId);

impl<S: Send + Sync> FromRequestParts<S> for DocumentPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        #[derive(serde::Deserialize)]
        struct Id {
            id: String,
        }
        let Path(Id { id }) = Path::<Id>::from_request_parts(parts, state).await.map_err(|rejection| {
            Problem::invalid_request(format!(
                "the document id in the path is malformed: {}",
                rejection.body_text()
            ))
        })?;
        Ok(Self(DocumentId::new(id)?))
    }
}

/// A body of JSON, read within the limits of size and time.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        // A browser sends this type for a page of another site only after asking with a preflight request.
        if media_type(request.headers()) != "application/json" {
            let message = "send the body as JSON, with `content-type: application/json`";
            return Err(Problem::unsupported_media_type(message));
        }
        let body = read_body(request.into_body(), &api.config).await?;
        let parsed = serde_json::from_slice(&body);
        parsed.map(Self).map_err(|error| Problem::invalid_request(format!("the body does not fit: {error}")))
    }
}

/// Returns the media type of a body without its parameters. Empty when there is none, or it is not text.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split_once(';').map_or(value, |(media_type, _)| media_type).trim()
}

/// Reads the whole body, within the limits of size and time.
pub(super) async fn read_body(body: Body, config: &HttpConfig) -> Result<Bytes, Problem> {
    let max = config.max_body_bytes;
    match tokio::time::timeout(config.body_timeout, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::too_large(format!(
            "the body has more than {max} bytes; send several smaller batches"
        ))),
        Ok(Err(error)) => Err(Problem::invalid_request(format!("the body did not arrive whole: {error}"))),
        Err(_elapsed) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not arrive within {} s", config.body_timeout.as_secs_f64()),
        )),
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid_request(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid_request(format!("the path is malformed: {}", rejection.body_text()))
    }
}
