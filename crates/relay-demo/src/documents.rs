//! Services whose result covers a whole document. Each keeps a state of the documents in use, folds their histories into
//! it, and publishes the state's result.
//!
//! The relay's history is authoritative. A delivered event only shows that the history has grown; the service then reads
//! the history up to its newest event. During fast typing one result covers many edits, and the deliveries of the covered
//! edits are answered at once. A service keeps nothing across a restart: with the next event it reads the history again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use relay_core::{DocumentId, Event, EventId};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::client::{History, RelayClient};
use super::{HandleError, Service};

/// The most documents whose state is kept. The history of other documents is read again when an event of them comes.
const MOST_DOCUMENTS: usize = 64;
/// The shortest time between two results of one document.
const PAUSE: Duration = Duration::from_millis(300);

/// A fold over a document's history, from the default for an empty one.
pub(crate) trait Fold: Default + Send + 'static {
    /// The kind of the published events.
    const PUBLISHES: &'static str;

    /// Applies the next event. Returns true if the result may have changed.
    fn apply(&mut self, event: &Event) -> bool;

    /// Returns the computation of the result, which runs on a copy on another thread.
    fn result(&self) -> Box<dyn FnOnce() -> Value + Send>;
}

/// A service that publishes the result of `F` for each document.
pub(crate) struct FoldService<F> {
    relay: RelayClient,
    followed: Mutex<HashMap<DocumentId, FollowedDocument<F>>>,
}

/// A document whose state is kept.
struct FollowedDocument<F> {
    /// The state, locked while an event of the document is handled.
    state: Arc<tokio::sync::Mutex<FoldState<F>>>,
    last_used: Instant,
}

struct FoldState<F> {
    epoch: Option<String>,
    /// The seq of the last event that was read.
    seq: u64,
    fold: F,
    /// The last event that changed the result.
    newest: Option<(u64, EventId)>,
    /// The seq up to which the published results cover the history.
    covered: u64,
    /// The earliest time of the next result.
    due: Instant,
}

impl<F: Fold> FoldState<F> {
    fn new() -> Self {
        Self { epoch: None, seq: 0, fold: F::default(), newest: None, covered: 0, due: Instant::now() }
    }

    fn covers(&self, event: &Event) -> bool {
        let same_history = self.epoch.as_deref() == Some(event.epoch.to_string().as_str());
        same_history && event.seq.is_none_or(|seq| seq.get() <= self.covered)
    }

    /// Applies a page of the history. Returns true if more pages follow.
    fn read(&mut self, page: History) -> bool {
        match page {
            History::Page { epoch, .. } if self.epoch.as_ref().is_some_and(|known| *known != epoch) => {
                // A new epoch begins a new history.
                *self = Self { due: self.due, ..Self::new() };
                true
            }
            History::Page { epoch, events, next_after_seq, last_seq } => {
                self.epoch = Some(epoch);
                for event in &events {
                    if self.fold.apply(event) {
                        self.newest = event.seq.map(|seq| (seq.get(), event.id));
                    }
                }
                self.seq = next_after_seq;
                next_after_seq < last_seq
            }
            History::Trimmed { first_seq } => {
                // The relay has trimmed the history: the document begins with its first remaining event.
                *self = Self { seq: first_seq.saturating_sub(1), due: self.due, ..Self::new() };
                true
            }
        }
    }
}

impl<F: Fold> FoldService<F> {
    pub(crate) fn new(relay: RelayClient) -> Self {
        Self { relay, followed: Mutex::new(HashMap::new()) }
    }

    /// Returns the state of `document`. When too many are kept, the least recently used one is dropped.
    fn state(&self, document: &DocumentId) -> Arc<tokio::sync::Mutex<FoldState<F>>> {
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
        let state = Arc::new(tokio::sync::Mutex::new(FoldState::new()));
        followed.insert(document.clone(), FollowedDocument { state: Arc::clone(&state), last_used: now });
        state
    }
}

#[async_trait]
impl<F: Fold> Service for FoldService<F> {
    async fn handle(&self, event: Event) -> Result<(), HandleError> {
        let state = self.state(&event.document);
        // Events of one document are handled one at a time. A cancelled delivery leaves the pages that it has read.
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
