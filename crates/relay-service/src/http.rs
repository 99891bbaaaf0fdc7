//! The HTTP side: the table of paths, and the checks that all of them share.
//!
//! Every error is answered with a [`Problem`], also on unknown paths and with wrong methods.

mod api;
mod decisions;
mod extract;
mod health;
mod history;
mod host;
mod locks;
mod metrics;
mod origin;
mod outcomes;
mod page;
mod participants;
mod problem;
mod publish;
mod routing;
mod rules;
mod services;
mod sessions;
mod sse;
mod stream;
mod targets;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use hyper::body::Body as _;
use relay_core::BudgetFull;
use tower_http::classify::{ServerErrorsAsFailures, SharedClassifier};
use tower_http::trace::TraceLayer;
use tracing::Span;

pub(crate) use self::api::Api;
use self::extract::RequestMemory;
pub(crate) use self::health::{LIVE, live};
pub(crate) use self::host::Hosts;
use self::problem::Problem;
use crate::config::HttpConfig;
use crate::stats::ServiceStats;

/// The size in bytes from which an answer's memory is reserved.
const HELD_ANSWER_BYTES: u64 = 16 * 1024;

/// The table of all paths.
pub(crate) fn router(api: Api) -> Router {
    let cors = origin::cors(&api.origins);
    let guard = middleware::from_fn_with_state(api.origins.clone(), origin::refuse_foreign_pages);
    let names = middleware::from_fn_with_state(api.hosts.clone(), host::refuse_other_names);
    let counted = middleware::from_fn_with_state(api.clone(), outcomes::count);
    let held = middleware::from_fn_with_state(api.clone(), hold_answer);
    let numbers_held = middleware::from_fn_with_state(api.clone(), hold_numbers);
    let numbers = Router::new()
        .route("/v1/shards", get(shards))
        .route("/v1/stats", get(stats))
        .route("/metrics", get(metrics::metrics))
        .layer(numbers_held);
    Router::new()
        .route("/socket/websocket", get(websocket))
        .route("/v1/documents/{id}/events", post(publish::publish).get(history::history))
        .route("/v1/documents/{id}/events/stream", get(stream::stream))
        .route("/v1/documents/{id}/session", get(sessions::of_document))
        .route("/v1/documents/{id}/presence", get(participants::presence))
        .route("/v1/documents/{id}/participants", post(participants::join))
        .route(
            "/v1/documents/{id}/participants/{connection}",
            put(participants::stay).delete(participants::leave),
        )
        .route("/v1/documents/{id}/locks", get(locks::held).post(locks::acquire))
        .route("/v1/documents/{id}/locks/{token}", put(locks::renew).delete(locks::release))
        .route("/v1/sessions", get(sessions::list))
        // The paths above are requests about documents, and count.
        .route_layer(counted)
        .merge(page::routes())
        .merge(echo(&api.config))
        .route("/v1/rooms", get(rooms))
        .route("/v1/connections", get(connections))
        .merge(services::routes())
        .merge(rules::routes())
        .merge(targets::routes())
        .merge(decisions::routes())
        .route(LIVE, get(live))
        .route("/health/ready", get(health::ready))
        .layer(held)
        .merge(numbers)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(guard)
        .layer(cors)
        .layer(names)
        .layer(spans())
        .with_state(api)
}

/// Reserves the memory of a large answer until the client has read it. The answer is refused when there is too little.
async fn hold_answer(State(api): State<Api>, request: Request, next: Next) -> Response {
    let memory = RequestMemory::of(request.extensions(), &api);
    hold_large(next.run(request).await, |answer| memory.hold_answer(answer)).await
}

/// Reserves the memory of the server's own numbers, in a reserve where that of clients is used up.
async fn hold_numbers(State(api): State<Api>, request: Request, next: Next) -> Response {
    let memory = RequestMemory::of(request.extensions(), &api);
    hold_large(next.run(request).await, |numbers| memory.hold_numbers(numbers, &api.numbers_reserve)).await
}

async fn hold_large(response: Response, hold: impl FnOnce(Bytes) -> Result<Bytes, BudgetFull>) -> Response {
    let (head, body) = response.into_parts();
    // A stream has no size. It holds one event at a time.
    if body.size_hint().exact().is_none_or(|bytes| bytes < HELD_ANSWER_BYTES) {
        return Response::from_parts(head, body);
    }
    match axum::body::to_bytes(body, usize::MAX).await.map(hold) {
        Ok(Ok(bytes)) => Response::from_parts(head, Body::from(bytes)),
        Ok(Err(full)) => Problem::from(full).into_response(),
        Err(error) => Problem::internal(error).into_response(),
    }
}

type Spans = TraceLayer<SharedClassifier<ServerErrorsAsFailures>, fn(&Request) -> Span, (), (), (), (), ()>;

/// The span of each request. The log lines of a request and of its answer's body name the method and the path.
fn spans() -> Spans {
    let span: fn(&Request) -> Span =
        |request| tracing::error_span!("request", method = %request.method(), path = request.uri().path());
    TraceLayer::new_for_http()
        .make_span_with(span)
        .on_request(())
        .on_response(())
        .on_body_chunk(())
        .on_eos(())
        .on_failure(())
}

/// The path that sends every WebSocket message back, if it is configured.
fn echo(config: &HttpConfig) -> Router<Api> {
    let echo = async |State(api): State<Api>, request: Request| {
        api.ws().upgrade_to_echo(request).await.map(Body::new)
    };
    if config.echo { Router::new().route("/socket/echo", get(echo)) } else { Router::new() }
}

async fn websocket(State(api): State<Api>, request: Request) -> Response {
    api.ws().upgrade(request).await.map(Body::new)
}

async fn stats(State(api): State<Api>) -> Json<ServiceStats> {
    Json(api.stats())
}

async fn rooms(State(api): State<Api>) -> Json<Vec<relay_ws::RoomStats>> {
    Json(api.ws().rooms())
}

async fn connections(State(api): State<Api>) -> Json<Vec<relay_ws::ConnectionStats>> {
    Json(api.ws().connections(None).await)
}

async fn shards(State(api): State<Api>) -> Json<Vec<relay_ws::ShardStats>> {
    Json(api.ws().shards())
}

async fn unknown_path(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(64).collect();
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!(
            "there is nothing at `{path}`; documents are at `/v1/documents/<id>/events`, `/` in an id written as `%2F`"
        ),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(64).collect();
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("`{path}` does not take {method}; the `allow` header says what it takes"),
    )
}
