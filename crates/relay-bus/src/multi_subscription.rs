//! A subscription to many documents at once.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;

use relay_core::{DocumentId, Epoch, Event, LogError, Seq, SubscribeError};

use crate::channel_map::ChannelMap;
use crate::filter::Filter;
use crate::history::{self, HistoryError};
use crate::mailbox::{Gap, Mailbox, MailboxItem};

/// An item that a [`MultiSubscription`] receives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Received {
    /// An event, as [`Event::at`] gives it at this moment.
    Event(Arc<Event>),
    /// Events that found the mailbox full, and that this server can no longer give: those after `after` up to and including
    /// `through`. History no longer keeps them, or another server owns the document. Some of them may not have matched the
    /// filter.
    Missed {
        /// Their document.
        document: DocumentId,
        /// The epoch of their seqs. When it is no longer the document's, that history is gone.
        epoch: Epoch,
        /// The last event before them.
        after: Seq,
        /// The last of them.
        through: Seq,
    },
    /// The end of a subscription whose mailbox was full and may not leave gaps, or had too many of them. Nothing follows.
    Overrun,
}

/// Events of all documents that match a filter, from the moment of subscribing on.
///
/// Sequenced events of one document come in their order, each once; documents are not ordered against each other. Logged
/// events come while the mailbox has space, and those that find it full are dropped and counted, since no history has them.
/// Ephemeral events come when no others wait, the newest of each key. Dropping it ends the subscription.
#[derive(Debug)]
pub struct MultiSubscription {
    channels: Arc<ChannelMap>,
    mailbox: Arc<Mailbox>,
    filter: Filter,
    /// Events that were read from history to fill a gap.
    refill: VecDeque<Arc<Event>>,
    has_ended: bool,
}

impl MultiSubscription {
    pub(crate) fn new(channels: Arc<ChannelMap>, mailbox: Arc<Mailbox>, filter: Filter) -> Self {
        Self { channels, mailbox, filter, refill: VecDeque::new(), has_ended: false }
    }

    /// Receives the next item; `None` when the bus has stopped and everything was received. Cancel-safe: dropped, nothing
    /// is lost.
    ///
    /// # Errors
    /// [`LogError`], when a gap cannot be filled because the history cannot be read. Calling again tries again.
    pub async fn next(&mut self) -> Option<Result<Received, LogError>> {
        loop {
            while let Some(event) = self.refill.pop_front() {
                if let Some(event) = self.present(event)
                    && self.filter.matches(&event)
                {
                    return Some(Ok(Received::Event(event)));
                }
            }
            if self.has_ended {
                return None;
            }
            match poll_fn(|cx| self.mailbox.poll_next(cx)).await {
                MailboxItem::Event(event) => {
                    if let Some(event) = self.present(event)
                        && self.filter.matches_predicate(&event)
                    {
                        return Some(Ok(Received::Event(event)));
                    }
                }
                MailboxItem::Gap(document, gap) => match self.fill_gap(&document, gap).await {
                    Ok(None) => {}
                    Ok(Some(missed)) => return Some(Ok(missed)),
                    Err(error) => return Some(Err(error)),
                },
                MailboxItem::Overrun => {
                    self.has_ended = true;
                    return Some(Ok(Received::Overrun));
                }
                MailboxItem::Closed => self.has_ended = true,
            }
        }
    }

    fn present(&self, event: Arc<Event>) -> Option<Arc<Event>> {
        self.channels.context().present(event)
    }

    /// Reads a page of a gap's events. Returns the events that history no longer keeps, if there are any.
    async fn fill_gap(&mut self, document: &DocumentId, gap: Gap) -> Result<Option<Received>, LogError> {
        let limit = self.channels.context().config.replay_page;
        match history::page(&self.channels, document, gap.after, limit).await {
            Ok((head, page)) if head.epoch == gap.epoch => {
                let page = page.into_iter().filter(|event| event.seq.is_some_and(|seq| seq <= gap.through));
                self.refill.extend(page);
                let Some(filled) = self.refill.back().and_then(|event| event.seq) else {
                    return Ok(Some(self.miss(document, gap, gap.through)));
                };
                self.mailbox.mark_filled(document, gap.epoch, filled);
                Ok(None)
            }
            Err(HistoryError::Trimmed(head)) if head.epoch == gap.epoch => {
                let through =
                    Seq::new(head.first.get().saturating_sub(1)).min(gap.through).max(gap.after.next());
                Ok(Some(self.miss(document, gap, through)))
            }
            // The history of the gap's epoch is gone, or another server has it.
            Ok(_) | Err(HistoryError::Trimmed(_) | HistoryError::Other(SubscribeError::Ownership(_))) => {
                Ok(Some(self.miss(document, gap, gap.through)))
            }
            Err(HistoryError::Other(SubscribeError::Log(error))) => Err(error),
            Err(HistoryError::Other(_)) => Err(LogError::Closed),
        }
    }

    /// Gives up the events of a gap up to and including `through`.
    fn miss(&self, document: &DocumentId, gap: Gap, through: Seq) -> Received {
        self.mailbox.mark_filled(document, gap.epoch, through);
        Received::Missed { document: document.clone(), epoch: gap.epoch, after: gap.after, through }
    }
}

impl Drop for MultiSubscription {
    fn drop(&mut self) {
        self.channels.context().mailboxes.remove(&self.mailbox);
    }
}
