//! Counting of HTTP requests, by how they were answered.
//!
//! Only requests about documents count. Requests for health, numbers and the page succeed nearly always, and would hide
//! how the others go.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::api::Api;
use super::problem::RefusalReason;

/// The reason under which refusals from outside this crate's handlers are counted: upgrades that `relay-ws` refuses. Its
/// own counters have the reasons.
const UPGRADE_REFUSED: &str = "upgrade_refused";

pub(super) async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let reason = response.extensions().get::<RefusalReason>().map_or(UPGRADE_REFUSED, |reason| reason.0);
        api.outcomes().count_error(reason);
    } else {
        api.outcomes().count_success();
    }
    response
}
