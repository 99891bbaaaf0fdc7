//! Targets: their state, their dead letters, and replays of history to them.

use std::collections::BTreeMap;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::StatusCode;
use relay_core::{LogError, ServiceName, SubscribeError};
use relay_events::ServiceState;
use relay_router::{
    DeadLetter, DeadLetterId, DeadLetterPage, Replay, ReplayRequest, TargetError, TargetInfo,
};
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::extract::JsonBody;
use super::problem::Problem;
use super::routing::{NamedPath, router};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/targets", get(list))
        .route("/v1/targets/{name}", get(show))
        .route("/v1/targets/{name}/dead-letters", get(dead_letters).delete(drop_all))
        .route("/v1/targets/{name}/dead-letters/retry", post(retry_all))
        .route("/v1/targets/{name}/dead-letters/{id}", get(dead_letter).delete(drop_one))
        .route("/v1/targets/{name}/dead-letters/{id}/retry", post(retry_one))
        .route("/v1/targets/{name}/replays", get(replays).post(replay))
        .route("/v1/targets/{name}/replays/{id}", delete(cancel))
}

type NamePath = Result<Path<NamedPath>, PathRejection>;

async fn list(State(api): State<Api>) -> Result<Json<Vec<TargetInfo>>, Problem> {
    Ok(Json(router(&api)?.targets()))
}

async fn show(State(api): State<Api>, name: NamePath) -> Result<Json<TargetInfo>, Problem> {
    let Path(NamedPath { name }) = name?;
    let target = router(&api)?.target(&name);
    target.map(Json).ok_or_else(|| TargetError::Unknown(name).into())
}

const DEFAULT_PAGE: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    after: Option<String>,
    limit: Option<usize>,
}

async fn dead_letters(
    State(api): State<Api>,
    name: NamePath,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<DeadLetterPage>, Problem> {
    let (Path(NamedPath { name }), Query(query)) = (name?, query?);
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=1_000).contains(&limit) {
        return Err(Problem::invalid_request(format!("`limit` is {limit}; it must be 1 to 1000")));
    }
    let after = query.after.map(|after| letter_id(&after)).transpose()?;
    Ok(Json(router(&api)?.dead_letters(&name, after, limit).await?))
}

#[derive(Deserialize)]
struct LetterPath {
    name: ServiceName,
    id: String,
}

fn letter_id(text: &str) -> Result<DeadLetterId, Problem> {
    text.parse::<DeadLetterId>().map_err(Problem::invalid_request)
}

type LetterPathResult = Result<Path<LetterPath>, PathRejection>;

async fn dead_letter(State(api): State<Api>, path: LetterPathResult) -> Result<Json<DeadLetter>, Problem> {
    let Path(LetterPath { name, id }) = path?;
    Ok(Json(router(&api)?.dead_letter(&name, letter_id(&id)?).await?))
}

/// A request for deliveries that is accepted.
#[derive(Serialize)]
struct AcceptedDeliveries<T> {
    #[serde(flatten)]
    accepted: T,
    /// The state in which the target gets no events: the deliveries wait for its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_up_by: Option<HeldUpBy>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum HeldUpBy {
    Gone,
    Unhealthy,
    WantsNothing,
}

impl HeldUpBy {
    fn of(target: &TargetInfo) -> Option<Self> {
        match target.state {
            _ if target.wants_nothing => Some(Self::WantsNothing),
            ServiceState::Gone => Some(Self::Gone),
            ServiceState::Unhealthy => Some(Self::Unhealthy),
            _ => None,
        }
    }
}

fn accepted(accepted: impl Serialize, target: Option<&TargetInfo>) -> Response {
    let held_up_by = target.and_then(HeldUpBy::of);
    (StatusCode::ACCEPTED, Json(AcceptedDeliveries { accepted, held_up_by })).into_response()
}

async fn retry_one(State(api): State<Api>, path: LetterPathResult) -> Result<Response, Problem> {
    let Path(LetterPath { name, id }) = path?;
    let router = router(&api)?;
    router.retry_dead_letter(&name, letter_id(&id)?).await?;
    Ok(accepted(BTreeMap::from([("retried", 1)]), router.target(&name).as_ref()))
}

async fn retry_all(State(api): State<Api>, name: NamePath) -> Result<Response, Problem> {
    let Path(NamedPath { name }) = name?;
    let router = router(&api)?;
    let retried = router.retry_dead_letters(&name).await?;
    Ok(accepted(BTreeMap::from([("retried", retried)]), router.target(&name).as_ref()))
}

async fn drop_one(State(api): State<Api>, path: LetterPathResult) -> Result<Response, Problem> {
    let Path(LetterPath { name, id }) = path?;
    router(&api)?.drop_dead_letter(&name, letter_id(&id)?).await?;
    Ok(dropped(1))
}

async fn drop_all(State(api): State<Api>, name: NamePath) -> Result<Response, Problem> {
    let Path(NamedPath { name }) = name?;
    Ok(dropped(router(&api)?.drop_dead_letters(&name).await?))
}

/// Responds with the number of dead letters that were dropped.
fn dropped(count: usize) -> Response {
    Json(BTreeMap::from([("dropped", count)])).into_response()
}

async fn replay(
    State(api): State<Api>,
    name: NamePath,
    JsonBody(request): JsonBody<ReplayRequest>,
) -> Result<Response, Problem> {
    let Path(NamedPath { name }) = name?;
    let router = router(&api)?;
    let replay = router.replay(&name, request).await?;
    Ok(accepted(replay, router.target(&name).as_ref()))
}

async fn replays(State(api): State<Api>, name: NamePath) -> Result<Json<Vec<Replay>>, Problem> {
    let Path(NamedPath { name }) = name?;
    Ok(Json(router(&api)?.replays(&name)))
}

#[derive(Deserialize)]
struct ReplayPath {
    name: ServiceName,
    id: u64,
}

async fn cancel(
    State(api): State<Api>,
    path: Result<Path<ReplayPath>, PathRejection>,
) -> Result<Json<Replay>, Problem> {
    let Path(ReplayPath { name, id }) = path?;
    Ok(Json(router(&api)?.cancel_replay(&name, id).await?))
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        let (status, reason) = match error {
            TargetError::Store(error) => return error.into(),
            TargetError::Log(LogError::Closed) => return Self::stopping(),
            TargetError::Log(error) => return SubscribeError::from(error).into(),
            TargetError::Unknown(_) => (StatusCode::NOT_FOUND, "unknown_target"),
            TargetError::NoDeadLetter { .. } => (StatusCode::NOT_FOUND, "unknown_dead_letter"),
            TargetError::Damaged { .. } => (StatusCode::CONFLICT, "damaged"),
            TargetError::AlreadyWaiting { .. } => (StatusCode::CONFLICT, "already_waiting"),
            TargetError::TooManyWaiting { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_waiting"),
            TargetError::NoReplay(_) => (StatusCode::NOT_FOUND, "unknown_replay"),
            TargetError::TooManyReplays { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_replays"),
            _ => (StatusCode::CONFLICT, "no_rule"),
        };
        Self::new(status, reason, error.to_string())
    }
}
