//! The documents that are in memory, and the opening of others.
//!
//! A document is opened once, however many tasks ask for it at the same time. An attempt that fails leaves nothing
//! behind. A document is evicted only when the map alone holds its channel. That is decided under the map's lock, so no
//! task can take hold of a channel that is being evicted.
//!
//! A document that has sequenced events takes one of a fixed number of places: it gets it when it is opened, or with its first
//! such event. A document without them costs a little memory, and nobody a place.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};
use relay_core::{
    DocumentId, Epoch, Event, EventLog, Head, LogError, MemoryPurpose, MemoryShare, Monotonic, ReadLimit,
    Reservation, Seq, SubscribeError,
};
use tokio::sync::OnceCell;

use crate::channel::{Channel, OpenDocument};
use crate::context::ChannelContext;
use crate::idle_queue::IdleQueue;
use crate::stages::OpenStages;

/// The channels of a bus, by document.
#[derive(Debug)]
pub(crate) struct ChannelMap {
    context: Arc<ChannelContext>,
    slots: RwLock<Slots>,
    closed: AtomicBool,
    /// The number of places that are taken.
    places: Arc<AtomicUsize>,
    /// Locked while caches are dropped.
    dropping_caches: Mutex<()>,
}

/// The limit of the documents that are in memory while another one is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenLimit {
    /// [`BusConfig::max_channels`](crate::BusConfig::max_channels).
    MaxChannels,
    /// None, for an event that closes what an earlier one opened: refused, it would leave the document's history open for
    /// ever. There are at most as many as things that were opened.
    Unlimited,
}

#[derive(Debug, Default)]
struct Slots {
    by_document: HashMap<DocumentId, Arc<ChannelSlot>>,
    /// The documents that are evicted for the memory of others.
    for_memory: Mutex<IdleQueue>,
    /// The documents that are evicted for a place.
    for_places: Mutex<IdleQueue>,
}

/// The lack for which a document is evicted.
#[derive(Debug, Clone, Copy)]
enum Lacking {
    Memory,
    Places,
}

/// The slot of one document's channel, which is empty while the document is being opened.
#[derive(Debug)]
struct ChannelSlot {
    channel: OnceCell<Arc<Channel>>,
    /// Set once the document has a place.
    place: OnceLock<Place>,
    _memory: Reservation,
}

/// One of the places for documents with events. Dropping it frees the place.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The memory that an open document takes without its events, roughly.
const DOCUMENT_BYTES: usize = 2048;

impl ChannelMap {
    pub(crate) fn new(context: Arc<ChannelContext>) -> Arc<Self> {
        Arc::new_cyclic(|map| {
            // A context has one map.
            let _ = context.channels.set(Weak::clone(map));
            Self {
                context,
                slots: RwLock::default(),
                closed: AtomicBool::new(false),
                places: Arc::default(),
                dropping_caches: Mutex::default(),
            }
        })
    }

    pub(crate) fn context(&self) -> &Arc<ChannelContext> {
        &self.context
    }

    /// Returns the document's channel, and opens it first if need be. Refuses once the bus stops.
    pub(crate) async fn open(
        &self,
        document: &DocumentId,
        limit: OpenLimit,
    ) -> Result<Arc<Channel>, SubscribeError> {
        if self.is_closed() {
            return Err(SubscribeError::Closed);
        }
        if let Some(channel) = self.get_open(document) {
            return Ok(channel);
        }
        let channel = self.open_slot(document, limit).await?;
        if self.is_closed() {
            // The channel may have been opened too late to be closed with the others.
            channel.close();
            return Err(SubscribeError::Closed);
        }
        Ok(channel)
    }

    /// Returns the document's channel, for reading its history. Subscriptions to many documents do that while the bus
    /// stops, too.
    pub(crate) async fn open_to_read(&self, document: &DocumentId) -> Result<Arc<Channel>, SubscribeError> {
        self.open_slot(document, OpenLimit::MaxChannels).await
    }

    async fn open_slot(
        &self,
        document: &DocumentId,
        limit: OpenLimit,
    ) -> Result<Arc<Channel>, SubscribeError> {
        if let Some(channel) = self.get_open(document) {
            return Ok(channel);
        }
        // Declared before the slot, so that it is dropped after it.
        let mut opening = Opening { channels: self, document, is_done: false };
        let slot = self.slot(document, limit)?;
        let channel = slot.channel.get_or_try_init(|| self.open_channel(document, limit)).await?;
        opening.is_done = true;
        self.context.relieve_memory();
        Ok(Arc::clone(channel))
    }

    /// Ends the document's channel if this server no longer owns the document. The next opening acquires it again, or says
    /// which server owns it. A publisher needs no such call, since taking a seq asks the same question.
    pub(crate) fn end_if_lost(&self, document: &DocumentId) {
        if let Some(channel) = self.get_open(document) {
            channel.check_owned();
        }
    }

    /// Returns the document's channel if it is in memory and has not failed.
    fn get_open(&self, document: &DocumentId) -> Option<Arc<Channel>> {
        let slots = self.slots.read();
        let channel = slots.by_document.get(document)?.channel.get()?;
        (!channel.needs_reopening()).then(|| Arc::clone(channel))
    }

    /// Returns the document's slot. A slot whose channel has failed is replaced by an empty one.
    fn slot(&self, document: &DocumentId, limit: OpenLimit) -> Result<Arc<ChannelSlot>, SubscribeError> {
        let mut slots = self.slots.write();
        if slots.by_document.get(document).is_some_and(|slot| slot.needs_reopening()) {
            slots.by_document.remove(document);
        }
        if let Some(slot) = slots.by_document.get(document) {
            return Ok(Arc::clone(slot));
        }
        let total = self.context.memory.total();
        let memory = match total.reserve_if_free(MemoryPurpose::Documents, DOCUMENT_BYTES) {
            Some(memory) => memory,
            None if limit == OpenLimit::Unlimited => total.charge(MemoryPurpose::Documents, DOCUMENT_BYTES),
            None => {
                slots.evict_lru(&self.context, Lacking::Memory);
                total.try_reserve(MemoryPurpose::Documents, DOCUMENT_BYTES)?
            }
        };
        let slot = ChannelSlot { channel: OnceCell::new(), place: OnceLock::new(), _memory: memory };
        Ok(Arc::clone(slots.by_document.entry(document.clone()).or_insert(Arc::new(slot))))
    }

    /// Gives the document of an open channel a place, unless it has one.
    ///
    /// # Errors
    /// The number of places, when all are in use.
    pub(crate) fn take_place(&self, channel: &Channel, limit: OpenLimit) -> Result<(), usize> {
        if !channel.has_place() {
            self.take_place_for(channel.document(), limit)?;
            channel.note_place();
        }
        Ok(())
    }

    /// Gives a document a place, for which the longest idle one may be evicted.
    fn take_place_for(&self, document: &DocumentId, limit: OpenLimit) -> Result<(), usize> {
        let max = self.context.config.max_channels;
        let mut slots = self.slots.write();
        // A document that has lost its slot has an ended channel, which refuses the draft.
        if slots.by_document.get(document).is_none_or(|slot| slot.has_place()) {
            return Ok(());
        }
        // There is more than one to evict only after documents were opened beyond the limit.
        while self.places() >= max && slots.evict_lru(&self.context, Lacking::Places) {}
        if self.places() >= max && limit == OpenLimit::MaxChannels {
            return Err(self.places());
        }
        if let Some(slot) = slots.by_document.get(document) {
            slot.place.get_or_init(|| {
                self.places.fetch_add(1, Ordering::Relaxed);
                Place(Arc::clone(&self.places))
            });
        }
        Ok(())
    }

    /// The number of places that are taken.
    pub(crate) fn places(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    /// True while a further document can get a place. With very many documents that are all used, the answer is a moment old.
    pub(crate) fn has_free_place(&self) -> bool {
        self.places() < self.context.config.max_channels || {
            self.slots.read().longest_idle(&self.context, Lacking::Places).is_some()
        }
    }

    /// Becomes the owner of a document, reads its head and its latest events, and makes the stages ready for it.
    async fn open_channel(
        &self,
        document: &DocumentId,
        limit: OpenLimit,
    ) -> Result<Arc<Channel>, SubscribeError> {
        let context = &self.context;
        let tenure = context.ownership.acquire(document).await?;
        let (head, recent) = match &context.log {
            // A history that lives in memory alone begins anew with each opening.
            None => (Head::empty(Epoch::random()), Vec::new()),
            Some(log) => {
                let head = log.head(document).await?;
                if head.last > Seq::ZERO {
                    self.take_place_for(document, limit)
                        .map_err(|open| SubscribeError::TooManyDocuments { open })?;
                }
                (head, preload(document, head, log.as_ref(), context).await?)
            }
        };
        let stages = OpenStages::open(document.clone(), Arc::clone(&context.sequencers), head).await?;
        context.counters.channels_opened.increment();
        let open = OpenDocument { stages, tenure };
        let channel = Channel::new(document.clone(), open, head, recent, Arc::clone(context));
        if head.last > Seq::ZERO {
            channel.note_place();
        }
        Ok(Arc::new(channel))
    }

    /// Removes the document's slot if it is empty and no task is opening the document.
    fn remove_failed(&self, document: &DocumentId) {
        let mut slots = self.slots.write();
        if let Some(slot) = slots.by_document.get(document)
            && Arc::strong_count(slot) == 1
            && slot.channel.get().is_none()
        {
            slots.by_document.remove(document);
        }
    }

    /// Ends the channels of documents that this server has lost, drops outdated events, and evicts documents that are idle
    /// for the configured time. Returns the number of evicted documents.
    pub(crate) fn sweep(&self) -> usize {
        let ChannelContext { config, clock, counters, .. } = &*self.context;
        let wall = config.retention.max_age.map(|_| clock.wall());
        for channel in self.channels() {
            channel.check_owned();
            if let Some(wall) = wall {
                channel.expire(wall);
            }
        }
        self.context.relieve_memory();
        if self.context.log.is_none() {
            // A history that is evicted from memory would be lost.
            return 0;
        }
        let evicted = self.evict_idle(clock.monotonic());
        counters.channels_evicted.add(evicted as u64);
        evicted
    }

    /// Drops the cached events of the documents that were used least recently, until the caches take an eighth less than
    /// they may. So a flood does not look for the oldest document again at each event.
    pub(crate) fn drop_caches(&self) {
        // Another task is at it already.
        let Some(_dropping) = self.dropping_caches.try_lock() else { return };
        let ChannelContext { memory, counters, .. } = &*self.context;
        let goal = |share: &MemoryShare| share.limit() - share.limit() / 8;
        let (caches, total) = (memory.caches(), memory.total());
        let is_done = || {
            let fits_total = self.context.log.is_none() || total.used() <= goal(total);
            caches.used() <= goal(caches) && fits_total
        };
        let mut channels = self.channels();
        channels.sort_by_cached_key(|channel| channel.last_cache_use());
        for channel in channels {
            if is_done() {
                break;
            }
            counters.caches_dropped.add(u64::from(channel.drop_cache()));
        }
    }

    fn evict_idle(&self, now: Monotonic) -> usize {
        let idle_after = self.context.config.idle_after;
        let mut slots = self.slots.write();
        let before = slots.by_document.len();
        slots
            .by_document
            .retain(|_, slot| slot.idle_since(now).is_none_or(|since| now.since(since) < idle_after));
        before - slots.by_document.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.read().by_document.len()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Returns all channels in memory.
    pub(crate) fn channels(&self) -> Vec<Arc<Channel>> {
        self.slots.read().by_document.values().filter_map(|slot| slot.channel.get().cloned()).collect()
    }

    /// Refuses the opening of documents from now on, other than for reading. The channels in memory stay open.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Ends all channels.
    pub(crate) fn close_channels(&self) {
        for channel in self.channels() {
            channel.close();
        }
    }
}

/// An attempt to open a document. Dropped, whether the attempt failed or was cancelled, it leaves no empty slot behind.
struct Opening<'a> {
    channels: &'a ChannelMap,
    document: &'a DocumentId,
    is_done: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.channels.remove_failed(self.document);
        }
    }
}

impl Slots {
    /// Evicts the document that is idle for longest, however short that is. Returns false when none may go.
    fn evict_lru(&mut self, context: &ChannelContext, lacking: Lacking) -> bool {
        let Some(document) = self.longest_idle(context, lacking) else { return false };
        self.by_document.remove(&document);
        context.counters.channels_evicted.increment();
        true
    }

    /// Returns the document that is idle for longest of those that may go.
    fn longest_idle(&self, context: &ChannelContext, lacking: Lacking) -> Option<DocumentId> {
        let (now, slots) = (context.clock.monotonic(), &self.by_document);
        let (queue, is_useful): (_, &dyn Fn(&ChannelSlot) -> bool) = match lacking {
            // Without a log a document that is evicted loses its history.
            Lacking::Memory => (&self.for_memory, &|slot| context.log.is_some() || !slot.has_place()),
            Lacking::Places => (&self.for_places, &ChannelSlot::has_place),
        };
        let idle_since = |slot: &Arc<ChannelSlot>| slot.idle_since(now).filter(|_| is_useful(slot));
        let idle = || slots.iter().filter_map(|(document, slot)| Some((idle_since(slot)?, document)));
        queue.lock().first(now, slots.len(), idle, |document| idle_since(slots.get(document)?))
    }
}

impl ChannelSlot {
    /// True once the document has a place.
    fn has_place(&self) -> bool {
        self.place.get().is_some()
    }

    fn needs_reopening(&self) -> bool {
        self.channel.get().is_some_and(|channel| channel.needs_reopening())
    }

    /// The time since when the channel is idle; `None` while it is used, or held outside of the map.
    fn idle_since(self: &Arc<Self>, now: Monotonic) -> Option<Monotonic> {
        let channel = self.channel.get()?;
        let is_unheld = Arc::strong_count(self) == 1 && Arc::strong_count(channel) == 1;
        if is_unheld { channel.idle_since(now) } else { None }
    }
}

/// Reads the document's latest events up to `head`, as many as configured.
///
/// Another server may append after the head was read, and a log may hold less than the head says. The result is empty
/// unless it ends with the head's last event, since the channel counts the seqs of its cache back from there.
async fn preload(
    document: &DocumentId,
    head: Head,
    log: &dyn EventLog,
    context: &ChannelContext,
) -> Result<Vec<Event>, LogError> {
    // The latest event at least, after whose time the next one comes.
    let wanted = context.config.preload_events.min(context.config.cache_events).max(1) as u64;
    let start = head.last.get().saturating_sub(wanted).max(head.first.get() - 1);
    let mut events: VecDeque<Event> = VecDeque::new();
    let mut bytes = 0;
    let mut after = Seq::new(start);
    while after < head.last {
        let left = usize::try_from(head.last.since(after)).unwrap_or(usize::MAX);
        let page = context.config.replay_page;
        let limit = ReadLimit { events: page.events.min(left), ..page };
        match log.read_document(document, after, limit).await {
            Ok(page) => {
                let Some(last) = page.last().and_then(|event| event.seq) else { break };
                after = last;
                bytes += page.iter().map(Event::approx_bytes).sum::<usize>();
                events.extend(page);
                // The latest ones count. More than the cache takes is not even read into memory at once.
                while bytes > context.config.cache_bytes && events.len() > 1 {
                    bytes -= events.pop_front().map_or(0, |event| event.approx_bytes());
                }
            }
            // Retention dropped events meanwhile. The ones that are left are recent enough.
            Err(LogError::Trimmed { first, .. }) => {
                events.clear();
                bytes = 0;
                after = Seq::new(first.get() - 1);
            }
            Err(error) => return Err(error),
        }
    }
    if events.back().is_none_or(|event| event.seq != Some(head.last)) {
        events.clear();
    }
    Ok(events.into())
}

#[cfg(test)]
mod tests {
    use relay_core::testing::{ManualClock, MemoryLog};
    use relay_core::{Draft, Payload};

    use super::*;
    use crate::bus::BusParts;
    use crate::{Bus, BusConfig};

    /// Another server can append between the reading of the head and the reading of the events.
    #[tokio::test]
    async fn events_after_the_head_are_not_preloaded() {
        let (document, clock) = (DocumentId::new("doc").unwrap(), Arc::new(ManualClock::new()));
        let log = Arc::new(MemoryLog::new());
        let mut parts = BusParts::new(clock);
        parts.log = Some(Arc::clone(&log) as _);
        let bus = Bus::with_parts(BusConfig::default(), parts).unwrap();
        for number in 1..=6_u64 {
            let kind = relay_events::kind("x-note").unwrap();
            let draft = Draft::new(document.clone(), kind, Payload::json(&number).unwrap());
            bus.publish(relay_events::check(draft).unwrap()).await.unwrap();
        }
        let read = log.head(&document).await.unwrap();
        let context = bus.context();
        for (last, expected) in [(4, 1..=4), (6, 1..=6)] {
            let head = Head::new(read.epoch, read.first, Seq::new(last));
            let events = preload(&document, head, log.as_ref(), context).await.unwrap();
            let seqs: Vec<u64> = events.iter().filter_map(|event| event.seq).map(Seq::get).collect();
            assert_eq!(seqs, expected.collect::<Vec<_>>());
        }
        // The log holds less than the head says.
        let head = Head::new(read.epoch, read.first, Seq::new(7));
        assert!(preload(&document, head, log.as_ref(), context).await.unwrap().is_empty());
    }
}
