//! How a shard learns what it has to do: the one queue of everything that woke up, and the wakers that put it there.
//!
//! A connection or a room is in the queue at most once, so the queue is never longer than there are of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use relay_core::{Clock, Monotonic};

/// What can be woken in a shard, by its key there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskId {
    Connection(usize),
    Room(usize),
}

/// A shard's queue. `A` is what is handed over to the shard from outside.
#[derive(Debug)]
pub(crate) struct RunQueue<R> {
    state: Mutex<QueueState<R>>,
    shard: AtomicWaker,
}

#[derive(Debug)]
struct QueueState<R> {
    ready: Vec<TaskId>,
    submitted: Vec<R>,
}

impl<R: Send + 'static> RunQueue<R> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(QueueState { ready: Vec::new(), submitted: Vec::new() }),
            shard: AtomicWaker::new(),
        }
    }

    /// Hands something over.
    pub(crate) fn submit(&self, submit: R) {
        self.state.lock().submitted.push(submit);
        self.shard.wake();
    }

    /// The shard's task waits here.
    pub(crate) fn register(&self, waker: &Waker) {
        self.shard.register(waker);
    }

    /// Takes all that came. `ready` must be empty; the vectors change places, so that neither is allocated anew.
    pub(crate) fn take(&self, ready: &mut Vec<TaskId>) -> Vec<R> {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.ready, ready);
        std::mem::take(&mut state.submitted)
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.ready.is_empty() && state.submitted.is_empty()
    }

    fn push(&self, task: TaskId) {
        self.state.lock().ready.push(task);
        self.shard.wake();
    }
}

/// Puts a target into its shard's queue when it is woken.
#[derive(Debug)]
pub(crate) struct Wakeup<R> {
    queue: Arc<RunQueue<R>>,
    task: TaskId,
    queued: AtomicBool,
    /// Where it is noted when the target was woken.
    woken_at: Option<WokenAt>,
}

/// When something was first woken since that was last asked for.
#[derive(Debug)]
struct WokenAt {
    clock: Arc<dyn Clock>,
    /// In nanoseconds of the clock's monotonic time, and one more, so that 0 means not at all.
    nanos: AtomicU64,
}

impl WokenAt {
    fn note(&self) {
        if self.nanos.load(Ordering::Relaxed) == 0 {
            let nanos = u64::try_from(self.clock.monotonic().elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.nanos.store(nanos.saturating_add(1), Ordering::Relaxed);
        }
    }

    fn take(&self) -> Option<Monotonic> {
        self.nanos
            .swap(0, Ordering::Relaxed)
            .checked_sub(1)
            .map(|nanos| Monotonic::from_elapsed(Duration::from_nanos(nanos)))
    }
}

impl<R: Send + 'static> Wakeup<R> {
    pub(crate) fn new(queue: &Arc<RunQueue<R>>, task: TaskId) -> Arc<Self> {
        Arc::new(Self { queue: Arc::clone(queue), task, queued: AtomicBool::new(false), woken_at: None })
    }

    /// As [`Wakeup::new`]; each waking is timed by `clock`.
    pub(crate) fn timed(queue: &Arc<RunQueue<R>>, task: TaskId, clock: Arc<dyn Clock>) -> Arc<Self> {
        let woken_at = Some(WokenAt { clock, nanos: AtomicU64::new(0) });
        Arc::new(Self { queue: Arc::clone(queue), task, queued: AtomicBool::new(false), woken_at })
    }

    /// When the target was first woken since this was last asked for, by the monotonic time. `None` when it was not, or
    /// is not timed.
    pub(crate) fn woken_at(&self) -> Option<Monotonic> {
        self.woken_at.as_ref()?.take()
    }

    /// The shard begins to deal with the target: what wakes it from now on puts it into the queue again.
    pub(crate) fn clear(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl<R: Send + 'static> Wake for Wakeup<R> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(woken_at) = &self.woken_at {
            woken_at.note();
        }
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.queue.push(self.task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_woken_often_is_queued_once_until_the_shard_begins_with_it() {
        let queue = Arc::new(RunQueue::<()>::new());
        let wakeup = Wakeup::new(&queue, TaskId::Room(7));
        let waker = Waker::from(Arc::clone(&wakeup));
        waker.wake_by_ref();
        waker.wake_by_ref();
        let mut ready = Vec::new();
        queue.take(&mut ready);
        assert_eq!(ready, [TaskId::Room(7)]);
        wakeup.clear();
        waker.wake_by_ref();
        ready.clear();
        queue.take(&mut ready);
        assert_eq!(ready, [TaskId::Room(7)]);
    }
    #[test]
    fn the_first_of_several_wakings_is_the_one_that_is_timed() {
        let clock = Arc::new(relay_core::ManualClock::new());
        let queue = Arc::new(RunQueue::<()>::new());
        let wakeup = Wakeup::timed(&queue, TaskId::Room(7), Arc::clone(&clock) as Arc<dyn Clock>);
        let waker = Waker::from(Arc::clone(&wakeup));
        waker.wake_by_ref();
        clock.advance(Duration::from_secs(1));
        waker.wake_by_ref();
        assert_eq!(wakeup.woken_at(), Some(Monotonic::ZERO));
        assert_eq!(wakeup.woken_at(), None);
        waker.wake_by_ref();
        assert_eq!(wakeup.woken_at(), Some(Monotonic::ZERO + Duration::from_secs(1)));
    }
}
