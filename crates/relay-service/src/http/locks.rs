//! Locks over HTTP: acquiring, renewing and releasing them as the commands of the same names do, and releasing by force.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use relay_core::{FencingToken, Lease, UserId};
use relay_presence::{AcquireLock, LockError};
use serde::Deserialize;

use super::api::Api;
use super::extract::{DocumentPath, JsonBody, RequestMemory};
use super::problem::Problem;

pub(super) async fn held(State(api): State<Api>, DocumentPath(document): DocumentPath) -> Json<Vec<Lease>> {
    Json(api.presence().locks().held(&document))
}

/// The user, and the arguments of the command of the same name.
#[derive(Deserialize)]
pub(super) struct AcquireBody {
    user: UserId,
    #[serde(flatten)]
    command: AcquireLock,
}

pub(super) async fn acquire(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    memory: RequestMemory,
    JsonBody(body): JsonBody<AcquireBody>,
) -> Result<(StatusCode, Json<Lease>), Problem> {
    let AcquireBody { user, command } = body;
    let request = command.into_request().memory(Some(memory.outliving(&api)));
    let lease = api.presence().locks().acquire(&document, &user, request).await?;
    Ok((StatusCode::CREATED, Json(lease)))
}

#[derive(Deserialize)]
pub(super) struct TokenPath {
    token: FencingToken,
}

/// The user, and the arguments of the command of the same name without the token, which is in the path.
#[derive(Deserialize)]
pub(super) struct RenewBody {
    user: UserId,
    ttl_ms: Option<u64>,
}

pub(super) async fn renew(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    path: Result<Path<TokenPath>, PathRejection>,
    JsonBody(body): JsonBody<RenewBody>,
) -> Result<Json<Lease>, Problem> {
    let (Path(TokenPath { token }), RenewBody { user, ttl_ms }) = (path?, body);
    let ttl = ttl_ms.map(Duration::from_millis);
    Ok(Json(api.presence().locks().renew(&document, &user, token, ttl).await?))
}

/// The holder of the lock to release: the user, or by force any holder.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseQuery {
    user: Option<UserId>,
    #[serde(default)]
    force: bool,
}

pub(super) async fn release(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    path: Result<Path<TokenPath>, PathRejection>,
    query: Result<Query<ReleaseQuery>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    let (Path(TokenPath { token }), Query(query)) = (path?, query?);
    let locks = api.presence().locks();
    match query {
        ReleaseQuery { force: true, .. } => locks.force_release(&document, token).await?,
        ReleaseQuery { user: Some(user), .. } => locks.release(&document, &user, token).await?,
        ReleaseQuery { .. } => {
            let message = "name the lock's holder with `?user=`, or release it by force with `?force=true`";
            return Err(Problem::invalid_request(message));
        }
    };
    Ok(StatusCode::NO_CONTENT)
}

impl From<LockError> for Problem {
    fn from(error: LockError) -> Self {
        relay_core::CommandError::from(error).into()
    }
}
