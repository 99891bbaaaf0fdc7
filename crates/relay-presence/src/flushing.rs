//! The moments at which changes of presence become visible to readers. The first change after a quiet interval is visible at
//! once; the changes that follow within the interval become visible together, at its end.
//!
//! A flush is a write to every member. So the interval grows with the number of members: flushes take a bounded share of the
//! processor, and the cost of many joins grows with their number, not with its square.

use std::collections::HashMap;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{DocumentId, Monotonic};
use tokio::sync::Notify;

use crate::version::Version;

/// The least interval between two flushes of a document, for each of its members. The write to a member takes about a
/// twentieth of it.
const INTERVAL_PER_MEMBER: Duration = Duration::from_micros(100);

/// The number of a reader among those of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ReaderId(pub(crate) u64);

/// The visibility of changes that were made since the last flush.
#[derive(Debug)]
pub(crate) enum Flush {
    /// There are none, or their flush is scheduled already.
    Nothing,
    /// They are visible now; these readers are to be woken.
    Done(Vec<Waker>),
    /// They become visible with the next flush, which is to be scheduled after so many passes of the [`FlushQueue`].
    Scheduled(u32),
}

/// The readers of one document's presence, and the version up to which they see it.
#[derive(Debug)]
pub(crate) struct Readers {
    visible: Version,
    flushed_at: Option<Monotonic>,
    is_flush_scheduled: bool,
    /// The wakers of the readers that have read everything visible.
    wakers: HashMap<ReaderId, Waker>,
}

impl Readers {
    /// No readers yet; `visible` is the version that the first one sees.
    pub(crate) fn new(visible: Version) -> Self {
        Self { visible, flushed_at: None, is_flush_scheduled: false, wakers: HashMap::new() }
    }

    /// The version up to which changes are visible.
    pub(crate) fn visible(&self) -> Version {
        self.visible
    }

    /// Keeps the waker of a reader until the next flush.
    pub(crate) fn wait(&mut self, reader: ReaderId, waker: &Waker) {
        self.wakers.insert(reader, waker.clone());
    }

    /// Takes the wakers of all readers that wait.
    pub(crate) fn take_all(&mut self) -> Vec<Waker> {
        self.wakers.drain().map(|(_, waker)| waker).collect()
    }

    /// Drops the waker of a reader that ends.
    pub(crate) fn remove(&mut self, reader: ReaderId) {
        self.wakers.remove(&reader);
    }

    /// Decides when the changes up to `version` become visible: now, when the last flush is an interval ago. The interval is
    /// that of `members`, and at least `least`, which is the time between two passes of the [`FlushQueue`].
    pub(crate) fn flush_or_schedule(
        &mut self,
        version: Version,
        now: Monotonic,
        members: usize,
        least: Duration,
    ) -> Flush {
        if version == self.visible {
            return Flush::Nothing;
        }
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let interval = INTERVAL_PER_MEMBER.saturating_mul(members).max(least);
        // A flush that is scheduled comes within two intervals, unless its pass is late.
        let wait = if self.is_flush_scheduled { 2 * interval } else { interval };
        if self.flushed_at.is_none_or(|at| now.since(at) >= wait) {
            return Flush::Done(self.flush(version, now));
        }
        if self.is_flush_scheduled {
            return Flush::Nothing;
        }
        self.is_flush_scheduled = true;
        let passes = interval.as_nanos().div_ceil(least.as_nanos().max(1));
        Flush::Scheduled(u32::try_from(passes).unwrap_or(u32::MAX))
    }

    /// Makes the changes up to `version` visible. Returns the readers to wake.
    pub(crate) fn flush(&mut self, version: Version, now: Monotonic) -> Vec<Waker> {
        self.is_flush_scheduled = false;
        self.visible = version;
        self.flushed_at = Some(now);
        self.take_all()
    }
}

/// The documents whose flush is scheduled. A document whose changes became visible before its pass, which was late, may be
/// in it once more for each two intervals until that pass.
#[derive(Debug, Default)]
pub(crate) struct FlushQueue {
    /// With the number of passes until the flush.
    documents: Mutex<Vec<(DocumentId, u32)>>,
    scheduled: Notify,
}

impl FlushQueue {
    /// Schedules a flush of `document` in the pass with this number: 1 for the next one.
    pub(crate) fn push(&self, document: DocumentId, passes: u32) {
        self.documents.lock().push((document, passes));
        self.scheduled.notify_one();
    }

    /// Waits until a flush is scheduled. Cancel-safe.
    pub(crate) async fn wait(&self) {
        self.scheduled.notified().await;
    }

    /// Makes a pass: takes the documents whose flush is due out of the queue.
    pub(crate) fn pass(&self) -> Vec<DocumentId> {
        let mut documents = self.documents.lock();
        documents.iter_mut().for_each(|(_, passes)| *passes = passes.saturating_sub(1));
        let due =
            documents.extract_if(.., |(_, passes)| *passes == 0).map(|(document, _)| document).collect();
        if !documents.is_empty() {
            self.scheduled.notify_one();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writes_of_a_storm_of_joins_grow_with_the_joins_and_not_with_their_square() {
        let least = Duration::from_millis(50);
        let (mut readers, queue) = (Readers::new(0), FlushQueue::default());
        let document = DocumentId::new("doc").unwrap();
        // A flush is a write to each member. One member joins in each millisecond.
        let writes = |joins: u64, readers: &mut Readers| {
            let mut writes = 0;
            for members in 1..=joins {
                let now = Monotonic::from_elapsed(Duration::from_millis(members));
                let count = usize::try_from(members).unwrap();
                match readers.flush_or_schedule(members, now, count, least) {
                    Flush::Nothing => {}
                    Flush::Done(_) => writes += members,
                    Flush::Scheduled(passes) => queue.push(document.clone(), passes),
                }
                if members % 50 == 0 && !queue.pass().is_empty() {
                    readers.flush(members, now);
                    writes += members;
                }
            }
            writes
        };
        let of_3000 = writes(3_000, &mut readers);
        assert!(of_3000 <= 12 * 3_000, "{of_3000} writes for 3,000 joins");
        // The last ones are told, too.
        let passes = (1..=10).find(|_| !queue.pass().is_empty());
        assert!(readers.visible() == 3_000 || passes.is_some(), "the last joins stay invisible");
    }

    #[test]
    fn a_document_of_few_members_is_flushed_in_the_next_pass() {
        let (mut readers, queue) = (Readers::new(0), FlushQueue::default());
        let least = Duration::from_millis(50);
        assert!(matches!(readers.flush_or_schedule(1, Monotonic::ZERO, 500, least), Flush::Done(_)));
        let Flush::Scheduled(passes) = readers.flush_or_schedule(2, Monotonic::ZERO, 500, least) else {
            panic!("the second change waits for others")
        };
        queue.push(DocumentId::new("doc").unwrap(), passes);
        assert_eq!(queue.pass().len(), 1);
    }
}
