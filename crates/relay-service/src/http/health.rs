//! `/health/live`: the process answers. It answers so to a connection beyond the limits, too, since a server that is only busy
//! is not to be restarted. `/health/ready`: the server can take requests.

use axum::Json;
use axum::extract::State;
use relay_core::SubscribeError;
use relay_router::Router;
use serde::Serialize;

use super::api::Api;
use super::problem::Problem;

/// The path of the check that the process answers.
pub(crate) const LIVE: &str = "/health/live";

#[derive(Serialize)]
pub(crate) struct HealthStatus {
    status: &'static str,
}

pub(crate) async fn live() -> Json<HealthStatus> {
    Json(HealthStatus { status: "live" })
}

pub(super) async fn ready(State(api): State<Api>) -> Result<Json<HealthStatus>, Problem> {
    if api.closing.is_cancelled() {
        return Err(Problem::stopping());
    }
    if let Some(error) = api.log_error().await {
        return Err(SubscribeError::from(error).into());
    }
    if let Some(error) = api.router().and_then(Router::failure) {
        return Err(error.into());
    }
    if let Some(failure) = api.task_failure() {
        return Err(Problem::task_failed(&failure));
    }
    if !api.bus().has_free_place() {
        let open = api.bus().stats().channel_places;
        return Err(SubscribeError::TooManyDocuments { open }.into());
    }
    Ok(Json(HealthStatus { status: "ready" }))
}
