//! The state of a follower of a document, and the check of each delivery against it.
//!
//! The code does no I/O. Its checks are exact: seqs are contiguous, every edit is the next one of the trace, and the ids
//! and seqs are those that the author had acknowledged.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::text::GapText;
use super::trace::{Edit, Trace};

/// The kind of the edits.
pub(crate) const EDITED: &str = "document.edited";
/// The kind of the event after the last edit, by which a follower finds surplus edits.
pub(crate) const END: &str = "x-replay-end";

/// The parts of an event that are checked.
#[derive(Deserialize)]
pub(crate) struct CheckedEvent<'a> {
    id: &'a str,
    seq: Option<u64>,
    epoch: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// The meaning of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReplayEvent {
    /// The edit of the trace with this index.
    Edit(usize),
    /// The end: every edit has come, and the text is the trace's.
    End,
    /// An event that does not belong to the replay.
    Other,
}

/// One follower of one document.
pub(crate) struct Follower {
    trace: Arc<Trace>,
    epoch: String,
    seq: u64,
    edits: usize,
    text: GapText,
    digest: Digest,
}

impl Follower {
    /// Creates a follower that has no events of the epoch yet.
    pub(crate) fn new(trace: Arc<Trace>, epoch: String) -> Self {
        Self { trace, epoch, seq: 0, edits: 0, text: GapText::default(), digest: Digest::default() }
    }

    /// Checks a delivery of `kind` and applies it.
    ///
    /// # Errors
    /// When it is not the next one: an event was missed, doubled, changed or out of order.
    pub(crate) fn receive(&mut self, kind: &str, envelope: &str) -> anyhow::Result<ReplayEvent> {
        let event: CheckedEvent<'_> =
            serde_json::from_str(envelope).with_context(|| format!("not an event: {envelope}"))?;
        let Some(seq) = event.seq else { return Ok(ReplayEvent::Other) };
        ensure!(event.epoch == self.epoch, "epoch {} after {}", event.epoch, self.epoch);
        ensure!(seq == self.seq + 1, "seq {seq} after {}: missed, doubled or out of order", self.seq);
        self.seq = seq;
        match kind {
            EDITED => {
                let index = self.edits;
                self.edits += 1;
                let Some(expected) = self.trace.edits.get(index) else {
                    bail!("an edit too many, seq {seq}")
                };
                let edit: Edit<'_> = serde_json::from_str(event.payload.get())?;
                ensure!(edit == *expected, "edit {index} came as {}", event.payload);
                for patch in &edit.patches {
                    self.text.apply(patch)?;
                }
                self.digest.add(seq, event.id);
                Ok(ReplayEvent::Edit(index))
            }
            END => {
                let expected = self.trace.edits.len();
                ensure!(self.edits == expected, "{} of {expected} edits came", self.edits);
                ensure!(self.text.is(&self.trace.end), "the text differs from the trace's at the end");
                Ok(ReplayEvent::End)
            }
            _ => Ok(ReplayEvent::Other),
        }
    }

    /// Returns the join payload that asks for the events after this follower's position.
    pub(crate) fn position(&self) -> String {
        format!(r#"{{"epoch":"{}","seq":{}}}"#, self.epoch, self.seq)
    }

    /// Returns the digest of all seqs and ids of the edits.
    pub(crate) fn digest(&self) -> u64 {
        self.digest.value()
    }
}

/// A digest of a sequence of seqs and ids.
#[derive(Default)]
pub(crate) struct Digest(DefaultHasher);

impl Digest {
    pub(crate) fn add(&mut self, seq: u64, id: &str) {
        (seq, id).hash(&mut self.0);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Digest, EDITED, END, Edit, Follower, ReplayEvent, Trace};
    use crate::replay::trace::TracePatch;

    fn follower() -> Follower {
        let edits = vec![
            Edit { patches: vec![TracePatch(0, 0, "a\n".into())] },
            Edit { patches: vec![TracePatch(1, 1, "b".into())] },
        ];
        Follower::new(Arc::new(Trace { edits, end: "ab".to_owned() }), "e1".to_owned())
    }

    fn envelope(seq: u64, payload: &str) -> String {
        format!(
            r#"{{"id":"id-{seq}","document":"d","seq":{seq},"epoch":"e1","time":"","payload":{payload}}}"#
        )
    }

    const FIRST: &str = r#"{"patches":[[0,0,"a\n"]]}"#;
    const SECOND: &str = r#"{"patches": [[1, 1, "b"]]}"#;

    #[test]
    fn every_edit_in_order_and_the_end_are_right() {
        let mut follower = follower();
        assert_eq!(follower.receive(EDITED, &envelope(1, FIRST)).unwrap(), ReplayEvent::Edit(0));
        assert_eq!(follower.receive("user.joined", &envelope(2, "{}")).unwrap(), ReplayEvent::Other);
        assert_eq!(follower.receive(EDITED, &envelope(3, SECOND)).unwrap(), ReplayEvent::Edit(1));
        assert_eq!(follower.receive(END, &envelope(4, "{}")).unwrap(), ReplayEvent::End);
        assert_eq!(follower.position(), r#"{"epoch":"e1","seq":4}"#);
        let mut acknowledged = Digest::default();
        acknowledged.add(1, "id-1");
        acknowledged.add(3, "id-3");
        assert_eq!(follower.digest(), acknowledged.value());
    }

    #[test]
    fn a_missed_or_doubled_event_is_seen() {
        let mut follower = follower();
        assert!(follower.receive(EDITED, &envelope(2, FIRST)).unwrap_err().to_string().contains("missed"));
        follower.receive(EDITED, &envelope(1, FIRST)).unwrap();
        assert!(follower.receive(EDITED, &envelope(1, FIRST)).is_err());
    }

    #[test]
    fn a_changed_edit_is_seen() {
        assert!(follower().receive(EDITED, &envelope(1, SECOND)).unwrap_err().to_string().contains("edit 0"));
    }

    #[test]
    fn an_edit_too_many_or_too_few_is_seen() {
        let mut follower = follower();
        follower.receive(EDITED, &envelope(1, FIRST)).unwrap();
        assert!(follower.receive(END, &envelope(2, "{}")).unwrap_err().to_string().contains("1 of 2"));
        follower.receive(EDITED, &envelope(3, SECOND)).unwrap();
        assert!(follower.receive(EDITED, &envelope(4, SECOND)).unwrap_err().to_string().contains("too many"));
    }

    #[test]
    fn another_epoch_is_seen() {
        let other = envelope(1, FIRST).replace("e1", "e2");
        assert!(follower().receive(EDITED, &other).unwrap_err().to_string().contains("epoch"));
    }
}
