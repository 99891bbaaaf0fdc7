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
use crate::context::ChannelContext;

#[derive(Debug, Default)]
pub(crate) struct ChannelMap {
    slots: RwLock<Slots>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Slots(HashMap<DocumentId, Arc<ChannelSlot>>);

#[derive(Debug, Default)]
struct ChannelSlot {
    channel: OnceCell<Arc<Channel>>,
}

impl ChannelMap {
    /// The document's channel, opened if it is not, as long as the bus is not stopping.
    pub(crate) async fn open(
        &self,
        document: &DocumentId,
        context: &Arc<ChannelContext>,
    ) -> Result<Arc<Channel>, SubscribeError> {
        if self.is_closed() {
            return Err(SubscribeError::Closed);
        }
        if let Some(channel) = self.get_open(document) {
            return Ok(channel);
        }
        let channel = self.open_to_read(document, context).await?;
        if self.is_closed() {
            // It may have been opened too late to be closed with the others.
            channel.close();
            return Err(SubscribeError::Closed);
        }
        Ok(channel)
    }

    /// The document's channel, if it is open and whole.
    fn get_open(&self, document: &DocumentId) -> Option<Arc<Channel>> {
        let slots = self.slots.read();
        let channel = slots.0.get(document)?.channel.get()?;
        (!channel.needs_reopening()).then(|| Arc::clone(channel))
    }

    /// The document's channel, for reading its history: listeners do that while the bus is stopping, too.
    pub(crate) async fn open_to_read(
        &self,
        document: &DocumentId,
        context: &Arc<ChannelContext>,
    ) -> Result<Arc<Channel>, SubscribeError> {
        if let Some(channel) = self.get_open(document) {
            return Ok(channel);
        }
        let slot = self.slot(document, context)?;
        match slot.channel.get_or_try_init(|| open_channel(document, context)).await {
            Ok(channel) => Ok(Arc::clone(channel)),
            Err(error) => {
                drop(slot);
                self.remove_failed(document);
                Err(error)
            }
        }
    }

    /// The document's slot, a new one if there is none that is whole.
    fn slot(
        &self,
        document: &DocumentId,
        context: &ChannelContext,
    ) -> Result<Arc<ChannelSlot>, SubscribeError> {
        let mut slots = self.slots.write();
        if slots.0.get(document).is_some_and(|slot| slot.needs_reopening()) {
            slots.0.remove(document);
        }
        if slots.0.len() >= context.config.max_channels && !slots.0.contains_key(document) {
            slots.evict_lru(context);
            if slots.0.len() >= context.config.max_channels {
                return Err(SubscribeError::TooManyDocuments { open: slots.0.len() });
            }
        }
        Ok(Arc::clone(slots.0.entry(document.clone()).or_default()))
    }

    /// Forgets a document whose opening failed, unless somebody else is trying again.
    fn remove_failed(&self, document: &DocumentId) {
        let mut slots = self.slots.write();
        if let Some(slot) = slots.0.get(document)
            && Arc::strong_count(slot) == 1
            && slot.channel.get().is_none()
        {
            slots.0.remove(document);
        }
    }

    /// Drops the documents from memory that nobody has used for `idle_after`. Returns how many.
    pub(crate) fn evict_idle(&self, now: Monotonic, idle_after: Duration) -> usize {
        let mut slots = self.slots.write();
        let before = slots.0.len();
        slots.0.retain(|_, slot| slot.idle_since(now).is_none_or(|since| now.since(since) < idle_after));
        before - slots.0.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.read().0.len()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// All open channels.
    pub(crate) fn channels(&self) -> Vec<Arc<Channel>> {
        self.slots.read().0.values().filter_map(|slot| slot.channel.get().cloned()).collect()
    }

    /// Opens nothing any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

impl Slots {
    /// Evicts the longest idle document, however short that is.
    fn evict_lru(&mut self, context: &ChannelContext) {
        let now = context.clock.monotonic();
        let idle = self.0.iter().filter_map(|(document, slot)| Some((slot.idle_since(now)?, document)));
        if let Some(document) = idle.min().map(|(_, document)| document.clone()) {
            self.0.remove(&document);
            context.counters.channels_evicted.increment();
        }
    }
}

impl ChannelSlot {
    fn needs_reopening(&self) -> bool {
        self.channel.get().is_some_and(|channel| channel.needs_reopening())
    }

    /// Since when its channel is idle, with nobody but the registry holding it.
    fn idle_since(self: &Arc<Self>, now: Monotonic) -> Option<Monotonic> {
        let channel = self.channel.get()?;
        let unheld = Arc::strong_count(self) == 1 && Arc::strong_count(channel) == 1;
        if unheld { channel.idle_since(now) } else { None }
    }
}

/// Brings a document that this server owns into memory: its head, and its latest events.
async fn open_channel(
    document: &DocumentId,
    context: &Arc<ChannelContext>,
) -> Result<Arc<Channel>, SubscribeError> {
    let tenure = context.ownership.acquire(document).await?;
    let (head, recent) = match &context.log {
        // A history that lives in memory alone begins anew with each opening.
        None => (Head::empty(Epoch::random()), Vec::new()),
        Some(log) => {
            let head = log.head(document).await?;
            (head, preload(document, head, log.as_ref(), context).await?)
        }
    };
    context.counters.channels_opened.increment();
    Ok(Arc::new(Channel::new(document.clone(), tenure, head, recent, Arc::clone(context))))
}

async fn preload(
    document: &DocumentId,
    head: Head,
    log: &dyn EventLog,
    context: &ChannelContext,
) -> Result<Vec<Event>, LogError> {
    let wanted = context.config.preload_events.min(context.config.cache_events) as u64;
    let start = head.last.get().saturating_sub(wanted).max(head.first.get() - 1);
    let mut events: Vec<Event> = Vec::new();
    let mut after = Seq::new(start);
    while after < head.last {
        match log.read_document(document, after, context.config.replay_page).await {
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
