//! Log lines about lost events: the first at once, then at most one a minute, with the number since the last one.

use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{DocumentId, EventId, Monotonic, ServiceName};

/// The shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// The lost events that no line has told of yet.
#[derive(Debug, Default)]
pub(crate) struct LossReport(Mutex<Unreported>);

#[derive(Debug, Default)]
struct Unreported {
    events: u64,
    last_line: Option<Monotonic>,
}

impl LossReport {
    /// Counts a lost event, and logs it if the last line is long enough ago.
    pub(crate) fn count(
        &self,
        event: EventId,
        document: &DocumentId,
        target: &ServiceName,
        reason: &str,
        now: Monotonic,
    ) {
        let Some(events) = self.count_at(now) else { return };
        tracing::error!(events, last = %event, %document, %target, reason, "events are lost; each is among the decisions");
    }

    /// Returns the number of events to report now, if it is time.
    fn count_at(&self, now: Monotonic) -> Option<u64> {
        let mut unreported = self.0.lock();
        unreported.events += 1;
        if unreported.last_line.is_some_and(|last| now.since(last) < INTERVAL) {
            return None;
        }
        unreported.last_line = Some(now);
        Some(std::mem::take(&mut unreported.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_minute_has_the_number_of_all_events_since_the_last_one() {
        let report = LossReport::default();
        let at = |seconds| Monotonic::ZERO + Duration::from_secs(seconds);
        let counted: Vec<_> = [0, 1, 59, 60, 61, 120].map(|seconds| report.count_at(at(seconds))).into();
        assert_eq!(counted, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
