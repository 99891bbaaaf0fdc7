//! Services that speak of a document as a whole: each keeps, of the documents that are worked on, what it makes of
//! their histories, and publishes what that comes to.
//!
//! The relay's history is the truth. An event that is delivered says that there is something new; what is then read is
//! the history up to its newest event. So while somebody types fast, one result covers many edits, and the deliveries
//! of those that it covers are answered at once. Nothing has to be kept across a restart: the next event makes the
//! service read what it has not got.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use relay_core::{DocumentId, Event, EventId};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::relay::{History, Relay};
use super::{Service, TakeError};

/// Of how many documents a service keeps what it has read; the others are read again when they are needed.
const MOST_DOCUMENTS: usize = 64;
/// The shortest time between two results of one document.
const PAUSE: Duration = Duration::from_millis(300);

/// What a service makes of a document's history. Its default is what it makes of none.
pub(crate) trait Fold: Default + Send + 'static {
    /// The kind of the events that it publishes.
    const PUBLISHES: &'static str;

    /// Takes the next event. Returns whether the result may be another one now.
    fn take(&mut self, event: &Event) -> bool;

    /// What it has come to: work that is done elsewhere, on a copy.
    fn result(&self) -> Box<dyn FnOnce() -> Value + Send>;
}

/// A service that publishes what `F` makes of documents.
pub(crate) struct Documents<F> {
    relay: Relay,
    followed: Mutex<HashMap<DocumentId, Followed<F>>>,
}

/// A document of which something is kept.
struct Followed<F> {
    /// Whoever works on the document holds it.
    state: Arc<tokio::sync::Mutex<State<F>>>,
    last_used: Instant,
}

struct State<F> {
    epoch: Option<String>,
    /// The last event that was read.
    seq: u64,
    fold: F,
    /// The last event that changed the result.
    newest: Option<(u64, EventId)>,
    /// All events up to here are covered by what was published.
    covered: u64,
    /// When the next result may be published.
    due: Instant,
}

impl<F: Fold> State<F> {
    fn new() -> Self {
        Self { epoch: None, seq: 0, fold: F::default(), newest: None, covered: 0, due: Instant::now() }
    }

    fn covers(&self, event: &Event) -> bool {
        let same_history = self.epoch.as_deref() == Some(event.epoch.to_string().as_str());
        same_history && event.seq.is_none_or(|seq| seq.get() <= self.covered)
    }

    /// Takes a page of the history. Returns whether there is more.
    fn read(&mut self, page: History) -> bool {
        match page {
            History::Page { epoch, .. } if self.epoch.as_ref().is_some_and(|known| *known != epoch) => {
                // The history is another one now.
                *self = Self { due: self.due, ..Self::new() };
                true
            }
            History::Page { epoch, events, next_after_seq, last_seq } => {
                self.epoch = Some(epoch);
                for event in &events {
                    if self.fold.take(event) {
                        self.newest = event.seq.map(|seq| (seq.get(), event.id));
                    }
                }
                self.seq = next_after_seq;
                next_after_seq < last_seq
            }
            History::Trimmed { first_seq } => {
                // What came before is no longer kept, for nobody: the document begins with what is.
                *self = Self { seq: first_seq.saturating_sub(1), due: self.due, ..Self::new() };
                true
            }
        }
    }
}

impl<F: Fold> Documents<F> {
    pub(crate) fn new(relay: Relay) -> Self {
        Self { relay, followed: Mutex::new(HashMap::new()) }
    }

    /// The state of `document`. Makes room by forgetting the document that was not used for longest.
    fn state(&self, document: &DocumentId) -> Arc<tokio::sync::Mutex<State<F>>> {
        let now = Instant::now();
        let mut followed = self.followed.lock();
        if let Some(known) = followed.get_mut(document) {
            known.last_used = now;
            return Arc::clone(&known.state);
        }
        if followed.len() >= MOST_DOCUMENTS {
            let oldest = followed.iter().min_by_key(|(_, known)| known.last_used).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                followed.remove(&oldest);
            }
        }
        let state = Arc::new(tokio::sync::Mutex::new(State::new()));
        followed.insert(document.clone(), Followed { state: Arc::clone(&state), last_used: now });
        state
    }
}

#[async_trait]
impl<F: Fold> Service for Documents<F> {
    async fn take(&self, event: Event) -> Result<(), TakeError> {
        let state = self.state(&event.document);
        // One at a time for each document; a delivery that is given up leaves what it has read.
        let mut state = state.lock().await;
        if state.covers(&event) {
            return Ok(());
        }
        sleep_until(state.due).await;
        while {
            let page = self.relay.history(&event.document, state.seq).await?;
            state.read(page)
        } {}
        let Some((seq, newest)) = state.newest else { return Ok(()) };
        if seq > state.covered {
            let work = state.fold.result();
            let result = tokio::task::spawn_blocking(work).await?;
            self.relay.publish(F::PUBLISHES, &result, &event, newest).await?;
            state.covered = seq;
            state.due = Instant::now() + PAUSE;
        }
        Ok(())
    }
}
