//! The state that a document's author and subscribers share: the time of each edit and the number of deliveries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The clock and the counts of one document's replay.
pub(crate) struct Progress {
    started: Instant,
    /// The time of each edit in microseconds after `started`.
    sent: Vec<AtomicU64>,
    deliveries: Arc<AtomicU64>,
}

impl Progress {
    pub(crate) fn new(edits: usize, deliveries: Arc<AtomicU64>) -> Self {
        let sent = (0..edits).map(|_| AtomicU64::new(0)).collect();
        Self { started: Instant::now(), sent, deliveries }
    }

    /// Records the time after the start at which an edit was sent. With a pace it is the time at which the edit was due.
    pub(crate) fn sent(&self, index: usize, at: Duration) {
        if let Some(sent) = self.sent.get(index) {
            sent.store(micros(at), Ordering::Relaxed);
        }
    }

    /// Records a delivery of an edit and returns its latency in microseconds.
    pub(crate) fn delivered(&self, index: usize) -> u64 {
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        let sent = self.sent.get(index).map_or(0, |sent| sent.load(Ordering::Relaxed));
        micros(self.elapsed()).saturating_sub(sent)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
