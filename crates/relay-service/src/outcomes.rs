//! [`RequestOutcomes`]: counters of HTTP requests, by how they were answered.

use std::collections::BTreeMap;

use relay_metrics::{Counter, CounterMap, Metric};

/// Counts requests that were granted, and those that were refused by reason. Reasons are part of the program, so there
/// are few.
#[derive(Debug, Default)]
pub(crate) struct RequestOutcomes {
    successes: Counter,
    errors: CounterMap<&'static str>,
}

impl RequestOutcomes {
    pub(crate) fn count_success(&self) {
        self.successes.increment();
    }

    pub(crate) fn count_error(&self, reason: &'static str) {
        self.errors.increment(reason);
    }

    pub(crate) fn successes(&self) -> u64 {
        self.successes.get()
    }

    pub(crate) fn errors(&self) -> BTreeMap<&'static str, u64> {
        self.errors.read()
    }
}
