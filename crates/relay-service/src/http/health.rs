//! `/health/live`: the process answers. `/health/ready`: it should be given work.

use std::fmt::Display;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::Serialize;

use super::Api;
use super::problem::Problem;

#[derive(Serialize)]
pub(crate) struct Health {
    status: &'static str,
}

pub(crate) async fn live() -> Json<Health> {
    Json(Health { status: "live" })
}

pub(crate) async fn ready(State(api): State<Api>) -> Result<Json<Health>, Problem> {
    if api.closing.is_cancelled() {
        return Err(Problem::stopping());
    }
    let failed = |reason, error: &dyn Display| {
        let message = format!("{error}; see the server's log");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason, message)
    };
    if let Some(error) = api.gauges.log_error().await {
        return Err(failed("log_failed", &error));
    }
    if let Some(error) = api.router.as_ref().and_then(relay_router::Router::failure) {
        return Err(failed("store_failed", &error));
    }
    Ok(Json(Health { status: "ready" }))
}
