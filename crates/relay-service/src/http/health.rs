//! `/health/live`: the process answers. `/health/ready`: the server can take requests.

use std::fmt::Display;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::Serialize;

use super::api::Api;
use super::problem::Problem;

#[derive(Serialize)]
pub(super) struct Health {
    status: &'static str,
}

pub(super) async fn live() -> Json<Health> {
    Json(Health { status: "live" })
}

pub(super) async fn ready(State(api): State<Api>) -> Result<Json<Health>, Problem> {
    if api.closing.is_cancelled() {
        return Err(Problem::stopping());
    }
    let failed = |reason, error: &dyn Display| {
        let message = format!("{error}; see the server's log");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason, message)
    };
    if let Some(error) = api.log_error().await {
        return Err(failed("log_failed", &error));
    }
    if let Some(error) = api.router().and_then(relay_router::Router::failure) {
        return Err(failed("store_failed", &error));
    }
    Ok(Json(Health { status: "ready" }))
}
