//! Bounded mailboxes for subscriptions to many documents at once.
//!
//! Many documents have no single history to have a position in, so each subscription has a queue. When the queue is
//! full, sequenced events are not dropped. The document gets a *gap*, which grows while the subscription is busy. The
//! subscription fills it from the document's history when its queue is empty. Logged events are in no history, so those
//! that find the mailbox full are dropped and counted. Ephemeral events never queue: the mailbox keeps the newest of each
//! key.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, RwLock};
use relay_core::{DeliveryClass, DocumentId, Epoch, Event, MemoryPurpose, Reservation, Seq, ShareKind};

use crate::context::ChannelContext;
use crate::counters::Counters;
use crate::ephemeral::Ephemerals;
use crate::filter::Filter;

/// The limits of a mailbox, and the policy for when it is full.
///
/// A configuration starts from its default, and fields are set on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MailboxConfig {
    /// The most sequenced and logged events that wait, and the most ephemeral ones; 1,000 by default.
    pub capacity: NonZeroUsize,
    /// The bytes of waiting sequenced and logged events at which no further one waits, and the most of ephemeral ones, roughly; 16 MiB by
    /// default.
    pub max_bytes: usize,
    /// The most gaps at once, at about 200 bytes each; 100,000 by default. A document has one gap for each epoch in which
    /// events found the mailbox full. With 0 the first such event ends the subscription.
    pub max_gaps: usize,
    /// The policy for events that find the mailbox full; [`FullPolicy::Refill`] by default.
    pub on_full: FullPolicy,
}

/// The default of [`MailboxConfig::capacity`].
const CAPACITY: NonZeroUsize = NonZeroUsize::new(1_000).unwrap();

impl Default for MailboxConfig {
    fn default() -> Self {
        Self {
            capacity: CAPACITY,
            max_bytes: 16 * 1024 * 1024,
            max_gaps: 100_000,
            on_full: FullPolicy::Refill,
        }
    }
}

/// The policy for sequenced and logged events that find a mailbox full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FullPolicy {
    /// The subscription gets sequenced events from history later. Logged ones are dropped.
    #[default]
    Refill,
    /// The subscription ends. Its last item is [`Received::Overrun`](crate::Received::Overrun).
    Disconnect,
}

/// All mailboxes of a bus.
#[derive(Debug, Default)]
pub(crate) struct Mailboxes {
    list: RwLock<Vec<Arc<Mailbox>>>,
    /// The length of the list, so that a publisher takes no lock where there is no mailbox.
    count: AtomicUsize,
}

impl Mailboxes {
    pub(crate) fn add(&self, mailbox: Arc<Mailbox>) {
        let mut list = self.list.write();
        list.push(mailbox);
        self.count.store(list.len(), Ordering::Release);
    }

    pub(crate) fn remove(&self, mailbox: &Arc<Mailbox>) {
        let mut list = self.list.write();
        list.retain(|other| !Arc::ptr_eq(other, mailbox));
        self.count.store(list.len(), Ordering::Release);
    }

    /// Puts `event` into every mailbox whose filter passes it, and the wakers of those into `wakers`. The events of
    /// one document are offered in their order, under the channel's lock.
    pub(crate) fn offer(&self, event: &Arc<Event>, wakers: &mut Vec<Waker>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        for mailbox in self.list.read().iter() {
            if mailbox.filter.matches_fields(event) {
                wakers.extend(mailbox.offer(event));
            }
        }
    }

    /// Ends all mailboxes after the items that they hold.
    pub(crate) fn close(&self) {
        for mailbox in self.list.read().iter() {
            mailbox.close();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Mailbox {
    filter: Filter,
    config: MailboxConfig,
    counters: Arc<Counters>,
    state: Mutex<MailboxState>,
}

#[derive(Debug)]
struct MailboxState {
    queue: VecDeque<Arc<Event>>,
    /// The bytes of the events in the queue.
    bytes: usize,
    reserved: Reservation,
    gaps: Gaps,
    ephemerals: Ephemerals,
    waker: Option<Waker>,
    end: Option<MailboxEnd>,
}

impl MailboxState {
    fn has_space(&self, config: &MailboxConfig) -> bool {
        self.queue.len() < config.capacity.get() && self.bytes < config.max_bytes
    }

    fn enqueue(&mut self, event: &Arc<Event>) {
        self.queue.push_back(Arc::clone(event));
        self.bytes += event.approx_bytes();
        self.reserved.resize(self.bytes);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MailboxEnd {
    Closed,
    Overrun,
}

/// Sequenced events of one document that are not in the queue: those of one epoch after `after` up to and including `through`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) epoch: Epoch,
    pub(crate) after: Seq,
    pub(crate) through: Seq,
}

/// The gaps of all documents. A document has one gap for each epoch in which it missed events.
#[derive(Debug, Default)]
struct Gaps {
    /// The gaps of each document, in the order in which they began. No list is empty.
    by_document: BTreeMap<DocumentId, VecDeque<Gap>>,
    count: usize,
}

impl Gaps {
    /// Extends the document's latest gap by the event of `seq`. Returns false when the event begins a gap of its own.
    fn extend(&mut self, document: &DocumentId, epoch: Epoch, seq: Seq) -> bool {
        match self.by_document.get_mut(document).and_then(VecDeque::back_mut) {
            Some(gap) if gap.epoch == epoch => {
                gap.through = seq;
                true
            }
            _ => false,
        }
    }

    fn has(&self, document: &DocumentId) -> bool {
        self.by_document.contains_key(document)
    }

    /// Begins a gap with the event of `seq`.
    fn begin(&mut self, document: DocumentId, epoch: Epoch, seq: Seq) {
        let after = Seq::new(seq.get() - 1);
        self.by_document.entry(document).or_default().push_back(Gap { epoch, after, through: seq });
        self.count += 1;
    }

    fn first(&self) -> Option<(&DocumentId, Gap)> {
        let (document, gaps) = self.by_document.first_key_value()?;
        Some((document, *gaps.front()?))
    }

    /// Notes that the document's first gap, if it is of `epoch`, is filled up to and including `through`.
    fn fill(&mut self, document: &DocumentId, epoch: Epoch, through: Seq) {
        let Some(gaps) = self.by_document.get_mut(document) else { return };
        let Some(gap) = gaps.front_mut().filter(|gap| gap.epoch == epoch) else { return };
        gap.after = gap.after.max(through);
        if gap.after >= gap.through {
            gaps.pop_front();
            self.count -= 1;
        }
        if gaps.is_empty() {
            self.by_document.remove(document);
        }
    }
}

/// The next item of a mailbox.
#[derive(Debug)]
pub(crate) enum MailboxItem {
    Event(Arc<Event>),
    /// A gap, which the reader fills from history and then reports to [`Mailbox::mark_filled`].
    Gap(DocumentId, Gap),
    Overrun,
    Closed,
}

impl Mailbox {
    pub(crate) fn new(filter: Filter, config: MailboxConfig, context: &ChannelContext) -> Self {
        let caches = context.memory.caches();
        let state = MailboxState {
            queue: VecDeque::new(),
            bytes: 0,
            reserved: caches.charge(MemoryPurpose::Events, 0),
            gaps: Gaps::default(),
            ephemerals: Ephemerals::new(
                config.capacity.get(),
                caches.child(ShareKind::Document, config.max_bytes),
            ),
            waker: None,
            end: None,
        };
        Self { filter, config, counters: Arc::clone(&context.counters), state: Mutex::new(state) }
    }

    fn offer(&self, event: &Arc<Event>) -> Option<Waker> {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return None;
        }
        match (event.kind.class(), event.seq) {
            (DeliveryClass::Ephemeral, _) => {
                self.counters.ephemeral_dropped.add(state.ephemerals.put(Arc::clone(event)));
            }
            (_, Some(seq)) => self.offer_sequenced(&mut state, event, seq),
            (_, None) => self.offer_logged(&mut state, event),
        }
        state.waker.take()
    }

    fn offer_logged(&self, state: &mut MailboxState, event: &Arc<Event>) {
        if state.has_space(&self.config) {
            state.enqueue(event);
        } else if self.config.on_full == FullPolicy::Refill {
            self.counters.logged_dropped.increment();
        } else {
            self.counters.readers_lagged.increment();
            state.end = Some(MailboxEnd::Overrun);
        }
    }

    fn offer_sequenced(&self, state: &mut MailboxState, event: &Arc<Event>, seq: Seq) {
        if state.gaps.extend(&event.document, event.epoch, seq) {
            return;
        }
        if state.has_space(&self.config) && !state.gaps.has(&event.document) {
            state.enqueue(event);
        } else if self.config.on_full == FullPolicy::Refill && state.gaps.count < self.config.max_gaps {
            self.counters.mailbox_gaps.increment();
            state.gaps.begin(event.document.clone(), event.epoch, seq);
        } else {
            self.counters.readers_lagged.increment();
            state.end = Some(MailboxEnd::Overrun);
        }
    }

    pub(crate) fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.end.get_or_insert(MailboxEnd::Closed);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns the next item. A gap stays until it is filled.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<MailboxItem> {
        let mut state = self.state.lock();
        if let Some(event) = state.queue.pop_front() {
            state.bytes -= event.approx_bytes();
            let bytes = state.bytes;
            state.reserved.resize(bytes);
            return Poll::Ready(MailboxItem::Event(event));
        }
        if let Some((document, gap)) = state.gaps.first() {
            return Poll::Ready(MailboxItem::Gap(document.clone(), gap));
        }
        if let Some(event) = state.ephemerals.take_oldest() {
            return Poll::Ready(MailboxItem::Event(event));
        }
        match state.end {
            Some(MailboxEnd::Closed) => Poll::Ready(MailboxItem::Closed),
            Some(MailboxEnd::Overrun) => Poll::Ready(MailboxItem::Overrun),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Notes that the document's gap in `epoch` is filled up to and including `through`. When all its gaps are filled, new
    /// events queue again.
    pub(crate) fn mark_filled(&self, document: &DocumentId, epoch: Epoch, through: Seq) {
        self.state.lock().gaps.fill(document, epoch, through);
    }
}
