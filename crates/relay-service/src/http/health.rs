//! `/health/live`: the process answers. `/health/ready`: it should be given work.

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
    match api.gauges.log_error().await {
        None => Ok(Json(Health { status: "ready" })),
        Some(error) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "log_failed",
            format!("{error}; see the server's log"),
        )),
    }
}
