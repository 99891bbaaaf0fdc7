//! Which documents are in memory.
//!
//! A document is opened once, however many ask for it at the same time; an attempt that fails leaves nothing behind.
//! It can be evicted when nobody holds its channel, which is decided under the registry's lock, so that no one can get
//! hold of a channel that is going away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use relay_core::{DocumentId, Epoch, Event, EventLog, Head, LogError, Monotonic, Seq, SubscribeError};
use tokio::sync::OnceCell;

use crate::channel::Channel;
use crate::shared::Shared;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: RwLock<Inner>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<DocumentId, Arc<Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    channel: OnceCell<Arc<Channel>>,
}

impl Registry {
    /// The document's channel, opened if it is not, as long as the bus is not stopping.
    pub(crate) async fn open(
        &self,
        document: &DocumentId,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Channel>, SubscribeError> {
        if self.is_closed() {
            return Err(SubscribeError::Closed);
        }
        if let Some(channel) = self.opened(document) {
            return Ok(channel);
        }
        let channel = self.open_to_read(document, shared).await?;
        if self.is_closed() {
            // It may have been opened too late to be closed with the others.
            channel.close();
            return Err(SubscribeError::Closed);
        }
        Ok(channel)
    }

    /// The document's channel, if it is open and whole.
    fn opened(&self, document: &DocumentId) -> Option<Arc<Channel>> {
        let inner = self.inner.read();
        let channel = inner.entries.get(document)?.channel.get()?;
        (!channel.is_broken()).then(|| Arc::clone(channel))
    }

    /// The document's channel, for reading its history: listeners do that while the bus is stopping, too.
    pub(crate) async fn open_to_read(
        &self,
        document: &DocumentId,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Channel>, SubscribeError> {
        if let Some(channel) = self.opened(document) {
            return Ok(channel);
        }
        let entry = self.entry(document, shared)?;
        match entry.channel.get_or_try_init(|| load(document, shared)).await {
            Ok(channel) => Ok(Arc::clone(channel)),
            Err(error) => {
                drop(entry);
                self.remove_unopened(document);
                Err(error)
            }
        }
    }

    /// The document's entry, a new one if there is none that is whole.
    fn entry(&self, document: &DocumentId, shared: &Shared) -> Result<Arc<Entry>, SubscribeError> {
        let mut inner = self.inner.write();
        if inner.entries.get(document).is_some_and(|entry| entry.is_broken()) {
            inner.entries.remove(document);
        }
        if inner.entries.len() >= shared.config.max_channels && !inner.entries.contains_key(document) {
            inner.make_room(shared);
            if inner.entries.len() >= shared.config.max_channels {
                return Err(SubscribeError::TooManyDocuments { open: inner.entries.len() });
            }
        }
        Ok(Arc::clone(inner.entries.entry(document.clone()).or_default()))
    }

    /// Forgets a document whose opening failed, unless somebody else is trying again.
    fn remove_unopened(&self, document: &DocumentId) {
        let mut inner = self.inner.write();
        if let Some(entry) = inner.entries.get(document)
            && Arc::strong_count(entry) == 1
            && entry.channel.get().is_none()
        {
            inner.entries.remove(document);
        }
    }

    /// Drops the documents from memory that nobody has used for `idle_after`. Returns how many.
    pub(crate) fn evict_idle(&self, now: Monotonic, idle_after: Duration) -> usize {
        let mut inner = self.inner.write();
        let before = inner.entries.len();
        inner
            .entries
            .retain(|_, entry| entry.idle_since(now).is_none_or(|since| now.since(since) < idle_after));
        before - inner.entries.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.read().entries.len()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// All open channels.
    pub(crate) fn channels(&self) -> Vec<Arc<Channel>> {
        self.inner.read().entries.values().filter_map(|entry| entry.channel.get().cloned()).collect()
    }

    /// Opens nothing any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

impl Inner {
    /// Evicts the longest idle document, however short that is.
    fn make_room(&mut self, shared: &Shared) {
        let now = shared.clock.monotonic();
        let idle =
            self.entries.iter().filter_map(|(document, entry)| Some((entry.idle_since(now)?, document)));
        if let Some(document) = idle.min().map(|(_, document)| document.clone()) {
            self.entries.remove(&document);
            shared.counters.channels_evicted.add(1);
        }
    }
}

impl Entry {
    fn is_broken(&self) -> bool {
        self.channel.get().is_some_and(|channel| channel.is_broken())
    }

    /// Since when its channel is idle, with nobody but the registry holding it.
    fn idle_since(self: &Arc<Self>, now: Monotonic) -> Option<Monotonic> {
        let channel = self.channel.get()?;
        let unheld = Arc::strong_count(self) == 1 && Arc::strong_count(channel) == 1;
        if unheld { channel.idle_since(now) } else { None }
    }
}

/// Brings a document that this server owns into memory: its head, and its latest events.
async fn load(document: &DocumentId, shared: &Arc<Shared>) -> Result<Arc<Channel>, SubscribeError> {
    let tenure = shared.ownership.acquire(document).await?;
    let (head, recent) = match &shared.log {
        // A history that lives in memory alone begins anew with each opening.
        None => (Head::empty(Epoch::random()), Vec::new()),
        Some(log) => {
            let head = log.head(document).await?;
            (head, recent(document, head, log.as_ref(), shared).await?)
        }
    };
    shared.counters.channels_opened.add(1);
    Ok(Arc::new(Channel::new(document.clone(), tenure, head, recent, Arc::clone(shared))))
}

async fn recent(
    document: &DocumentId,
    head: Head,
    log: &dyn EventLog,
    shared: &Shared,
) -> Result<Vec<Event>, LogError> {
    let wanted = shared.config.warm_events.min(shared.config.cache_events) as u64;
    let start = head.last.get().saturating_sub(wanted).max(head.first.get() - 1);
    let mut events: Vec<Event> = Vec::new();
    let mut after = Seq::new(start);
    while after < head.last {
        match log.read_document(document, after, shared.config.replay_page).await {
            Ok(page) => {
                let Some(last) = page.last().and_then(|event| event.seq) else { break };
                after = last;
                events.extend(page);
            }
            // Retention overtook the reading: what is left is recent enough.
            Err(LogError::Trimmed { first, .. }) => {
                events.clear();
                after = Seq::new(first.get() - 1);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(events)
}
