//! Server-sent events: the headers and comments that all streams have in common.

use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, TryStreamExt as _};
use http::HeaderValue;
use http::header::CACHE_CONTROL;

/// The response that sends `events`, with a comment whenever nothing was sent for the time `keep_alive`.
///
/// An event that does not serialise is logged, and its client is disconnected.
pub(super) fn response(
    events: impl Stream<Item = Result<Event, axum::Error>> + Send + 'static,
    keep_alive: Duration,
) -> Response {
    let events = events.inspect_err(|error| {
        tracing::error!(%error, "a server-sent event does not serialise; its stream is cut off");
    });
    let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let no_store = [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (no_store, Sse::new(events).keep_alive(keep_alive)).into_response()
}
