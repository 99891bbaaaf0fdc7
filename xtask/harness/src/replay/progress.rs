//! What one document's author and subscribers share: when each edit was sent, and how many deliveries there were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The clock and the counts of one document's replay.
pub(crate) struct Progress {
    started: Instant,
    /// Microseconds after `started`, for each edit.
    sent: Vec<AtomicU64>,
    deliveries: Arc<AtomicU64>,
}

impl Progress {
    pub(crate) fn new(edits: usize, deliveries: Arc<AtomicU64>) -> Self {
        let sent = (0..edits).map(|_| AtomicU64::new(0)).collect();
        Self { started: Instant::now(), sent, deliveries }
    }

    /// Notes that an edit was sent `at` this time after the start, or was due then: an edit that waits for
    /// the server counts from when it was due.
    pub(crate) fn sent(&self, index: usize, at: Duration) {
        if let Some(sent) = self.sent.get(index) {
            sent.store(micros(at), Ordering::Relaxed);
        }
    }

    /// Notes a delivery of an edit, and says how many microseconds it took.
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
