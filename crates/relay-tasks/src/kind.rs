//! The kinds of tasks: the tasks of one name, what became of them, and what is wrong with them now.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

/// The name of a kind of task: its component and its work, such as `bus.sweeper`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct TaskName(&'static str);

impl TaskName {
    /// Makes a name.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A task that is to run and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskFailure {
    /// The name of the task.
    pub task: TaskName,
    /// The message of its last panic.
    pub panic: String,
    /// True when the task cannot be started again while the process lives.
    pub is_final: bool,
}

impl TaskFailure {
    /// Returns the advice to an operator: what brings the task back.
    pub const fn advice(&self) -> &'static str {
        if self.is_final { "restart the server" } else { "it is started again in a moment" }
    }
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the task {} panicked ({}); {}", self.task, self.panic, self.advice())
    }
}

/// The numbers of one kind of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TaskStats {
    /// The tasks that run now.
    pub running: usize,
    /// The tasks that were started, restarts included.
    pub started: u64,
    /// The tasks that ended by a panic.
    pub panicked: u64,
}

/// The state of one kind of task.
#[derive(Debug)]
pub(crate) struct TaskKind {
    name: TaskName,
    running: AtomicUsize,
    started: AtomicU64,
    panicked: AtomicU64,
    trouble: Mutex<Trouble>,
    #[cfg(feature = "testing")]
    fault: fault::Fault,
}

#[derive(Debug, Default)]
struct Trouble {
    /// The tasks that wait for their restart.
    restarting: usize,
    /// True when a task is gone for good.
    is_final: bool,
    /// The message of the last panic.
    panic: String,
}

impl TaskKind {
    pub(crate) fn new(name: TaskName) -> Self {
        Self {
            name,
            running: AtomicUsize::new(0),
            started: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            trouble: Mutex::default(),
            #[cfg(feature = "testing")]
            fault: fault::Fault::default(),
        }
    }

    /// Counts a task as running until the result is dropped.
    pub(crate) fn begin(&self) -> Running<'_> {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(self)
    }

    /// Counts and logs the panic of a task whose end its owner handles.
    pub(crate) fn note_panic(&self, panic: &(dyn Any + Send)) {
        let message = message_of(panic);
        self.panicked.fetch_add(1, Ordering::Relaxed);
        tracing::error!(task = %self.name, panic = message, "a task panicked, which is a defect");
        message.clone_into(&mut self.trouble.lock().panic);
    }

    /// Marks the kind as failed for good.
    pub(crate) fn end_for_good(&self) {
        self.trouble.lock().is_final = true;
    }

    /// Marks a task as absent until the result is dropped.
    pub(crate) fn restarting(&self) -> Restarting<'_> {
        self.trouble.lock().restarting += 1;
        Restarting(self)
    }

    pub(crate) fn failure(&self) -> Option<TaskFailure> {
        let Trouble { restarting, is_final, panic } = &*self.trouble.lock();
        (*is_final || *restarting > 0).then(|| TaskFailure {
            task: self.name,
            panic: panic.clone(),
            is_final: *is_final,
        })
    }

    pub(crate) fn stats(&self) -> TaskStats {
        TaskStats {
            running: self.running.load(Ordering::Relaxed),
            started: self.started.load(Ordering::Relaxed),
            panicked: self.panicked.load(Ordering::Relaxed),
        }
    }

    /// Runs `task`, and panics in its place when a test has asked for that.
    #[cfg(feature = "testing")]
    pub(crate) async fn watch<T>(&self, task: impl Future<Output = T>) -> T {
        let mut task = std::pin::pin!(task);
        loop {
            // Made before the check, so that no fault comes between the two unseen.
            let changed = self.fault.changed();
            self.check();
            tokio::select! {
                biased;
                () = changed => {}
                result = &mut task => return result,
            }
        }
    }

    /// Runs `task`.
    #[cfg(not(feature = "testing"))]
    pub(crate) fn watch<T>(&self, task: impl Future<Output = T>) -> impl Future<Output = T> {
        let _ = self;
        task
    }

    /// Panics when a test has asked for that.
    #[cfg_attr(not(feature = "testing"), allow(clippy::unused_self, reason = "only tests have faults"))]
    pub(crate) fn check(&self) {
        #[cfg(feature = "testing")]
        assert!(!self.fault.take(), "a test ended the task {}", self.name);
    }

    #[cfg(feature = "testing")]
    pub(crate) fn kill(&self) {
        self.fault.set();
    }
}

/// A running task, which is no longer counted when this is dropped.
pub(crate) struct Running<'k>(&'k TaskKind);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A task that waits for its restart.
pub(crate) struct Restarting<'k>(&'k TaskKind);

impl Drop for Restarting<'_> {
    fn drop(&mut self) {
        self.0.trouble.lock().restarting -= 1;
    }
}

/// The message that a panic was raised with.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The fault that a test can inject into one task of a kind.
#[cfg(feature = "testing")]
mod fault {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;
    use tokio::sync::futures::Notified;

    #[derive(Debug, Default)]
    pub(super) struct Fault {
        is_set: AtomicBool,
        changes: Notify,
    }

    impl Fault {
        pub(super) fn set(&self) {
            self.is_set.store(true, Ordering::Release);
            self.changes.notify_waiters();
        }

        /// Takes the fault: one task alone gets it.
        pub(super) fn take(&self) -> bool {
            self.is_set.swap(false, Ordering::AcqRel)
        }

        pub(super) fn changed(&self) -> Notified<'_> {
            self.changes.notified()
        }
    }
}
