//! Services: registering, heartbeats, and their state.

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

use super::api::Api;
use super::extract::{JsonBody, RequestMemory};
use super::problem::Problem;
use super::routing::{NamedPath, router};

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
    lease: ServiceLease,
    secret: String,
}

#[derive(Serialize)]
struct ServiceLease {
    id: LeaseId,
    ttl_ms: u128,
    heartbeat_every_ms: u128,
}

async fn register(
    State(api): State<Api>,
    name: Result<Path<NamedPath>, PathRejection>,
    memory: RequestMemory,
    JsonBody(registration): JsonBody<Registration>,
) -> Result<Response, Problem> {
    let Path(NamedPath { name }) = name?;
    let registered = router(&api)?.register(name, registration, memory.address()).await?;
    let status = if registered.is_new { StatusCode::CREATED } else { StatusCode::OK };
    let lease = ServiceLease {
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
    name: Result<Path<NamedPath>, PathRejection>,
    JsonBody(body): JsonBody<HeartbeatBody>,
) -> Result<Response, Problem> {
    let Path(NamedPath { name }) = name?;
    let ttl = router(&api)?.heartbeat(&name, body.lease, Heartbeat::new(body.state, body.reason))?;
    Ok(Json(BTreeMap::from([("ttl_ms", ttl.as_millis())])).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseOnly {
    lease: LeaseId,
}

async fn deregister(
    State(api): State<Api>,
    name: Result<Path<NamedPath>, PathRejection>,
    query: Result<Query<LeaseOnly>, QueryRejection>,
) -> Result<Response, Problem> {
    let (Path(NamedPath { name }), Query(LeaseOnly { lease })) = (name?, query?);
    let service = router(&api)?.deregister(&name, lease)?;
    Ok((StatusCode::ACCEPTED, Json(service)).into_response())
}

async fn rotate_secret(
    State(api): State<Api>,
    name: Result<Path<NamedPath>, PathRejection>,
    JsonBody(LeaseOnly { lease }): JsonBody<LeaseOnly>,
) -> Result<Response, Problem> {
    let Path(NamedPath { name }) = name?;
    let secret = router(&api)?.rotate_secret(&name, lease).await?;
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
    Ok(Json(router(&api)?.services(&ServiceQuery::new(capability, state))))
}

async fn show(
    State(api): State<Api>,
    name: Result<Path<NamedPath>, PathRejection>,
) -> Result<Json<ServiceInfo>, Problem> {
    let Path(NamedPath { name }) = name?;
    let service = router(&api)?.service(&name);
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
            RegisterError::TooMany { what: "services", .. } | RegisterError::TooManyFromAddress { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_services")
            }
            _ => (StatusCode::BAD_REQUEST, "invalid_request"),
        };
        Self::new(status, reason, error.to_string())
    }
}
