//! The text that results from a document's ordered events, by the same rules as in the page's `text.js`.
//!
//! The `base` of an edit is the last event that its author had seen. Every reader transforms the edit over the edits
//! between its base and its seq in the same way, so all readers get the same text.

use std::collections::VecDeque;

use relay_core::Event;
use relay_events::{Body, DocumentEdited, Patch};

/// The largest distance of an edit from its base. An edit with an older base is applied without transformation.
const WINDOW: usize = 2_000;
/// The longest text in code points; a longer one is not kept.
const MOST_POINTS: usize = 1_000_000;

/// The text of a document after some of its events.
#[derive(Debug, Default)]
pub(crate) struct SharedText {
    points: Vec<char>,
    /// The operations of the latest events as they were applied; the last one belongs to `seq`.
    operations: VecDeque<Vec<Operation>>,
    seq: u64,
    is_too_long: bool,
}

impl SharedText {
    /// Applies the next event. Returns true if it is an edit.
    pub(crate) fn apply(&mut self, event: &Event) -> bool {
        let Some(seq) = event.seq.map(relay_core::Seq::get) else { return false };
        let edit = match Body::of(event) {
            Ok(Body::DocumentEdited(DocumentEdited::Patches { patches, base })) => Some((patches, base)),
            _ => None,
        };
        let is_edit = edit.is_some();
        let operations = edit.map(|(patches, base)| self.edit(seq, &patches, base.map(relay_core::Seq::get)));
        self.seq = seq;
        self.operations.push_back(operations.unwrap_or_default());
        if self.operations.len() > WINDOW {
            self.operations.pop_front();
        }
        is_edit
    }

    /// Returns the text, unless it is too long to be kept.
    pub(crate) fn text(&self) -> Option<String> {
        (!self.is_too_long).then(|| self.points.iter().collect())
    }

    /// Transforms and applies an edit. Returns its operations as they were applied.
    fn edit(&mut self, seq: u64, patches: &[Patch], base: Option<u64>) -> Vec<Operation> {
        let mut operations: Vec<_> = patches.iter().map(Operation::of).collect();
        for earlier in self.since(seq, base) {
            let mut earlier = earlier.clone();
            for operation in &mut operations {
                (earlier, *operation) = transform(&earlier, operation);
            }
        }
        for (operation, patch) in operations.iter().zip(patches) {
            self.apply_operation(operation, &patch.inserted);
        }
        operations
    }

    /// Returns the operations between an edit's base and its seq.
    fn since(&self, seq: u64, base: Option<u64>) -> impl Iterator<Item = &Operation> {
        let recent = base.filter(|base| seq.saturating_sub(*base) <= WINDOW as u64);
        let count = recent.map_or(0, |base| self.seq.saturating_sub(base));
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.operations.len());
        self.operations.iter().skip(self.operations.len() - count).flatten()
    }

    fn apply_operation(&mut self, operation: &Operation, inserted: &str) {
        if self.is_too_long {
            return;
        }
        let mut at = 0_usize;
        for part in &operation.0 {
            match *part {
                Part::Keep(count) => at = at.saturating_add(count).min(self.points.len()),
                Part::Delete(count) => {
                    self.points.drain(at..at.saturating_add(count).min(self.points.len()));
                }
                // A patch inserts one text, which a transformation does not divide.
                Part::Insert(count) => {
                    self.points.splice(at..at, inserted.chars());
                    at += count;
                }
            }
        }
        if self.points.len() > MOST_POINTS {
            (self.is_too_long, self.points) = (true, Vec::new());
        }
    }
}

/// A walk over a text: runs of code points that are kept, deleted or inserted. The rest of the text is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Operation(Vec<Part>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Keep(usize),
    Delete(usize),
    Insert(usize),
}

impl Operation {
    /// Makes the operation of a patch. Positions beyond the text are cut off when it is applied.
    fn of(patch: &Patch) -> Self {
        let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let parts = [
            Part::Keep(size(patch.position)),
            Part::Delete(size(patch.deleted)),
            Part::Insert(patch.inserted.chars().count()),
        ];
        Self(parts.into_iter().filter(|part| part.size() > 0).collect())
    }
}

impl Part {
    fn size(self) -> usize {
        match self {
            Self::Keep(size) | Self::Delete(size) | Self::Insert(size) => size,
        }
    }

    fn shortened(self, by: usize) -> Self {
        match self {
            Self::Keep(size) => Self::Keep(size - by),
            Self::Delete(size) => Self::Delete(size - by),
            Self::Insert(size) => Self::Insert(size - by),
        }
    }
}

/// Transforms two operations on the same text over each other. `first` and then the transformed `second` give the same
/// text as `second` and then the transformed `first`. Of two inserts at one position, that of `first` comes first.
fn transform(first: &Operation, second: &Operation) -> (Operation, Operation) {
    let (mut a, mut b) = (PartCursor::over(first), PartCursor::over(second));
    let (mut moved_first, mut moved_second) = (Vec::new(), Vec::new());
    loop {
        match (a.part, b.part) {
            (Some(Part::Insert(size)), _) => {
                moved_first.push(Part::Insert(size));
                moved_second.push(Part::Keep(size));
                a.take(size);
            }
            (_, Some(Part::Insert(size))) => {
                moved_first.push(Part::Keep(size));
                moved_second.push(Part::Insert(size));
                b.take(size);
            }
            (None, None) => return (Operation(moved_first), Operation(moved_second)),
            // After its last part an operation keeps the rest.
            (left, right) => {
                let length = [left, right].into_iter().flatten().map(Part::size).min().unwrap_or_default();
                let (drops_left, drops_right) =
                    (matches!(left, Some(Part::Delete(_))), matches!(right, Some(Part::Delete(_))));
                match (drops_left, drops_right) {
                    (false, false) => {
                        moved_first.push(Part::Keep(length));
                        moved_second.push(Part::Keep(length));
                    }
                    (true, false) => moved_first.push(Part::Delete(length)),
                    (false, true) => moved_second.push(Part::Delete(length)),
                    (true, true) => {}
                }
                a.take(length);
                b.take(length);
            }
        }
    }
}

/// A position in the parts of an operation.
struct PartCursor<'a> {
    part: Option<Part>,
    rest: std::slice::Iter<'a, Part>,
}

impl<'a> PartCursor<'a> {
    fn over(operation: &'a Operation) -> Self {
        let mut rest = operation.0.iter();
        Self { part: rest.next().copied(), rest }
    }

    fn take(&mut self, size: usize) {
        self.part = match self.part.map(|part| part.shortened(size)) {
            Some(part) if part.size() > 0 => Some(part),
            _ => self.rest.next().copied(),
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(seq: u64, kind: &str, payload: &Value) -> Event {
        event_by(seq, kind, "user:ada", payload)
    }

    /// Returns an event of a document's history.
    pub(in super::super) fn event_by(seq: u64, kind: &str, actor: &str, payload: &Value) -> Event {
        let envelope = json!({
            "id": relay_core::EventId::from_name(&seq.to_string()), "document": "notes", "kind": kind, "seq": seq,
            "epoch": "00c0ffee00c0ffee", "offset": seq, "time": "2026-01-02T03:04:05.000006Z", "actor": actor,
            "payload": payload,
        });
        relay_events::json::decode(envelope.to_string().as_bytes()).unwrap()
    }

    #[track_caller]
    fn check(edits: &[Value], expected: &str) {
        let mut text = SharedText::default();
        for (seq, payload) in (1..).zip(edits) {
            assert!(text.apply(&event(seq, "document.edited", payload)));
        }
        assert_eq!(text.text().unwrap(), expected);
    }

    #[test]
    fn patches_count_code_points_and_are_cut_off_at_the_end() {
        check(&[json!({"patches": [[0, 0, "a👋ü"], [2, 0, "b"], [1, 1, ""]]})], "abü");
        check(&[json!({"patches": [[0, 0, "abc"], [2, 9, "d"], [100, 1, "!"]]})], "abd!");
    }

    #[test]
    fn an_edit_is_moved_over_what_its_author_had_not_seen() {
        // Both type into the text of event 1; the second is moved behind the first.
        check(
            &[
                json!({"patches": [[0, 0, "ac"]]}),
                json!({"patches": [[0, 0, "xyz "]], "base": 1}),
                json!({"patches": [[1, 0, "b"]], "base": 1}),
            ],
            "xyz abc",
        );
        // Two delete the same, and what one inserts into the deleted stays.
        check(
            &[
                json!({"patches": [[0, 0, "abcdef"]]}),
                json!({"patches": [[1, 3, ""]], "base": 1}),
                json!({"patches": [[2, 3, "X"]], "base": 1}),
                json!({"patches": [[3, 0, "Y"]], "base": 1}),
            ],
            "aYXf",
        );
    }

    /// The page's code runs the same cases in `text.test.mjs`.
    #[test]
    fn edits_that_were_made_at_once_come_to_the_page_s_text() {
        #[derive(serde::Deserialize)]
        struct Case {
            payloads: Vec<Value>,
            text: String,
        }
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/shared-text.json")).unwrap();
        for case in cases {
            check(&case.payloads, &case.text);
        }
    }

    #[test]
    fn an_edit_without_a_base_is_taken_as_it_is() {
        check(
            &[
                json!({"patches": [[0, 0, "ac"]]}),
                json!({"patches": [[0, 0, "x"]]}),
                json!({"patches": [[1, 0, "b"]]}),
            ],
            "xbac",
        );
    }

    #[test]
    fn other_events_count_but_change_nothing() {
        let mut text = SharedText::default();
        text.apply(&event(1, "document.edited", &json!({"patches": [[0, 0, "b"]]})));
        assert!(!text.apply(&event(2, "x-note", &json!("hello"))));
        assert!(!text.apply(&event(3, "document.edited", &json!({"format": "delta", "change": []}))));
        text.apply(&event(4, "document.edited", &json!({"patches": [[0, 0, "a"]], "base": 1})));
        assert_eq!(text.text().unwrap(), "ab");
    }

    #[test]
    fn a_text_that_is_too_long_is_not_kept() {
        let mut text = SharedText::default();
        text.apply(&event(1, "document.edited", &json!({"patches": [[0, 0, "x".repeat(MOST_POINTS)]]})));
        assert!(text.text().is_some());
        text.apply(&event(2, "document.edited", &json!({"patches": [[0, 0, "x"]]})));
        assert_eq!((text.text(), text.points.capacity()), (None, 0));
    }
}
