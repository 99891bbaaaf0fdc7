//! [`LeftoverTracker`]: the [`Leftovers`] by the events that this server publishes, and the offset up to which they are known.
//!
//! An event counts when its ack has come. Until then it may or may not be in the log, at an offset after all that were known
//! when its publishing began. So a checkpoint stands before the events that are under way, and a reader of the log finds them.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use relay_core::{CheckedDraft, ErrorCode, Offset, PublishAck, PublishError};

use super::Leftovers;
use super::checkpoint::Checkpoint;

/// The tracked events. It tracks none before its [start](Self::start).
#[derive(Debug, Default)]
pub(crate) struct LeftoverTracker(Mutex<Option<Tracked>>);

#[derive(Debug)]
struct Tracked {
    leftovers: Leftovers,
    /// The attempts to publish that are under way, each with an offset before that of its event.
    under_way: BTreeMap<u64, Offset>,
    next_attempt: u64,
    /// The last offset that is known.
    last: Offset,
}

/// An attempt to publish an event that begins or ends something.
#[derive(Debug)]
pub(crate) struct Attempt {
    number: u64,
    draft: CheckedDraft,
}

impl LeftoverTracker {
    /// Begins with `leftovers`, which are those of the log up to `offset`.
    pub(crate) fn start(&self, leftovers: Leftovers, offset: Offset) {
        let (under_way, next_attempt) = (BTreeMap::new(), 0);
        *self.0.lock() = Some(Tracked { leftovers, under_way, next_attempt, last: offset });
    }

    /// Notes that the publishing of `draft` begins. `None` for a draft that need not be tracked.
    pub(crate) fn begin(&self, draft: &CheckedDraft) -> Option<Attempt> {
        if !Leftovers::concerns(&draft.kind) {
            return None;
        }
        let mut tracked = self.0.lock();
        let tracked = tracked.as_mut()?;
        let number = tracked.next_attempt;
        tracked.next_attempt += 1;
        tracked.under_way.insert(number, tracked.last);
        Some(Attempt { number, draft: draft.clone() })
    }

    /// Takes the outcome of an attempt. After a failure of the log it is not known if the event is kept, so that the attempt
    /// counts as under way from then on.
    pub(crate) fn end(&self, attempt: Option<Attempt>, outcome: &Result<PublishAck, PublishError>) {
        let Some(Attempt { number, draft }) = attempt else { return };
        let mut tracked = self.0.lock();
        let Some(tracked) = tracked.as_mut() else { return };
        match outcome {
            Ok(ack) => {
                tracked.leftovers.apply(&draft.document, &draft.kind, draft.session, &draft.payload);
                tracked.last = tracked.last.max(ack.offset.unwrap_or_default());
            }
            Err(error) if error.code() == ErrorCode::LogFailed => return,
            Err(_) => {}
        }
        tracked.under_way.remove(&number);
    }

    /// Returns a checkpoint. `last` is the last offset of the log, as of a moment before this call.
    pub(crate) fn checkpoint(&self, last: Offset) -> Option<Checkpoint> {
        let mut tracked = self.0.lock();
        let tracked = tracked.as_mut()?;
        let offset = tracked.under_way.values().min().copied().unwrap_or(last.max(tracked.last));
        if tracked.under_way.is_empty() {
            tracked.last = offset;
        }
        Some(Checkpoint { offset, leftovers: tracked.leftovers.clone() })
    }
}
