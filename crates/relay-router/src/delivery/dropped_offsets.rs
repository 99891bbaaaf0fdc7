//! The offsets at which the log is known to have no event any more.
//!
//! Where retention has overtaken a route, its events are lost one after the other. A read that looks for one of them passes over
//! all that were dropped behind it. What one read has found is enough for all of these.

use std::collections::VecDeque;
use std::ops::Range;

use parking_lot::Mutex;
use relay_core::Offset;

/// The most ranges that are kept: about one for each route that is overtaken.
const MAX_RANGES: usize = 16;

/// The ranges that were found last.
#[derive(Debug, Default)]
pub(crate) struct DroppedOffsets(Mutex<VecDeque<Range<Offset>>>);

impl DroppedOffsets {
    /// Notes that `next` is the offset of the first event at `from` or later.
    pub(super) fn note(&self, from: Offset, next: Offset) {
        let mut ranges = self.0.lock();
        if from < next {
            ranges.push_back(from..next);
            let excess = ranges.len().saturating_sub(MAX_RANGES);
            ranges.drain(..excess);
        }
    }

    /// True if the log is known to have no event at `offset`. Offsets are given once, so none comes later.
    pub(super) fn contains(&self, offset: Offset) -> bool {
        self.0.lock().iter().any(|range| range.contains(&offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offsets_between_two_events_are_dropped_and_the_latest_ranges_are_kept() {
        let (dropped, at) = (DroppedOffsets::default(), Offset::new);
        dropped.note(at(7), at(7));
        assert!(!dropped.contains(at(7)));
        dropped.note(at(3), at(6));
        assert_eq!([2, 3, 5, 6].map(|offset| dropped.contains(at(offset))), [false, true, true, false]);
        for n in 1..=MAX_RANGES as u64 {
            dropped.note(at(n * 10), at(n * 10 + 2));
        }
        assert_eq!([3, 11, 160].map(|offset| dropped.contains(at(offset))), [false, true, true]);
    }
}
