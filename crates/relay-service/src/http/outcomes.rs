//! How requests over HTTP were answered, counted: done, or refused for which reason.
//!
//! Only what clients want of documents counts. Whoever looks at health, numbers or the page would make the share of what
//! goes well look better than it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::Mutex;

use super::Api;

/// The reason of a [`Problem`](super::Problem), beside the answer that was made of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reason(pub(super) &'static str);

/// What refusals by others than this crate's handlers are counted as: an upgrade that `relay-ws` does not grant. Its own
/// counters have the reasons.
const UPGRADE_REFUSED: &str = "upgrade_refused";

/// Answers by what they said. Reasons are part of the program, so there are few.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    successes: AtomicU64,
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Outcomes {
    pub(crate) fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    pub(crate) fn errors(&self) -> BTreeMap<&'static str, u64> {
        self.errors.lock().clone()
    }

    fn count(&self, response: &Response) {
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            self.successes.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let reason = response.extensions().get::<Reason>().map_or(UPGRADE_REFUSED, |reason| reason.0);
        *self.errors.lock().entry(reason).or_default() += 1;
    }
}

pub(super) async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    api.gauges.outcomes.count(&response);
    response
}
