//! The web pages that may use the HTTP side: those that may open a WebSocket.
//!
//! Browsers name the page in `Origin`; programs send none and need none. Reading needs no check here, since browsers keep
//! answers from pages that the CORS headers do not name. Writing is refused before it happens, which CORS headers alone do
//! not do: a browser sends some writes without asking first. (`CsrfLayer` of tower-http refuses them too, by a list of its
//! own; here one [`OriginPolicy`] decides about sockets, the CORS headers and writes.)

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{ALLOW, CONTENT_TYPE, ETAG, HOST, HeaderName, IF_MATCH, ORIGIN, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use relay_ws::OriginPolicy;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::problem::Problem;

/// The time for which browsers remember the answer to a preflight request.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

fn allows(policy: &OriginPolicy, origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin.to_str().is_ok_and(|origin| policy.allows(origin, host))
}

pub(super) async fn refuse_foreign_pages(
    State(policy): State<OriginPolicy>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    match request.headers().get(ORIGIN) {
        Some(origin) if !reads && !allows(&policy, origin, request.headers()) => {
            let origin: String = String::from_utf8_lossy(origin.as_bytes()).chars().take(64).collect();
            Err(Problem::new(
                StatusCode::FORBIDDEN,
                "origin",
                format!(
                    "pages of `{origin}` may not change anything; the operator allows them with `allowed_origins`"
                ),
            ))
        }
        _ => Ok(next.run(request).await),
    }
}

/// The CORS headers, with which browsers show answers to allowed pages.
pub(super) fn cors(policy: &OriginPolicy) -> CorsLayer {
    let policy = policy.clone();
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, request| {
            allows(&policy, origin, &request.headers)
        }))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([CONTENT_TYPE, IF_MATCH, HeaderName::from_static("last-event-id")])
        .expose_headers([ALLOW, ETAG, RETRY_AFTER])
        .max_age(PREFLIGHT_MAX_AGE)
}
