//! The way of a draft into its channel.
//!
//! A draft is *taken* when it gets its place in memory, or goes to the writer's queue. It waits for that while the queue is full
//! and while most readers are behind, for as long as the configuration allows. While they are behind, the document goes on at a
//! [least rate](super::min_rate). A logged draft waits only behind drafts of its
//! own actor: no reader gets it, and it comes from the server itself, which bounds the number.

use std::sync::Arc;
use std::time::Duration;

use relay_core::{CheckedDraft, DeliveryClass, MemoryPurpose, PublishError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::{AckSender, PendingDraft, PublishResult, cost_of};
use super::state::ChannelState;
use super::turns::TurnKey;
use super::{Channel, Sequenced, writer};
use crate::waker_set::wake_all;

/// The interval at which one of the drafts that wait looks if the [least rate](super::min_rate) of the document takes drafts.
const RATE_CHECK: Duration = Duration::from_millis(250);

/// The most drafts without a log that are taken under one lock after they have waited.
pub(super) const MAX_TAKEN: usize = 64;

/// Returns the answer to a draft, once its event is shown or it is refused.
pub(crate) async fn answer(channel: &Arc<Channel>, submitted: Submitted) -> PublishResult {
    let (key, mut answer) = match submitted {
        Submitted::Answered(answer) => return answer,
        Submitted::Queued(answer) => (None, answer),
        Submitted::Waiting(key, answer) => (Some(key), answer),
    };
    if let Some(key) = key {
        let waiting = Waiting { channel, key };
        let waited = channel.context().config.publish_timeout;
        let deadline = Instant::now() + waited;
        tokio::select! {
            biased;
            answer = &mut answer => return answer.unwrap_or(Err(PublishError::Closed)),
            () = tokio::time::sleep_until(deadline) => {
                if waiting.withdraw() {
                    return Err(PublishError::Overloaded { document: channel.document().clone(), waited });
                }
            }
            () = channel.keep_timer() => {}
        }
    }
    // The writer answers every draft, at the latest when it is dropped. `Closed` is a fallback for an answer that is lost.
    answer.await.unwrap_or(Err(PublishError::Closed))
}

/// The answer to a draft, or its receiver.
pub(crate) enum Submitted {
    Answered(PublishResult),
    /// The writer has the draft in its queue.
    Queued(oneshot::Receiver<PublishResult>),
    /// The draft waits for its turn.
    Waiting(TurnKey, oneshot::Receiver<PublishResult>),
}

/// A draft that waits to be taken. Dropped, it waits no longer.
struct Waiting<'c> {
    channel: &'c Channel,
    key: TurnKey,
}

impl Waiting<'_> {
    /// Returns true when the draft was not taken, and never will be.
    fn withdraw(&self) -> bool {
        self.channel.state.lock().withdraw(self.key)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Channel {
    /// Takes a draft, or lets it wait for its turn. The seqs and offsets of an actor's drafts follow the order of the calls. So do
    /// those of all drafts while none has to wait.
    pub(crate) fn submit(self: &Arc<Self>, draft: CheckedDraft) -> Submitted {
        match (draft.kind.class(), &self.context().log) {
            (DeliveryClass::Ephemeral, _) => return Submitted::Answered(self.publish_ephemeral(draft)),
            (DeliveryClass::Logged, None) => return Submitted::Answered(self.publish_unstored(draft)),
            (DeliveryClass::Sequenced | DeliveryClass::Logged, _) => {}
        }
        let mut state = match self.lock_open() {
            Ok(state) => state,
            Err(end) => return Submitted::Answered(Err(end.into())),
        };
        let bytes = draft.approx_bytes();
        let cost = cost_of(bytes);
        let price = state.price(&draft, cost);
        let mut taken = Taken::default();
        if let (Some(price), None) = (price, &self.context().log) {
            let sequenced = self.sequence_in_memory(&mut state, draft, price, &mut taken.wakers);
            drop(state);
            self.finish(taken);
            return Submitted::Answered(self.answer(sequenced));
        }
        let reserved = self.context().memory.total().try_reserve(MemoryPurpose::PublishQueue, bytes);
        let (sender, answer) = match reserved {
            Ok(reserved) => AckSender::new(reserved),
            Err(full) => return Submitted::Answered(Err(full.into())),
        };
        let pending = PendingDraft { draft, sender, cost, price: price.unwrap_or_default() };
        if price.is_none() {
            self.context().counters.drafts_waited.increment();
            let key = state.wait(pending);
            // Those that wait may have become free to go without a reader to notice it.
            let taken = self.take_waiting(&mut state);
            drop(state);
            self.finish(taken);
            return Submitted::Waiting(key, answer);
        }
        taken.start_writer = state.enqueue(pending);
        drop(state);
        self.finish(taken);
        Submitted::Queued(answer)
    }

    /// Adds a draft to the queue that was taken before. If the channel has ended, the draft is refused.
    pub(super) fn enqueue_again(self: &Arc<Self>, pending: PendingDraft) {
        let mut taken = Taken::default();
        match self.lock_open() {
            Ok(mut state) => taken.start_writer = state.enqueue(pending),
            Err(end) => pending.sender.send(Err(end.into())),
        }
        self.finish(taken);
    }

    /// Takes drafts that wait, in their turns, as far as possible. The caller passes the result to [`Channel::finish`] when it has
    /// released the lock.
    pub(super) fn take_waiting(&self, state: &mut ChannelState) -> Taken {
        let mut taken = Taken::default();
        while taken.answers.len() < MAX_TAKEN
            && let Some(pending) = state.next_waiting()
        {
            if self.context().log.is_some() {
                taken.start_writer |= state.enqueue(pending);
            } else {
                let sequenced =
                    self.sequence_in_memory(state, pending.draft, pending.price, &mut taken.wakers);
                taken.answers.push((pending.sender, sequenced));
            }
        }
        taken
    }

    /// Takes the drafts that the least rate of the document allows, again and again. Of the drafts that wait one does so at a
    /// time; the others wait until it is gone.
    async fn keep_timer(self: &Arc<Self>) {
        let _timer = self.timer.acquire().await;
        loop {
            tokio::time::sleep(RATE_CHECK).await;
            let taken = self.take_waiting(&mut self.state.lock());
            self.finish(taken);
        }
    }

    /// Does what must follow when drafts were taken, outside the lock.
    pub(super) fn finish(self: &Arc<Self>, taken: Taken) {
        let Taken { start_writer, answers, wakers } = taken;
        wake_all(wakers);
        for (sender, sequenced) in answers {
            sender.send(self.answer(sequenced));
        }
        if start_writer && let Some(log) = &self.context().log {
            writer::start(self, log);
        }
    }
}

/// The work that is left when drafts were taken.
#[derive(Default)]
#[must_use]
pub(super) struct Taken {
    /// Set when there is no writer for the queue.
    start_writer: bool,
    /// The answers to the publishers whose drafts got their places.
    answers: Vec<(AckSender, Sequenced)>,
    /// The wakers of the readers that have new events.
    wakers: Vec<std::task::Waker>,
}
