//! [`Schedule`]: the turns of a shard's tasks.
//!
//! Tasks have their turns in the order in which they became ready. A turn is bounded in work, and a task with more to do
//! goes behind the others. So a task waits for at most one turn of each other task, however much these have to do. That holds
//! since a task becomes ready only through its [`Wakeup`](crate::run_queue::Wakeup), which queues it at most once: timers, new
//! connections and drains take that way too.
//!
//! Work stands for time. A message, a write and some bytes count as one each, so that nobody gets more of the processor by
//! sending fewer and larger messages, or by being many members of one document.

use std::collections::VecDeque;

use crate::run_queue::TaskId;

/// The work at which a task's turn ends.
pub(crate) const TURN_WORK: u64 = 64;
/// The work at which other tasks of the runtime get their turn.
const RUN_WORK: u64 = 128;
/// The bytes that are as much work as a message.
const UNIT_BYTES: u64 = 8 * 1024;

/// The work of so many messages or writes, which have so many bytes together.
pub(crate) fn work_of(items: u64, bytes: u64) -> u64 {
    items + bytes / UNIT_BYTES
}

/// The tasks that are ready, and the work that the shard has left before it yields.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    ready: VecDeque<TaskId>,
    left: u64,
}

impl Schedule {
    /// Begins a run of the shard. Returns the list to which tasks are added that became ready since the last run.
    pub(crate) fn begin_run(&mut self) -> &mut VecDeque<TaskId> {
        self.left = RUN_WORK;
        &mut self.ready
    }

    /// Returns the task whose turn it is. `None` when no task is ready, and when the run is over.
    pub(crate) fn next(&mut self) -> Option<TaskId> {
        if self.left == 0 { None } else { self.ready.pop_front() }
    }

    /// Counts the work of a turn.
    pub(crate) fn charge(&mut self, work: u64) {
        self.left = self.left.saturating_sub(work);
    }

    /// True when no task is ready.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;
    use crate::run_queue::{RunQueue, Wakeup};

    /// A connection or a room of the model.
    struct Task {
        wakeup: Arc<Wakeup<()>>,
        /// The work that is left to it.
        work: u64,
        /// The work of others since it became ready; `None` while it is not ready.
        waited: Option<u64>,
    }

    impl Task {
        fn wake(&mut self, work: u64) {
            self.work += work;
            if self.work > 0 {
                self.waited.get_or_insert(0);
                Waker::from(Arc::clone(&self.wakeup)).wake_by_ref();
            }
        }

        fn tick(&mut self) {
            self.waited.get_or_insert(0);
            self.wakeup.requeue();
        }
    }

    proptest! {
        /// The tasks of a shard get more work at any time, one of them without end. A task does at most `TURN_WORK` in a turn.
        /// The shard's timers give turns to tasks without work, and to tasks that are queued already.
        #[test]
        fn a_task_waits_for_at_most_one_turn_of_each_other_task(
            steps in prop::collection::vec((0_usize..6, 0_u64..1_000, 0_usize..6), 1..100),
        ) {
            let queue = Arc::new(RunQueue::<()>::new());
            let mut tasks: Vec<Task> = (0..6)
                .map(|key| {
                    let id = if key % 2 == 0 { TaskId::Connection(key) } else { TaskId::Room(key) };
                    Task { wakeup: Wakeup::new(&queue, id), work: 0, waited: None }
                })
                .collect();
            let others = tasks.len() as u64 - 1;
            let mut schedule = Schedule::default();
            for (woken, work, due) in steps {
                tasks[woken].wake(work);
                tasks[0].wake(10 * TURN_WORK);
                tasks[due].tick();
                queue.take(schedule.begin_run(), &mut VecDeque::new());
                let mut done = 0;
                while let Some(TaskId::Connection(key) | TaskId::Room(key)) = schedule.next() {
                    prop_assert!(done < RUN_WORK, "the run goes on after {done}");
                    let task = &mut tasks[key];
                    task.wakeup.clear();
                    task.waited = None;
                    let work = task.work.min(TURN_WORK);
                    task.work -= work;
                    done += work;
                    schedule.charge(work);
                    if task.work > 0 {
                        task.waited = Some(0);
                        task.wakeup.requeue();
                    }
                    for (other, task) in tasks.iter_mut().enumerate() {
                        if let Some(waited) = task.waited.as_mut().filter(|_| other != key) {
                            *waited += work;
                            prop_assert!(*waited <= others * TURN_WORK, "task {other} waits: {waited}");
                        }
                    }
                }
                prop_assert!(done > 0, "no task was served");
            }
        }
    }
}
