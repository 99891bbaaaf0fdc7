//! The HTTP side: which path is answered by what, and what holds for all of them.
//!
//! Handlers reach documents through [`EventSink`] and [`EventSource`] alone. Whatever goes wrong is answered with a
//! [`Problem`], unknown paths and wrong methods included.

mod decisions;
mod health;
mod history;
pub(crate) mod host;
mod locks;
mod metrics;
mod origin;
pub(crate) mod outcomes;
mod page;
mod participants;
mod problem;
mod publish;
mod routing;
mod rules;
mod services;
mod sessions;
mod stream;
mod targets;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router, middleware};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, StatusCode, Uri};
use relay_core::{DocumentId, EventSink, EventSource};
use relay_presence::LocalPresence;
use relay_router::Router as EventRouter;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use self::host::Hosts;
pub(crate) use self::problem::Problem;
use crate::config::HttpConfig;
use crate::stats::{Gauges, ServiceStats};

/// What the handlers work with.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) source: Arc<dyn EventSource>,
    pub(crate) presence: LocalPresence,
    /// `None` when events are not routed.
    pub(crate) router: Option<EventRouter>,
    pub(crate) gauges: Gauges,
    pub(crate) config: HttpConfig,
    pub(crate) origins: relay_ws::OriginPolicy,
    pub(crate) hosts: Hosts,
    /// Cancelled when the server begins to stop.
    pub(crate) closing: CancellationToken,
}

/// All paths.
pub(crate) fn router(api: Api) -> Router {
    let cors = origin::cors(&api.origins);
    let guard = middleware::from_fn_with_state(api.origins.clone(), origin::refuse_foreign_pages);
    let names = middleware::from_fn_with_state(api.hosts.clone(), host::refuse_other_names);
    let counted = middleware::from_fn_with_state(api.clone(), outcomes::count);
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
        // What stands above is what clients want of documents, and counts.
        .route_layer(counted)
        .merge(page::routes())
        .merge(echo(&api.config))
        .route("/v1/rooms", get(rooms))
        .route("/v1/connections", get(connections))
        .route("/v1/shards", get(shards))
        .route("/v1/stats", get(stats))
        .route("/metrics", get(metrics::metrics))
        .merge(services::routes())
        .merge(rules::routes())
        .merge(targets::routes())
        .merge(decisions::routes())
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(guard)
        .layer(cors)
        .layer(names)
        .with_state(api)
}

/// Where every message comes back, if that is wanted.
fn echo(config: &HttpConfig) -> Router<Api> {
    let echo = async |State(api): State<Api>, request: Request| {
        api.gauges.ws.upgrade_to_echo(request).await.map(Body::new)
    };
    if config.echo { Router::new().route("/socket/echo", get(echo)) } else { Router::new() }
}

async fn websocket(State(api): State<Api>, request: Request) -> Response {
    api.gauges.ws.upgrade(request).await.map(Body::new)
}

async fn stats(State(api): State<Api>) -> Json<ServiceStats> {
    Json(api.gauges.read())
}

async fn rooms(State(api): State<Api>) -> Json<Vec<relay_ws::RoomStats>> {
    Json(api.gauges.ws.rooms())
}

async fn connections(State(api): State<Api>) -> Json<Vec<relay_ws::ConnectionStats>> {
    Json(api.gauges.ws.connections(None).await)
}

async fn shards(State(api): State<Api>) -> Json<Vec<relay_ws::ShardStats>> {
    Json(api.gauges.ws.shards())
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

/// A body of JSON, read within the limits of size and time.
struct JsonBody<T>(T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        // Foreign web pages cannot send this type without being asked about.
        let is_json = request.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            kind.to_str()
                .is_ok_and(|kind| kind.split(';').next().unwrap_or_default().trim() == "application/json")
        });
        if !is_json {
            let message = "send the body as JSON, with `content-type: application/json`";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        let body = publish::read(request.into_body(), &api.config).await?;
        let parsed = serde_json::from_slice(&body);
        parsed.map(Self).map_err(|error| Problem::invalid_request(format!("the body does not fit: {error}")))
    }
}

/// The document that a path names.
struct Document(DocumentId);

impl<S: Send + Sync> FromRequestParts<S> for Document {
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
