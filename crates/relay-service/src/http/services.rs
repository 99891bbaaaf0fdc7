//! Services that register, and what is known of them.

use std::collections::BTreeMap;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use relay_events::ServiceState;
use relay_router::registry::{
    Heartbeat, LeaseError, LeaseId, RegisterError, Registration, ReportedState, ServiceInfo, ServiceQuery,
};
use relay_router::rules::Capability;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::routing::{Named, routing};
use super::{Api, JsonBody};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/services", get(list))
        .route("/v1/services/{name}", get(show).put(register).delete(deregister))
        .route("/v1/services/{name}/heartbeat", post(heartbeat))
        .route("/v1/services/{name}/rotate-secret", post(rotate_secret))
}

#[derive(Serialize)]
struct Registered {
    service: ServiceInfo,
    lease: Lease,
    secret: String,
}

#[derive(Serialize)]
struct Lease {
    id: LeaseId,
    ttl_ms: u128,
    heartbeat_every_ms: u128,
}

async fn register(
    State(api): State<Api>,
    name: Result<Path<Named>, PathRejection>,
    JsonBody(registration): JsonBody<Registration>,
) -> Result<Response, Problem> {
    let Path(Named { name }) = name?;
    let registered = routing(&api)?.register(name, registration).await?;
    let status = if registered.is_new { StatusCode::CREATED } else { StatusCode::OK };
    let lease = Lease {
        id: registered.lease,
        ttl_ms: registered.ttl.as_millis(),
        heartbeat_every_ms: registered.heartbeat_every.as_millis(),
    };
    let body = Registered { service: registered.service, lease, secret: registered.secret };
    Ok((status, Json(body)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeartbeatBody {
    lease: LeaseId,
    #[serde(default)]
    state: ReportedState,
    reason: Option<String>,
}

async fn heartbeat(
    State(api): State<Api>,
    name: Result<Path<Named>, PathRejection>,
    JsonBody(body): JsonBody<HeartbeatBody>,
) -> Result<Response, Problem> {
    let Path(Named { name }) = name?;
    let ttl = routing(&api)?.heartbeat(&name, body.lease, Heartbeat::new(body.state, body.reason))?;
    Ok(Json(BTreeMap::from([("ttl_ms", ttl.as_millis())])).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseOnly {
    lease: LeaseId,
}

async fn deregister(
    State(api): State<Api>,
    name: Result<Path<Named>, PathRejection>,
    query: Result<Query<LeaseOnly>, QueryRejection>,
) -> Result<Response, Problem> {
    let (Path(Named { name }), Query(LeaseOnly { lease })) = (name?, query?);
    let service = routing(&api)?.deregister(&name, lease)?;
    Ok((StatusCode::ACCEPTED, Json(service)).into_response())
}

async fn rotate_secret(
    State(api): State<Api>,
    name: Result<Path<Named>, PathRejection>,
    JsonBody(LeaseOnly { lease }): JsonBody<LeaseOnly>,
) -> Result<Response, Problem> {
    let Path(Named { name }) = name?;
    let secret = routing(&api)?.rotate_secret(&name, lease).await?;
    Ok(Json(BTreeMap::from([("secret", secret)])).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    capability: Option<Capability>,
    state: Option<ServiceState>,
}

async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<ServiceInfo>>, Problem> {
    let Query(ListQuery { capability, state }) = query?;
    Ok(Json(routing(&api)?.services(&ServiceQuery::new(capability, state))))
}

async fn show(
    State(api): State<Api>,
    name: Result<Path<Named>, PathRejection>,
) -> Result<Json<ServiceInfo>, Problem> {
    let Path(Named { name }) = name?;
    let service = routing(&api)?.service(&name);
    service.map(Json).ok_or_else(|| LeaseError::Unknown { service: name }.into())
}

impl From<LeaseError> for Problem {
    fn from(error: LeaseError) -> Self {
        let (status, reason) = match &error {
            LeaseError::Unknown { .. } => (StatusCode::NOT_FOUND, "unknown_service"),
            _ => (StatusCode::CONFLICT, "lease_lost"),
        };
        Self::new(status, reason, error.to_string())
    }
}

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Self {
        let (status, reason) = match error {
            RegisterError::Lease(error) => return error.into(),
            RegisterError::Store(error) => return error.into(),
            RegisterError::NameTaken { .. } => (StatusCode::CONFLICT, "name_taken"),
            RegisterError::Outbound(_) => (StatusCode::FORBIDDEN, "address_refused"),
            RegisterError::TooMany { what: "services", .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_services")
            }
            _ => (StatusCode::BAD_REQUEST, "invalid_request"),
        };
        Self::new(status, reason, error.to_string())
    }
}
