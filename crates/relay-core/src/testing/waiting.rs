//! Waiting in a suite: a waker that tells whether it was called, and a limit for checks that would wait for ever.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;

/// The time after which a check that still waits has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A task that does nothing but note that it was woken.
#[derive(Debug, Default)]
pub(super) struct WakeSignal {
    is_woken: AtomicBool,
    /// The task that waits for the signal.
    waiting: Mutex<Option<Waker>>,
}

impl WakeSignal {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Polls `future` as this task.
    pub(super) fn poll<F: Future + Unpin>(self: &Arc<Self>, future: &mut F) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(self));
        Pin::new(future).poll(&mut Context::from_waker(&waker))
    }

    /// Waits until the task is woken.
    pub(super) async fn woken(&self) {
        poll_fn(|cx| {
            *self.waiting.lock() = Some(cx.waker().clone());
            if self.is_woken.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// True when a future or a stream that was polled as this task still holds its waker.
    pub(super) fn is_held(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }
}

impl Wake for WakeSignal {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waiting.lock().take() {
            waker.wake();
        }
    }
}

/// Lets the other tasks have a turn, in any runtime.
pub(super) async fn yield_once() {
    let mut is_over = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs the check `name`. A check that waits for ever fails instead, in any runtime and whatever its time is.
///
/// # Panics
/// When the check still waits after [`PATIENCE`].
pub(super) async fn bounded<T>(name: &str, check: impl Future<Output = T>) -> T {
    let task: Arc<Mutex<Option<Waker>>> = Arc::default();
    let is_late = Arc::new(AtomicBool::new(false));
    // Dropped with this future, it ends the thread.
    let (_running, ended) = mpsc::channel::<()>();
    #[allow(clippy::disallowed_methods, reason = "a test ends with its threads")]
    std::thread::spawn({
        let (task, is_late) = (Arc::clone(&task), Arc::clone(&is_late));
        move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                is_late.store(true, Ordering::SeqCst);
                if let Some(waker) = task.lock().take() {
                    waker.wake();
                }
            }
        }
    });
    let mut check = pin!(check);
    poll_fn(|cx| {
        *task.lock() = Some(cx.waker().clone());
        let outcome = check.as_mut().poll(cx);
        assert!(
            outcome.is_ready() || !is_late.load(Ordering::SeqCst),
            "{name}: still waits after {PATIENCE:?}"
        );
        outcome
    })
    .await
}
