//! Doubles and values that the unit tests of this crate share.

use std::sync::Arc;

use relay_core::testing::FnClock;
use relay_core::{Clock, DocumentId, Draft, Payload, ServiceName};

/// Returns the clock of a paused runtime, which advances whenever every task waits for it.
pub(crate) fn paused_clock() -> Arc<dyn Clock> {
    let start = tokio::time::Instant::now();
    Arc::new(FnClock::new(move || start.elapsed()))
}

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

/// An `x-note` event with the number `n`.
pub(crate) fn note(document: &str, n: usize) -> Draft {
    let payload = Payload::json(&serde_json::json!({ "n": n })).unwrap();
    Draft::new(DocumentId::new(document).unwrap(), relay_events::kind("x-note").unwrap(), payload)
}
