//! [`LeftoverTracker`]: the [`Leftovers`] by the events that this server publishes, and the offset up to which they are known.
//!
//! An event counts when its ack has come. Until then it may or may not be in the log, at an offset after all that were known
//! when its publishing began. So a checkpoint stands before the events that are under way, and a reader of the log finds them.
//!
//! Some attempts never get an outcome: the log failed, or the attempt was dropped. The checkpoints stay before them while this
//! server lives. The next one reads there if the log kept the event. A log that failed takes no further events until then.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use relay_core::{CheckedDraft, LogError, Offset, PublishAck, PublishError};

use super::Leftovers;
use super::checkpoint::Checkpoint;

/// The tracked events. It tracks none before its [start](Self::start).
#[derive(Debug, Default)]
pub(crate) struct LeftoverTracker(Mutex<Option<Tracked>>);

#[derive(Debug)]
struct Tracked {
    leftovers: Leftovers,
    /// The attempts to publish that are under way, each with an offset before that of its event. The offsets only grow.
    under_way: BTreeMap<u64, Offset>,
    next_attempt: u64,
    /// An offset before the events of all attempts that never get an outcome.
    unknown_after: Option<Offset>,
    /// The last offset that is known.
    last: Offset,
}

/// An attempt to publish an event that begins or ends something. One that is dropped never gets an outcome.
#[derive(Debug)]
pub(crate) struct Attempt<'t> {
    tracker: &'t LeftoverTracker,
    number: u64,
    draft: CheckedDraft,
}

impl LeftoverTracker {
    /// Begins with `leftovers`, which are those of the log up to `offset`.
    pub(crate) fn start(&self, leftovers: Leftovers, offset: Offset) {
        *self.0.lock() = Some(Tracked {
            leftovers,
            under_way: BTreeMap::new(),
            next_attempt: 0,
            unknown_after: None,
            last: offset,
        });
    }

    /// Notes that the publishing of `draft` begins. `None` for a draft that need not be tracked.
    pub(crate) fn begin(&self, draft: &CheckedDraft) -> Option<Attempt<'_>> {
        if !Leftovers::concerns(&draft.kind) {
            return None;
        }
        let mut tracked = self.0.lock();
        let tracked = tracked.as_mut()?;
        let number = tracked.next_attempt;
        tracked.next_attempt += 1;
        tracked.under_way.insert(number, tracked.last);
        Some(Attempt { tracker: self, number, draft: draft.clone() })
    }

    /// Returns a checkpoint. `last` is the last offset of the log, as of a moment before this call.
    pub(crate) fn checkpoint(&self, last: Offset) -> Option<Checkpoint> {
        let mut tracked = self.0.lock();
        let tracked = tracked.as_mut()?;
        // What begins from now on has a later offset.
        tracked.last = tracked.last.max(last);
        let first_under_way = tracked.under_way.first_key_value().map(|(_, offset)| *offset);
        let offset = tracked.unknown_after.into_iter().chain(first_under_way).min().unwrap_or(tracked.last);
        Some(Checkpoint { offset, leftovers: tracked.leftovers.clone() })
    }
}

impl Attempt<'_> {
    /// Takes the outcome. A failure of the log is none: it is not known if the event is kept.
    pub(crate) fn end(self, outcome: &Result<PublishAck, PublishError>) {
        let Self { tracker, number, ref draft } = self;
        let mut tracked = tracker.0.lock();
        let Some(tracked) = tracked.as_mut() else { return };
        match outcome {
            Ok(ack) => {
                tracked.leftovers.apply(&draft.document, &draft.kind, draft.session, &draft.payload);
                tracked.last = tracked.last.max(ack.offset.unwrap_or_default());
            }
            Err(PublishError::Log(LogError::Failed { .. })) => return,
            Err(_) => {}
        }
        tracked.under_way.remove(&number);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut tracked = self.tracker.0.lock();
        let Some(tracked) = tracked.as_mut() else { return };
        if let Some(offset) = tracked.under_way.remove(&self.number) {
            tracked.unknown_after = Some(tracked.unknown_after.map_or(offset, |after| after.min(offset)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use relay_core::{DocumentId, SessionId};
    use relay_events::{EndReason, SessionEnded, server_draft};

    use super::*;

    fn tracker() -> LeftoverTracker {
        let tracker = LeftoverTracker::default();
        tracker.start(Leftovers::default(), Offset::new(10));
        tracker
    }

    fn draft() -> CheckedDraft {
        let ended = SessionEnded { reason: EndReason::Left };
        server_draft(DocumentId::new("notes").unwrap(), &ended).unwrap().session(SessionId::new())
    }

    fn failed() -> PublishError {
        let source = Arc::new(std::io::Error::other("on fire"));
        LogError::Failed { source }.into()
    }

    fn under_way(tracker: &LeftoverTracker) -> usize {
        tracker.0.lock().as_ref().unwrap().under_way.len()
    }

    fn offset(tracker: &LeftoverTracker, last: u64) -> u64 {
        tracker.checkpoint(Offset::new(last)).unwrap().offset.get()
    }

    #[test]
    fn attempts_without_an_outcome_keep_the_checkpoint_before_them_and_take_no_memory() {
        let tracker = tracker();
        assert_eq!(offset(&tracker, 20), 20);
        for _ in 0..1_000 {
            tracker.begin(&draft()).unwrap().end(&Err(failed()));
            drop(tracker.begin(&draft()));
            assert_eq!(offset(&tracker, 30), 20);
        }
        assert_eq!(under_way(&tracker), 0);
    }

    #[test]
    fn a_refusal_of_the_log_is_an_outcome() {
        let tracker = tracker();
        let refused = LogError::Corrupt { detail: "on fire".to_owned() };
        tracker.begin(&draft()).unwrap().end(&Err(refused.into()));
        assert_eq!(offset(&tracker, 20), 20);
    }

    #[test]
    fn a_checkpoint_is_before_the_first_attempt_under_way() {
        let tracker = tracker();
        let first = tracker.begin(&draft()).unwrap();
        assert_eq!(offset(&tracker, 20), 10);
        let second = tracker.begin(&draft()).unwrap();
        assert_eq!(offset(&tracker, 30), 10);
        let refused = || Err(PublishError::Closed);
        first.end(&refused());
        assert_eq!(offset(&tracker, 30), 20);
        second.end(&refused());
        assert_eq!(offset(&tracker, 30), 30);
    }
}
