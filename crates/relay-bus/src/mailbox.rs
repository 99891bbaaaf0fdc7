//! Bounded mailboxes for subscriptions to many documents at once.
//!
//! Many documents have no single history to have a position in, so each subscription has a queue. When the queue is
//! full, durable events are not dropped. The document gets a *gap*, which grows while the subscription is busy. The
//! subscription fills it from the document's history when its queue is empty. Ephemeral events never queue: the mailbox
//! keeps the newest of each key.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, RwLock};
use relay_core::{DocumentId, Event, Seq};

use crate::counters::Counters;
use crate::ephemeral::Ephemerals;
use crate::filter::Filter;

/// The limits of a mailbox, and the policy for when it is full.
///
/// A configuration starts from its default, and fields are set on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MailboxConfig {
    /// The most durable events that wait, and the most ephemeral ones; 1,000 by default.
    pub capacity: NonZeroUsize,
    /// The most documents that have gaps at once, at about 100 bytes each; 100,000 by default. With 0 the first event that
    /// finds the mailbox full ends the subscription.
    pub max_gaps: usize,
    /// The policy for durable events that find the mailbox full; [`FullPolicy::Refill`] by default.
    pub on_full: FullPolicy,
}

/// The default of [`MailboxConfig::capacity`].
const CAPACITY: NonZeroUsize = NonZeroUsize::new(1_000).unwrap();

impl Default for MailboxConfig {
    fn default() -> Self {
        Self { capacity: CAPACITY, max_gaps: 100_000, on_full: FullPolicy::Refill }
    }
}

/// The policy for durable events that find a mailbox full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FullPolicy {
    /// The subscription gets them from history later.
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

    /// Puts `event` into every mailbox whose filter passes it, and the wakers of those into `wakers`. The durable events of
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
    gaps: BTreeMap<DocumentId, Gap>,
    ephemerals: Ephemerals,
    waker: Option<Waker>,
    end: Option<MailboxEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MailboxEnd {
    Closed,
    Overrun,
}

/// Durable events of one document that are not in the queue: those after `after` up to and including `through`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) after: Seq,
    pub(crate) through: Seq,
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
    pub(crate) fn new(filter: Filter, config: MailboxConfig, counters: Arc<Counters>) -> Self {
        let state = MailboxState {
            queue: VecDeque::new(),
            gaps: BTreeMap::new(),
            ephemerals: Ephemerals::new(config.capacity.get()),
            waker: None,
            end: None,
        };
        Self { filter, config, counters, state: Mutex::new(state) }
    }

    fn offer(&self, event: &Arc<Event>) -> Option<Waker> {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return None;
        }
        match event.seq {
            None => {
                if state.ephemerals.put(Arc::clone(event)) {
                    self.counters.ephemeral_dropped.increment();
                }
            }
            Some(seq) => self.offer_durable(&mut state, event, seq),
        }
        state.waker.take()
    }

    fn offer_durable(&self, state: &mut MailboxState, event: &Arc<Event>, seq: Seq) {
        if let Some(gap) = state.gaps.get_mut(&event.document) {
            gap.through = seq;
        } else if state.queue.len() < self.config.capacity.get() {
            state.queue.push_back(Arc::clone(event));
        } else if self.config.on_full == FullPolicy::Refill && state.gaps.len() < self.config.max_gaps {
            self.counters.mailbox_gaps.increment();
            let after = Seq::new(seq.get() - 1);
            state.gaps.insert(event.document.clone(), Gap { after, through: seq });
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
            return Poll::Ready(MailboxItem::Event(event));
        }
        if let Some((document, gap)) = state.gaps.first_key_value() {
            return Poll::Ready(MailboxItem::Gap(document.clone(), *gap));
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

    /// Notes that the document's gap is filled up to and including `through`. When the whole gap is filled, new events
    /// queue again.
    pub(crate) fn mark_filled(&self, document: &DocumentId, through: Seq) {
        let mut state = self.state.lock();
        if let Some(gap) = state.gaps.get_mut(document) {
            gap.after = gap.after.max(through);
            if gap.after >= gap.through {
                state.gaps.remove(document);
            }
        }
    }
}
