//! The state that the writer's thread and the handles share: the counters, the log's tail, and the failure that ended it.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use relay_core::{DocumentId, Event, LogError, Offset, Seq};
use tokio::sync::watch;

use crate::stats::Counters;

/// The last event that readers can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail {
    last: Offset,
    /// True when no further event can come.
    is_final: bool,
}

/// The counters, the tail and the failure of a log.
pub(crate) struct LogStatus {
    pub(crate) counters: Counters,
    failure: OnceLock<Arc<dyn std::error::Error + Send + Sync>>,
    tail: watch::Sender<Tail>,
    hold: Mutex<Option<Offset>>,
    /// The lost events that were logged and counted, each once.
    lost: Mutex<HashSet<(DocumentId, Option<Seq>)>>,
}

/// The most lost events that are logged and counted. Who has more knows enough.
const MAX_LOST: usize = 4096;

impl LogStatus {
    /// Creates the state of a log whose last event has the offset `last`, and which opens with `hold`.
    pub(crate) fn new(last: Offset, hold: Option<Offset>) -> Self {
        Self {
            counters: Counters::default(),
            failure: OnceLock::new(),
            tail: watch::Sender::new(Tail { last, is_final: false }),
            hold: Mutex::new(hold),
            lost: Mutex::default(),
        }
    }

    /// Replaces the hold: retention keeps the events after it.
    pub(crate) fn set_hold(&self, after: Option<Offset>) {
        *self.hold.lock() = after;
    }

    pub(crate) fn hold(&self) -> Option<Offset> {
        *self.hold.lock()
    }

    /// Logs and counts the lost events among those that were read, each once.
    pub(crate) fn note_lost(&self, events: &[Event]) {
        for event in events.iter().filter(|event| event.is_lost()) {
            let mut lost = self.lost.lock();
            if lost.len() < MAX_LOST && lost.insert((event.document.clone(), event.seq)) {
                Counters::add(&self.counters.lost_events, 1);
                let (seq, offset) = (event.seq.unwrap_or_default(), event.offset.unwrap_or_default());
                tracing::error!(document = %event.document, %seq, %offset, "an event of the log cannot be read; readers get `event.lost` in its place; `relay log check` says more");
            }
        }
    }

    /// Marks the log as failed for good, and returns the error for the caller. Every later caller gets the first failure.
    pub(crate) fn fail(&self, error: impl std::error::Error + Send + Sync + 'static) -> LogError {
        let source = Arc::clone(self.failure.get_or_init(|| {
            tracing::error!(%error, "the log failed and takes no more events until it is opened again");
            Arc::new(error)
        }));
        self.end();
        LogError::Failed { source }
    }

    /// Returns the failure if the log has failed.
    pub(crate) fn check(&self) -> Result<(), LogError> {
        match self.failure.get() {
            Some(source) => Err(LogError::Failed { source: Arc::clone(source) }),
            None => Ok(()),
        }
    }

    /// Makes the events up to `last` known to the waiters; they are as durable as configured.
    pub(crate) fn advance(&self, last: Offset) {
        self.tail.send_if_modified(|tail| std::mem::replace(&mut tail.last, last) != last);
    }

    /// Tells the waiters that no further event comes.
    pub(crate) fn end(&self) {
        self.tail.send_modify(|tail| tail.is_final = true);
    }

    pub(crate) fn last_offset(&self) -> Result<Offset, LogError> {
        let tail = *self.tail.borrow();
        if tail.is_final { Err(self.ended()) } else { Ok(tail.last) }
    }

    pub(crate) async fn wait_past(&self, offset: Offset) -> Result<Offset, LogError> {
        let mut tail = self.tail.subscribe();
        let tail =
            *tail.wait_for(|tail| tail.last > offset || tail.is_final).await.map_err(|_| LogError::Closed)?;
        if tail.is_final { Err(self.ended()) } else { Ok(tail.last) }
    }

    /// Returns the failure of a log that has ended; [`LogError::Closed`] when it did not fail.
    pub(crate) fn ended(&self) -> LogError {
        self.check().err().unwrap_or(LogError::Closed)
    }
}
