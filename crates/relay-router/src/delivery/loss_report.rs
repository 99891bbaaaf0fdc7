//! Log lines about lost events: the first at once, then at most one a minute, with the number since the last one.
//!
//! A line about the last losses of a burst is due although no further event is lost. The scheduling task wakes up for it,
//! and the stop of the router does not wait for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::Monotonic;
use tracing::field::display;

use crate::decisions::DecisionRecord;

/// The shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// The lost events that no line has told of yet.
#[derive(Debug, Default)]
pub(crate) struct LossReport(Mutex<Unreported>);

#[derive(Debug, Default)]
struct Unreported {
    events: u64,
    /// The last of them.
    last: Option<Arc<DecisionRecord>>,
    last_line: Option<Monotonic>,
}

impl Unreported {
    /// The moment from which on a line may be written.
    fn due(&self) -> Monotonic {
        self.last_line.map_or(Monotonic::ZERO, |last| last + INTERVAL)
    }

    fn log(&mut self) {
        let Some(loss) = self.last.take() else { return };
        let events = std::mem::take(&mut self.events);
        let DecisionRecord { event, document, target, error: reason, .. } = &*loss;
        let (last, document, target) =
            (event.map(display), document.as_ref().map(display), target.as_ref().map(display));
        tracing::error!(
            events,
            last,
            document,
            target,
            reason,
            "events are lost; the reasons are among the decisions"
        );
    }
}

impl LossReport {
    /// Counts lost events. [`LossReport::log_due`] must follow.
    pub(super) fn count(&self, loss: Arc<DecisionRecord>) {
        let mut unreported = self.0.lock();
        unreported.events += loss.events();
        unreported.last = Some(loss);
    }

    /// Logs the losses that no line has told of, if the last line is long enough ago. Otherwise returns the moment for them.
    pub(super) fn log_due(&self, now: Monotonic) -> Option<Monotonic> {
        let mut unreported = self.0.lock();
        unreported.last.as_ref()?;
        let due = unreported.due();
        if now < due {
            return Some(due);
        }
        unreported.last_line = Some(now);
        unreported.log();
        None
    }

    /// The number of losses that no line has told of.
    #[cfg(test)]
    pub(super) fn unreported(&self) -> u64 {
        self.0.lock().events
    }

    /// Logs the losses that no line has told of.
    pub(crate) fn log_rest(&self) {
        self.0.lock().log();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::loss;

    #[test]
    fn a_line_a_minute_has_the_number_of_all_events_since_the_last_one() {
        let report = LossReport::default();
        let at = |seconds| Monotonic::ZERO + Duration::from_secs(seconds);
        let count = || report.count(Arc::new(loss("a").into_record(1)));
        // Nothing is lost, so no line is due.
        assert_eq!(report.log_due(at(0)), None);
        count();
        assert_eq!((report.log_due(at(1)), report.0.lock().events), (None, 0));
        (0..3).for_each(|_| count());
        assert_eq!((report.log_due(at(60)), report.0.lock().events), (Some(at(61)), 3));
        // No further event is lost.
        assert_eq!((report.log_due(at(61)), report.0.lock().events), (None, 0));
        count();
        report.log_rest();
        assert_eq!((report.log_due(at(62)), report.0.lock().events), (None, 0));
    }
}
