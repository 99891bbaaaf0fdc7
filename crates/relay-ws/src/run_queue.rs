//! [`RunQueue`]: the tasks of a shard that were woken, and the requests to the shard from outside.
//!
//! A task is a connection or a room. It is in the queue at most once, so the queue is never longer than their number.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use relay_core::{Clock, Monotonic};

/// The id of a task in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskId {
    /// A connection, by its key.
    Connection(usize),
    /// A room, by its key.
    Room(usize),
}

/// The queue of one shard. `R` is the type of the requests from outside.
#[derive(Debug)]
pub(crate) struct RunQueue<R> {
    state: Mutex<QueueState<R>>,
    shard: AtomicWaker,
}

#[derive(Debug)]
struct QueueState<R> {
    ready: VecDeque<TaskId>,
    requests: VecDeque<R>,
    /// True once the shard has ended.
    is_closed: bool,
}

impl<R: Send + 'static> RunQueue<R> {
    pub(crate) fn new() -> Self {
        let state = QueueState { ready: VecDeque::new(), requests: VecDeque::new(), is_closed: false };
        Self { state: Mutex::new(state), shard: AtomicWaker::new() }
    }

    /// Adds a request and wakes the shard. Drops the request when the shard has ended.
    pub(crate) fn submit(&self, request: R) {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.requests.push_back(request);
            drop(state);
            self.shard.wake();
        }
    }

    /// Drops the requests, and all later ones, since the shard has ended.
    pub(crate) fn close(&self) {
        let requests = {
            let mut state = self.state.lock();
            state.is_closed = true;
            std::mem::take(&mut state.requests)
        };
        // Outside of the lock, for a request that is dropped may wake its sender.
        drop(requests);
    }

    /// Sets the waker of the shard's own task.
    pub(crate) fn register(&self, waker: &Waker) {
        self.shard.register(waker);
    }

    /// Moves the tasks behind those in `ready`, and the requests behind those in `requests`.
    pub(crate) fn take(&self, ready: &mut VecDeque<TaskId>, requests: &mut VecDeque<R>) {
        let mut state = self.state.lock();
        ready.append(&mut state.ready);
        requests.append(&mut state.requests);
    }

    /// True when nothing is in the queue.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.ready.is_empty() && state.requests.is_empty()
    }

    fn push(&self, task: TaskId) {
        self.state.lock().ready.push_back(task);
        self.shard.wake();
    }
}

/// The waker of one task, which puts the task into its shard's queue.
#[derive(Debug)]
pub(crate) struct Wakeup<R> {
    queue: Arc<RunQueue<R>>,
    task: TaskId,
    queued: AtomicBool,
    /// Set for tasks whose wake-ups are timed.
    woken_at: Option<WokenAt>,
}

/// The moment of a task's first wake-up since the moment was last taken.
#[derive(Debug)]
struct WokenAt {
    clock: Arc<dyn Clock>,
    /// The monotonic time in nanoseconds, plus one; 0 stands for no wake-up.
    nanos: AtomicU64,
}

impl WokenAt {
    fn record(&self) {
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
    /// The waker of a task whose wake-ups are not timed.
    pub(crate) fn new(queue: &Arc<RunQueue<R>>, task: TaskId) -> Arc<Self> {
        Arc::new(Self { queue: Arc::clone(queue), task, queued: AtomicBool::new(false), woken_at: None })
    }

    /// The waker of a task whose wake-ups are timed by `clock`.
    pub(crate) fn timed(queue: &Arc<RunQueue<R>>, task: TaskId, clock: Arc<dyn Clock>) -> Arc<Self> {
        let woken_at = Some(WokenAt { clock, nanos: AtomicU64::new(0) });
        Arc::new(Self { queue: Arc::clone(queue), task, queued: AtomicBool::new(false), woken_at })
    }

    /// Takes the moment of the first wake-up since the last call. Returns `None` without a wake-up, and when wake-ups are not
    /// timed.
    pub(crate) fn take_woken_at(&self) -> Option<Monotonic> {
        self.woken_at.as_ref()?.take()
    }

    /// Lets the next wake-up queue the task again. The shard calls this before it polls the task.
    pub(crate) fn clear(&self) {
        self.queued.store(false, Ordering::Release);
    }

    /// Queues the task behind the others, since its turn has ended before its work has. This is no wake-up that is timed.
    pub(crate) fn requeue(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.queue.push(self.task);
        }
    }
}

impl<R: Send + 'static> Wake for Wakeup<R> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(woken_at) = &self.woken_at {
            woken_at.record();
        }
        self.requeue();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_is_woken_often_is_queued_once_until_the_shard_begins_with_it() {
        let queue = Arc::new(RunQueue::<()>::new());
        let wakeup = Wakeup::new(&queue, TaskId::Room(7));
        let waker = Waker::from(Arc::clone(&wakeup));
        waker.wake_by_ref();
        waker.wake_by_ref();
        let mut ready = VecDeque::new();
        queue.take(&mut ready, &mut VecDeque::new());
        assert_eq!(ready, [TaskId::Room(7)]);
        wakeup.clear();
        waker.wake_by_ref();
        ready.clear();
        queue.take(&mut ready, &mut VecDeque::new());
        assert_eq!(ready, [TaskId::Room(7)]);
    }

    #[test]
    fn the_first_of_several_wakings_is_the_one_that_is_timed() {
        let clock = Arc::new(relay_core::testing::ManualClock::new());
        let queue = Arc::new(RunQueue::<()>::new());
        let wakeup = Wakeup::timed(&queue, TaskId::Room(7), Arc::clone(&clock) as Arc<dyn Clock>);
        let waker = Waker::from(Arc::clone(&wakeup));
        waker.wake_by_ref();
        clock.advance(Duration::from_secs(1));
        waker.wake_by_ref();
        assert_eq!(wakeup.take_woken_at(), Some(Monotonic::ZERO));
        assert_eq!(wakeup.take_woken_at(), None);
        waker.wake_by_ref();
        assert_eq!(wakeup.take_woken_at(), Some(Monotonic::ZERO + Duration::from_secs(1)));
    }
}
