//! The parts that the paths of routing have in common.

use http::StatusCode;
use relay_core::ServiceName;
use relay_router::{Router, StoreError};
use serde::Deserialize;

use super::api::Api;
use super::problem::Problem;

/// The service or target that a path names.
#[derive(Deserialize)]
pub(super) struct NamedPath {
    pub(super) name: ServiceName,
}

/// Returns the router, or a problem where events are not routed.
pub(super) fn router(api: &Api) -> Result<&Router, Problem> {
    api.router().ok_or_else(|| {
        let message = "events are not routed here; that needs a log (`durability` other than `memory`)";
        Problem::new(StatusCode::NOT_FOUND, "not_routed", message)
    })
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::stopping(),
            error => Self::store_failed(&error),
        }
    }
}
