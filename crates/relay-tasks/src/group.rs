//! [`TaskGroup`]: the tasks and threads of one component.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::kind::{TaskKind, TaskName};
use crate::supervisor::Supervisor;

/// The pause before a task that panicked is started again. A task that panics at once costs little and stays visible.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The tasks of one component. Clones are handles to the same group.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    supervisor: Supervisor,
    tracker: TaskTracker,
    closed: CancellationToken,
}

/// The treatment of a thread that panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPanic {
    /// The thread calls its function again after a pause.
    Restart,
    /// The thread ends, and stays among the [failures](Supervisor::failures).
    Fail,
}

impl TaskGroup {
    pub(crate) fn new(supervisor: Supervisor) -> Self {
        Self { supervisor, tracker: TaskTracker::new(), closed: CancellationToken::new() }
    }

    /// Runs `task` once. A panic is counted and logged, and the task is dropped: what it holds is given back by the
    /// destructors of its values.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: TaskName,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.spawn_on(name, task, &Handle::current())
    }

    /// Runs `task` once, on the runtime of `handle`, otherwise as [`TaskGroup::spawn`].
    pub fn spawn_on<T: Send + 'static>(
        &self,
        name: TaskName,
        task: impl Future<Output = T> + Send + 'static,
        handle: &Handle,
    ) -> JoinHandle<T> {
        let kind = self.supervisor.kind(name);
        let watched = async move {
            let _running = kind.begin();
            match AssertUnwindSafe(kind.watch(task)).catch_unwind().await {
                Ok(result) => result,
                Err(panic) => {
                    kind.note_panic(&*panic);
                    resume_unwind(panic)
                }
            }
        };
        self.tracker.spawn_on(watched, handle)
    }

    /// Runs `run` with `state` until it returns, and again after each panic, until the group is closed. While it waits
    /// for its restart, the task is among the [failures](Supervisor::failures).
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    pub fn keep_running<S, F>(&self, name: TaskName, mut state: S, run: F)
    where
        S: Send + 'static,
        F: for<'s> Fn(&'s mut S) -> BoxFuture<'s, ()> + Send + Sync + 'static,
    {
        let (kind, closed) = (self.supervisor.kind(name), self.closed.clone());
        self.tracker.spawn(async move {
            loop {
                let running = kind.begin();
                let ended =
                    AssertUnwindSafe(kind.watch(async { run(&mut state).await })).catch_unwind().await;
                drop(running);
                let Err(panic) = ended else { return };
                kind.note_panic(&*panic);
                let _restarting = kind.restarting();
                if closed.run_until_cancelled(tokio::time::sleep(RESTART_PAUSE)).await.is_none() {
                    return;
                }
            }
        });
    }

    /// Runs `work` on the runtime's threads for blocking calls. A panic is counted and logged, and is the error of the
    /// handle.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn blocking<T: Send + 'static>(
        &self,
        name: TaskName,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let kind = self.supervisor.kind(name);
        self.tracker.spawn_blocking(move || {
            let _running = kind.begin();
            let checked = AssertUnwindSafe(|| {
                kind.check();
                work()
            });
            catch_unwind(checked).unwrap_or_else(|panic| {
                kind.note_panic(&*panic);
                resume_unwind(panic)
            })
        })
    }

    /// Runs `work` on a thread of its own, which is named `thread`. The caller ends it and joins it.
    ///
    /// # Errors
    /// The error of the operating system when the thread cannot be started.
    pub fn thread(
        &self,
        name: TaskName,
        thread: String,
        on_panic: OnPanic,
        mut work: impl FnMut(&Pulse) + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let pulse = Pulse(self.supervisor.kind(name));
        std::thread::Builder::new().name(thread).spawn(move || {
            let kind = &pulse.0;
            loop {
                let running = kind.begin();
                let ended = catch_unwind(AssertUnwindSafe(|| work(&pulse)));
                drop(running);
                let Err(panic) = ended else { return };
                kind.note_panic(&*panic);
                match on_panic {
                    OnPanic::Fail => {
                        kind.end_for_good();
                        resume_unwind(panic);
                    }
                    OnPanic::Restart => {
                        let _restarting = kind.restarting();
                        std::thread::sleep(RESTART_PAUSE);
                    }
                }
            }
        })
    }

    /// Closes the group: a task that panicked is not started again, and [`TaskGroup::wait`] ends with the last task.
    /// It ends no task: the component tells its tasks to end.
    pub fn close(&self) {
        self.closed.cancel();
        self.tracker.close();
    }

    /// Waits until the group is closed and has no task. Threads are not waited for. Cancel-safe.
    pub async fn wait(&self) {
        self.tracker.wait().await;
    }
}

/// Makes a call that blocks, on the runtime's threads for such calls. The caller waits for it, and handles its panic.
///
/// Dropped before its end, the call goes on, and its result is discarded.
///
/// # Errors
/// The panic of `call`; a runtime that shuts down cancels the call.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn call_blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(call).await
}

/// The connection of a thread with its supervisor.
pub struct Pulse(Arc<TaskKind>);

impl Pulse {
    /// Lets a test end the thread here. A thread calls it in each round of its work. Without tests it does nothing.
    pub fn check(&self) {
        self.0.check();
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pulse").field(&self.0).finish()
    }
}
