//! Doubles and values that the unit tests of this crate share.

use relay_core::{Clock, DocumentId, Draft, Monotonic, Payload, ServiceName, Timestamp};

/// The clock of a paused runtime, which advances whenever every task waits for it.
#[derive(Debug)]
pub(crate) struct TokioClock(pub(crate) tokio::time::Instant);

impl Clock for TokioClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000).saturating_add(self.monotonic().elapsed())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::from_elapsed(self.0.elapsed())
    }
}

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

/// An `x-note` event with the number `n`.
pub(crate) fn note(document: &str, n: usize) -> Draft {
    let payload = Payload::json(&serde_json::json!({ "n": n })).unwrap();
    Draft::new(DocumentId::new(document).unwrap(), relay_events::kind("x-note").unwrap(), payload)
}
