//! [`Pace`]: the distance between a document's head and its readers, and the answer if publishers must wait for them.
//!
//! The readers set the pace when most of them cannot follow. A reader is *behind* when it has not read the events of the last
//! half of memory: half of its events, or a quarter of its bytes, since the encoded copies take as much again. Publishers
//! wait while more than half of the readers are behind. A slow minority never makes them wait: it reads on from the log, or is
//! told that it lags.
//!
//! A cursor counts from its first read on, and until it ends. Only what came after its start counts, so reading up from an old
//! position holds up no publisher before the head has moved by that half. There is one exception: a reader that starts with
//! nearly everything that is kept is behind until it is clear of the end at which retention drops events. Otherwise a fast
//! publisher could end it before it has read anything.
//!
//! The head leaves a mark after each part of that half, and each mark counts the readers that have come as far. So a reader
//! that moves and an event that is shown cost constant time, however many readers there are.

use std::collections::VecDeque;

use relay_core::{Retention, Seq};

/// The number of marks in the distance at which a reader is behind, if the distance has so many events.
const MARKS: u64 = 16;

/// The marks of a channel's head, and the number of readers at each.
#[derive(Debug)]
pub(super) struct Pace {
    /// The events and bytes between two marks.
    step_events: u64,
    step_bytes: u64,
    /// The most marks that a reader may be away from the head's without being behind.
    max_marks: usize,
    /// The most events by which the distance of a reader grows before it is behind.
    max_growth: u64,
    /// The most events that are kept.
    max_kept: u64,
    /// The latest marks; the last one is the head's. Never empty.
    marks: VecDeque<Mark>,
    /// The number of the first mark.
    first: u64,
    /// The events and bytes since the last mark.
    events: u64,
    bytes: u64,
    /// The readers before the first mark.
    behind: u64,
    readers: u64,
}

#[derive(Debug)]
struct Mark {
    /// The head's seq at the mark.
    start: Seq,
    readers: u64,
}

/// The place of one cursor among the marks.
#[derive(Debug, Clone, Copy)]
pub(super) struct PacePlace {
    /// The number of readers that the cursor stands for; `None` until it counts. One that never reads holds up nobody.
    readers: Option<u64>,
    /// The mark up to which the cursor has come; 0 for none.
    mark: u64,
    /// The mark at which the cursor began.
    started: u64,
    /// The position from which the cursor is clear of the oldest event that is kept.
    clear_from: Seq,
}

impl PacePlace {
    /// True when the cursor counts as a reader.
    pub(super) fn is_counted(&self) -> bool {
        self.readers.is_some()
    }
}

impl Pace {
    /// The pace of a channel whose head is `head`. `memory` limits the events that memory holds, and `max_kept` those that are
    /// kept at all. At most `max_pending` events are taken before the last one of them is shown.
    pub(super) fn new(head: Seq, memory: Retention, max_kept: u64, max_pending: u64) -> Self {
        let max_distance = memory.max_events / 2;
        let step_events = (max_distance / MARKS).max(1);
        let max_marks = max_distance / step_events;
        // The encoded copies take about as much as the events.
        let max_bytes = memory.max_bytes.unwrap_or(u64::MAX) / 4;
        Self {
            step_events,
            step_bytes: (max_bytes / max_marks.max(1)).max(1),
            max_marks: usize::try_from(max_marks).unwrap_or(usize::MAX),
            max_growth: (max_marks + 1) * step_events + max_pending,
            max_kept,
            marks: VecDeque::from([Mark { start: head, readers: 0 }]),
            first: 1,
            events: 0,
            bytes: 0,
            behind: 0,
            readers: 0,
        }
    }

    /// True unless most readers are behind.
    pub(super) fn is_open(&self) -> bool {
        2 * self.behind <= self.readers
    }

    /// True when somebody reads.
    pub(super) fn has_readers(&self) -> bool {
        self.readers > 0
    }

    /// Notes that the head has moved to `head` by an event of `bytes`.
    pub(super) fn advance(&mut self, head: Seq, bytes: usize) {
        self.events += 1;
        self.bytes += bytes as u64;
        let steps = (self.events / self.step_events).max(self.bytes / self.step_bytes);
        if steps == 0 {
            return;
        }
        self.events = self.events.saturating_sub(steps.saturating_mul(self.step_events));
        self.bytes = self.bytes.saturating_sub(steps.saturating_mul(self.step_bytes));
        for _ in 0..steps.min(self.max_marks as u64 + 1) {
            self.marks.push_back(Mark { start: head, readers: 0 });
            if self.marks.len() > self.max_marks + 1
                && let Some(mark) = self.marks.pop_front()
            {
                self.first += 1;
                self.behind += mark.readers;
            }
        }
    }

    /// The place of a new cursor at `seq`, which stands for no reader yet.
    pub(super) fn enter(&self, seq: Seq, head: Seq) -> PacePlace {
        // A reader at the head is never behind, however little is kept.
        let clear_from = (head.get() + self.max_growth).saturating_sub(self.max_kept).min(head.get());
        let mut place =
            PacePlace { readers: None, mark: 0, started: self.last(), clear_from: Seq::new(clear_from) };
        place.mark = self.mark_of(&place, seq);
        place
    }

    /// The place of a new cursor where `other` is, which stands for no reader yet.
    pub(super) fn fork(other: &PacePlace) -> PacePlace {
        PacePlace { readers: None, ..*other }
    }

    /// Sets the number of readers that a cursor stands for.
    pub(super) fn stand_for(&mut self, place: &mut PacePlace, readers: u64) {
        self.take(place);
        place.readers = Some(readers);
        self.put(place);
    }

    /// Moves a cursor on to `seq`.
    #[inline]
    pub(super) fn move_to(&mut self, place: &mut PacePlace, seq: Seq) {
        // A cursor at the last mark has no later one.
        if place.mark != self.last() {
            self.find_mark(place, seq);
        }
    }

    fn find_mark(&mut self, place: &mut PacePlace, seq: Seq) {
        let mark = self.mark_of(place, seq);
        if mark != place.mark {
            self.take(place);
            place.mark = mark;
            self.put(place);
        }
    }

    /// The last mark's number.
    fn last(&self) -> u64 {
        self.first + self.marks.len() as u64 - 1
    }

    /// The mark up to which a cursor at `seq` has come; 0 for none.
    fn mark_of(&self, place: &PacePlace, seq: Seq) -> u64 {
        if seq < place.clear_from {
            return 0;
        }
        let later = self.marks.iter().rev().take_while(|mark| mark.start > seq).count() as u64;
        place.started.max(self.last() - later.min(self.last()))
    }

    fn count(&mut self, mark: u64) -> &mut u64 {
        let index = mark.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.marks.get_mut(index)) {
            Some(mark) => &mut mark.readers,
            None => &mut self.behind,
        }
    }

    fn take(&mut self, place: &PacePlace) {
        let readers = place.readers.unwrap_or(0);
        *self.count(place.mark) -= readers;
        self.readers -= readers;
    }

    fn put(&mut self, place: &PacePlace) {
        let readers = place.readers.unwrap_or(0);
        *self.count(place.mark) += readers;
        self.readers += readers;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(max_events: u64, max_bytes: Option<u64>) -> Pace {
        let memory = Retention { max_events, max_bytes, ..Retention::default() };
        Pace::new(Seq::ZERO, memory, 10 * max_events, 0)
    }

    /// Adds a reader at `seq`.
    fn enter(pace: &mut Pace, seq: Seq, head: Seq) -> PacePlace {
        let mut reader = pace.enter(seq, head);
        pace.stand_for(&mut reader, 1);
        reader
    }

    fn show(pace: &mut Pace, events: std::ops::RangeInclusive<u64>, bytes: usize) {
        for seq in events {
            pace.advance(Seq::new(seq), bytes);
        }
    }

    #[test]
    fn more_than_half_of_the_readers_must_be_behind_before_publishers_wait() {
        let mut pace = pace(1000, None);
        let [mut slow, mut also_slow, mut fast] = [(); 3].map(|()| enter(&mut pace, Seq::ZERO, Seq::ZERO));
        show(&mut pace, 1..=2000, 1);
        assert!(!pace.is_open(), "all three are behind");
        pace.move_to(&mut fast, Seq::new(2000));
        assert!(!pace.is_open(), "two of three are behind");
        pace.move_to(&mut slow, Seq::new(1600));
        assert!(pace.is_open(), "one of three is behind");
        pace.stand_for(&mut also_slow, 2);
        assert!(pace.is_open(), "half of the readers are behind");
        pace.stand_for(&mut also_slow, 3);
        assert!(!pace.is_open(), "three of five are behind");
        pace.stand_for(&mut also_slow, 0);
        assert!(pace.is_open() && pace.has_readers());
    }

    #[test]
    fn a_reader_is_behind_after_half_of_memory_in_events_or_in_bytes() {
        for (max_events, max_bytes, event_bytes, expected) in [
            (1000, None, 1, 500..=540),
            (1000, Some(32_000), 160, 50..=56),
            (1000, Some(32_000), 8_000, 2..=2),
            (4, None, 1, 3..=3),
            (1, None, 1, 1..=1),
        ] {
            let mut pace = pace(max_events, max_bytes);
            let _reader = enter(&mut pace, Seq::ZERO, Seq::ZERO);
            let behind_at = (1..=1000).find(|&seq| {
                pace.advance(Seq::new(seq), event_bytes);
                !pace.is_open()
            });
            let behind_at = behind_at.unwrap();
            assert!(expected.contains(&behind_at), "{behind_at} is not in {expected:?}");
        }
    }

    #[test]
    fn events_from_before_its_start_do_not_put_a_reader_behind() {
        let mut pace = pace(1000, None);
        show(&mut pace, 1..=5000, 1);
        let mut reader = enter(&mut pace, Seq::ZERO, Seq::new(5000));
        assert!(pace.is_open());
        show(&mut pace, 5001..=5600, 1);
        assert!(!pace.is_open());
        pace.move_to(&mut reader, Seq::new(5000));
        assert!(!pace.is_open());
        pace.move_to(&mut reader, Seq::new(5200));
        assert!(pace.is_open());
    }

    #[test]
    fn a_reader_at_the_end_that_retention_drops_is_behind_until_it_is_clear_of_it() {
        let mut pace = pace(1000, None);
        show(&mut pace, 1..=10_000, 1);
        let mut reader = enter(&mut pace, Seq::ZERO, Seq::new(10_000));
        assert!(!pace.is_open());
        pace.move_to(&mut reader, Seq::new(pace.max_growth - 1));
        assert!(!pace.is_open());
        pace.move_to(&mut reader, Seq::new(pace.max_growth));
        assert!(pace.is_open());
    }
}
