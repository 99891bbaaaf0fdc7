//! The page at `/`: files that are part of the binary.

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http::HeaderValue;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

/// The page loads from and talks to this server alone, and is not shown in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let html = include_str!("../../assets/index.html");
    let script = include_str!("../../assets/page.js");
    let phoenix = include_str!("../../assets/phoenix.js");
    let text = include_str!("../../assets/text.js");
    let summary = include_str!("../../assets/summary.js");
    let style = include_str!("../../assets/page.css");
    let icon = include_str!("../../assets/icon.svg");
    Router::new()
        .route("/", get(async move || file("text/html; charset=utf-8", html)))
        .route("/page.js", get(async move || file("text/javascript; charset=utf-8", script)))
        .route("/phoenix.js", get(async move || file("text/javascript; charset=utf-8", phoenix)))
        .route("/text.js", get(async move || file("text/javascript; charset=utf-8", text)))
        .route("/summary.js", get(async move || file("text/javascript; charset=utf-8", summary)))
        .route("/page.css", get(async move || file("text/css; charset=utf-8", style)))
        .route("/icon.svg", get(async move || file("image/svg+xml", icon)))
}

fn file(content_type: &'static str, content: &'static str) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // Revalidated each time, since a newer server has a newer page.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, content)
}
