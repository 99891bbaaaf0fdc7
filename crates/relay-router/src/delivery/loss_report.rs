//! Log lines about lost events: the first at once, then at most one a minute, with the number since the last one.
//!
//! A line about the last losses of a burst is due although no further event is lost. The scheduling task wakes up for it,
//! and the stop of the router does not wait for it.

use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{DocumentId, EventId, Monotonic, ServiceName};
use tracing::field::display;

/// The shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// Events that are lost for one reason: one event, or all those of a gap.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) events: u64,
    /// The event; `None` for a gap.
    pub(crate) event: Option<EventId>,
    pub(crate) document: Option<DocumentId>,
    /// The target, if it is known.
    pub(crate) target: Option<ServiceName>,
    pub(crate) reason: String,
}

/// The lost events that no line has told of yet.
#[derive(Debug, Default)]
pub(crate) struct LossReport(Mutex<Unreported>);

#[derive(Debug, Default)]
struct Unreported {
    events: u64,
    /// The last of them.
    last: Option<Loss>,
    last_line: Option<Monotonic>,
}

impl Unreported {
    /// The moment from which on a line may be written.
    fn due(&self) -> Monotonic {
        self.last_line.map_or(Monotonic::ZERO, |last| last + INTERVAL)
    }

    fn log(&mut self) {
        let Some(Loss { event, document, target, reason, .. }) = self.last.take() else { return };
        let events = std::mem::take(&mut self.events);
        let (last, document, target) = (event.map(display), document.map(display), target.map(display));
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
    pub(super) fn count(&self, loss: Loss) {
        let mut unreported = self.0.lock();
        unreported.events += loss.events;
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
    use crate::test_support::{name, note};

    #[test]
    fn a_line_a_minute_has_the_number_of_all_events_since_the_last_one() {
        let report = LossReport::default();
        let at = |seconds| Monotonic::ZERO + Duration::from_secs(seconds);
        let count = || {
            let (event, document) = (Some(EventId::new()), Some(note("d", 1).document));
            let (target, reason) = (Some(name("a")), "a test".to_owned());
            report.count(Loss { events: 1, event, document, target, reason });
        };
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
