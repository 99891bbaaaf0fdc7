//! Drafts on their way through the log: the ones that wait in the queue, and the batch that the writer appends.

use std::collections::HashMap;
use std::time::Duration;

use relay_core::{
    CheckedDraft, Epoch, Event, EventId, Offset, Payload, PublishAck, PublishError, Reservation, Seq,
    Timestamp,
};
use tokio::sync::oneshot;

use crate::duplicate::{OriginalPayload, check_same_content};
use crate::recent_ids::MissingIds;

/// The bytes of a draft that cost as much as one more event.
const COST_BYTES: usize = 1024;

/// The answer to a publisher.
pub(super) type PublishResult = Result<PublishAck, PublishError>;

/// A draft that waits for the writer.
#[derive(Debug)]
pub(super) struct PendingDraft {
    pub(super) draft: CheckedDraft,
    pub(super) sender: AckSender,
    /// The space that the draft takes in the queue, and its share of a turn; see [`cost_of`].
    pub(super) cost: u32,
    /// The part of the least rate that was paid when the draft was taken.
    pub(super) price: Duration,
}

/// The cost of a draft of so many bytes.
pub(super) fn cost_of(bytes: usize) -> u32 {
    u32::try_from(1 + bytes / COST_BYTES).unwrap_or(u32::MAX)
}

/// The sender of one publisher's answer. It holds the memory of the draft among all queues, and frees it when dropped.
#[derive(Debug)]
pub(super) struct AckSender {
    sender: oneshot::Sender<PublishResult>,
    _reserved: Reservation,
}

impl AckSender {
    pub(super) fn new(reserved: Reservation) -> (Self, oneshot::Receiver<PublishResult>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender, _reserved: reserved }, receiver)
    }

    pub(super) fn send(self, answer: PublishResult) {
        // Receiver dropped; ignore the send error.
        let _ = self.sender.send(answer);
    }
}

/// The publishers of one event of a batch.
#[derive(Debug)]
pub(super) struct AckSenders {
    first: AckSender,
    /// The publishers that sent the same draft while it was on its way.
    duplicates: Vec<AckSender>,
    /// The payload that the publisher sent, where a stage rewrote it.
    original: Option<Payload>,
}

impl AckSenders {
    /// Takes the payload that the publisher sent; `None` when it is the event's own.
    pub(super) fn take_original(&mut self) -> Option<Payload> {
        self.original.take()
    }

    /// The number of publishers whose draft was a duplicate.
    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates.len() as u64
    }

    pub(super) fn send(self, ack: PublishAck) {
        self.first.send(Ok(ack));
        for duplicate in self.duplicates {
            duplicate.send(Ok(ack.as_duplicate()));
        }
    }

    fn refuse(self, error: &PublishError) {
        for sender in std::iter::once(self.first).chain(self.duplicates) {
            sender.send(Err(error.clone()));
        }
    }
}

/// Events that are appended to the log at once, with the publishers of each.
#[derive(Debug)]
pub(super) struct AppendBatch {
    events: Vec<Event>,
    /// The publishers of each event, in the order of the events.
    senders: Vec<AckSenders>,
    /// The indexes of the events whose ids their publishers chose.
    by_id: HashMap<EventId, usize>,
    /// Drafts that are no part of the batch, since an event that is no longer in memory has their id, with its seq.
    earlier: Vec<(PendingDraft, Seq)>,
    /// Drafts with the id of an event of the batch, whose index they have.
    duplicates: Vec<(usize, PendingDraft)>,
    missing_ids: Option<MissingIds>,
    next: Seq,
    /// The offset of the document's last event before the batch, as far as memory knows it.
    last_offset: Offset,
}

impl AppendBatch {
    /// Returns an empty batch whose first event comes after `last`, and whose offsets come after `last_offset`.
    pub(super) fn after(last: Seq, last_offset: Offset) -> Self {
        Self {
            events: Vec::new(),
            senders: Vec::new(),
            by_id: HashMap::new(),
            earlier: Vec::new(),
            duplicates: Vec::new(),
            missing_ids: None,
            next: last.next(),
            last_offset,
        }
    }

    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// The seq of the next sequenced event that is pushed.
    pub(super) fn next_seq(&self) -> Seq {
        self.next
    }

    pub(super) fn last_offset(&self) -> Offset {
        self.last_offset
    }

    /// Gives each event the offset that the log returned for it.
    pub(super) fn set_offsets(&mut self, offsets: Vec<Offset>) {
        for (event, offset) in self.events.iter_mut().zip(offsets) {
            event.offset = Some(offset);
        }
    }

    /// Tells all publishers that their drafts were not published.
    pub(super) fn refuse(self, error: &PublishError) {
        for senders in self.senders {
            senders.refuse(error);
        }
    }

    pub(super) fn into_parts(self) -> (Vec<Event>, Vec<AckSenders>) {
        (self.events, self.senders)
    }

    /// Sets a draft aside whose id the event of `seq` has, which is in the log alone.
    pub(super) fn push_earlier(&mut self, pending: PendingDraft, seq: Seq) {
        self.earlier.push((pending, seq));
    }

    /// Notes that the next draft of the queue is judged when the ids of `range` are known.
    pub(super) fn end_before(&mut self, range: MissingIds) {
        self.missing_ids = Some(range);
    }

    /// The ids without which the next draft of the queue cannot be judged.
    pub(super) fn missing_ids(&self) -> Option<MissingIds> {
        self.missing_ids
    }

    /// Takes the drafts whose events are to be looked at in the log.
    pub(super) fn take_earlier(&mut self) -> Vec<(PendingDraft, Seq)> {
        std::mem::take(&mut self.earlier)
    }

    /// Returns `pending`, unless its id is that of an event in the batch. Then it is set aside until the duplicates are
    /// [joined](Self::join_duplicates).
    pub(super) fn set_duplicate_aside(&mut self, pending: PendingDraft) -> Option<PendingDraft> {
        let Some(&index) = pending.draft.id.and_then(|id| self.by_id.get(&id)) else { return Some(pending) };
        self.duplicates.push((index, pending));
        None
    }

    /// Lets the publisher of each duplicate wait for the event that has its id, or refuses it when the contents differ.
    pub(super) fn join_duplicates(&mut self) {
        for (index, pending) in std::mem::take(&mut self.duplicates) {
            let (event, senders) = (&self.events[index], &mut self.senders[index]);
            let original = OriginalPayload::of(senders.original.as_ref());
            match check_same_content(&pending.draft, event, &original) {
                Ok(()) => senders.duplicates.push(pending.sender),
                Err(conflict) => pending.sender.send(Err(conflict)),
            }
        }
    }

    /// Turns a logged draft into the batch's next event, which has no seq.
    pub(super) fn push_logged(&mut self, pending: PendingDraft, epoch: Epoch, time: Timestamp) {
        let PendingDraft { draft, sender, .. } = pending;
        self.events.push(draft.into_event(epoch, None, time));
        self.senders.push(AckSenders { first: sender, duplicates: Vec::new(), original: None });
    }

    /// Turns a sequenced draft into the batch's next event.
    pub(super) fn push(&mut self, pending: PendingDraft, epoch: Epoch, time: Timestamp) {
        let PendingDraft { draft, sender, .. } = pending;
        if let Some(id) = draft.id {
            self.by_id.insert(id, self.events.len());
        }
        let original = draft.original_payload().cloned();
        self.events.push(draft.into_event(epoch, Some(self.next), time));
        self.next = self.next.next();
        self.senders.push(AckSenders { first: sender, duplicates: Vec::new(), original });
    }
}
