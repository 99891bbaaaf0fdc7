//! Handlers: code in this process that is called for each event that matches its filter.
//!
//! An asynchronous handler runs in a task of its own, with a time-out. A blocking handler runs on worker threads of its
//! own, which bounded crossbeam channels feed; a call may block as long as it likes. Both get the events of one document
//! in order, one after the other. An error or a panic ends that call alone. A handler that does not keep up fills its own
//! mailbox and delays no other one.

use std::any::Any;
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use relay_core::Event;
use relay_metrics::Counter;
use relay_tasks::{OnPanic, Pulse, TaskGroup, TaskName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::counters::Counters;
use crate::filter::Filter;
use crate::mailbox::MailboxConfig;
use crate::multi_subscription::{MultiSubscription, Received};

/// The error of a handler that could not handle an event. It is counted, and the first one is logged as a warning; the event is
/// not tried again.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// Asynchronous code that is called for events.
#[async_trait]
pub trait EventHandler: Send + Sync + 'static {
    /// Handles `event`. The future is dropped when it exceeds the handler's time-out, so it must be cancel-safe.
    ///
    /// # Errors
    /// Any error of the handler.
    async fn handle(&self, event: Arc<Event>) -> Result<(), HandlerError>;
}

/// Synchronous code that is called for events, on threads where it may block.
pub trait BlockingHandler: Send + Sync + 'static {
    /// Handles `event`. There is no time-out, because a thread cannot be interrupted.
    ///
    /// # Errors
    /// Any error of the handler.
    fn handle(&self, event: &Event) -> Result<(), HandlerError>;
}

/// The task that calls an asynchronous handler.
const HANDLER: TaskName = TaskName::new("bus.handler");
/// A thread that calls a blocking handler.
const HANDLER_THREAD: TaskName = TaskName::new("bus.handler-thread");
/// The task that feeds the threads of a blocking handler.
const THREAD_FEED: TaskName = TaskName::new("bus.handler-feed");
/// The call that waits for the threads of a blocking handler.
const THREAD_JOINER: TaskName = TaskName::new("bus.handler-join");

/// The pause before a handler's events are read again from a log that failed.
const READ_RETRY: Duration = Duration::from_secs(1);

/// The most events that wait between a blocking handler's mailbox and each of its threads.
const THREAD_QUEUE: usize = 64;

impl Bus {
    /// Calls `handler` for every event that matches `filter`, from now until the bus stops. A call that takes longer
    /// than `timeout` is dropped and counted. Events that found the mailbox full come from history. Those that history no
    /// longer keeps are logged. `name` is for the log.
    pub fn handle(
        &self,
        name: impl Into<String>,
        filter: Filter,
        mailbox: MailboxConfig,
        timeout: Duration,
        handler: Arc<dyn EventHandler>,
    ) {
        let events = HandlerEvents::new(self, name.into(), filter, mailbox);
        let (counters, aborting) = (Arc::clone(self.counters()), self.aborting());
        let state = (events, handler);
        self.tasks().keep_running(HANDLER, state, move |(events, handler)| {
            let (counters, aborting) = (Arc::clone(&counters), aborting.clone());
            Box::pin(async move {
                let calls = async {
                    while let Some(event) = events.next().await {
                        let name = &events.name;
                        let call = AssertUnwindSafe(handler.handle(Arc::clone(&event))).catch_unwind();
                        match tokio::time::timeout(timeout, call).await {
                            Ok(Ok(result)) => count(&counters, name, &event, result),
                            Ok(Err(panic)) => count_panic(&counters, name, &event, &*panic),
                            Err(_elapsed) => {
                                let error = format_args!("it took longer than {timeout:?}");
                                count_failure(&counters.handler_timeouts, name, &event, &error);
                            }
                        }
                    }
                };
                // The caller of shutdown set the deadline, and is told that work was given up.
                let _ = aborting.run_until_cancelled(calls).await;
            })
        });
    }

    /// Calls `handler` on `threads` threads of its own for every event that matches `filter`, from now until the bus
    /// stops. All events of one document go to the same thread, in order. `name` is for the log and the threads.
    ///
    /// # Errors
    /// The error of the operating system when a thread cannot be started.
    pub fn handle_blocking(
        &self,
        name: impl Into<String>,
        filter: Filter,
        mailbox: MailboxConfig,
        threads: NonZeroUsize,
        handler: &Arc<dyn BlockingHandler>,
    ) -> std::io::Result<()> {
        let name = name.into();
        let mut queues = Vec::new();
        let mut workers = Vec::new();
        for index in 0..threads.get() {
            let (sender, receiver) = crossbeam_channel::bounded::<QueuedCall>(THREAD_QUEUE);
            let (handler, counters, name) = (Arc::clone(handler), Arc::clone(self.counters()), name.clone());
            let context = Arc::clone(self.context());
            let thread = format!("{name}-{index}");
            let work = move |pulse: &Pulse| {
                for QueuedCall { event, _permit } in &receiver {
                    pulse.check();
                    // The event may have expired while it waited for this thread.
                    let Some(event) = context.present(event) else { continue };
                    match catch_unwind(AssertUnwindSafe(|| handler.handle(&event))) {
                        Ok(result) => count(&counters, &name, &event, result),
                        Err(panic) => count_panic(&counters, &name, &event, &*panic),
                    }
                }
            };
            workers.push(self.tasks().thread(HANDLER_THREAD, thread, OnPanic::Restart, work)?);
            queues.push(WorkerQueue { sender, permits: Arc::new(Semaphore::new(THREAD_QUEUE)) });
        }
        let feed = ThreadFeed { events: HandlerEvents::new(self, name, filter, mailbox), queues, workers };
        let (aborting, hasher) = (self.aborting(), RandomState::new());
        let joining = self.tasks().clone();
        self.tasks().keep_running(THREAD_FEED, feed, move |feed| {
            Box::pin(feed.run(aborting.clone(), hasher.clone(), joining.clone()))
        });
        Ok(())
    }
}

/// The way of events to the threads of one handler.
struct ThreadFeed {
    events: HandlerEvents,
    queues: Vec<WorkerQueue>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

impl ThreadFeed {
    /// Sends events to the threads until the bus stops, and waits for their last calls.
    async fn run(&mut self, aborting: CancellationToken, hasher: RandomState, tasks: TaskGroup) {
        let Self { events, queues, workers } = self;
        let all_sent = async {
            while let Some(event) = events.next().await {
                let hash = hasher.hash_one(&event.document);
                queues[usize::try_from(hash % queues.len() as u64).unwrap_or(0)].send(event).await;
            }
        };
        let aborted = aborting.run_until_cancelled(all_sent).await.is_none();
        queues.clear();
        let workers = std::mem::take(workers);
        let joined = tasks
            .blocking(THREAD_JOINER, move || workers.into_iter().try_for_each(std::thread::JoinHandle::join));
        // After an abort each thread ends by itself after its present call, and the bus does not wait for it.
        if !aborted {
            let _ = aborting.run_until_cancelled(joined).await;
        }
    }
}

/// The bounded queue of one worker thread.
struct WorkerQueue {
    sender: crossbeam_channel::Sender<QueuedCall>,
    permits: Arc<Semaphore>,
}

/// An event on its way to a worker thread, with its permit to be in the queue.
struct QueuedCall {
    event: Arc<Event>,
    _permit: OwnedSemaphorePermit,
}

impl WorkerQueue {
    /// Sends `event` once the queue has space. It waits for a permit instead of blocking the runtime in the channel.
    async fn send(&self, event: Arc<Event>) {
        if let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await
            && self.sender.try_send(QueuedCall { event, _permit: permit }).is_err()
        {
            tracing::error!("the handler's thread has ended; the event is not handled");
        }
    }
}

/// The events of one handler.
struct HandlerEvents {
    /// Cancelled when the bus stops.
    stopping: CancellationToken,
    /// The handler's name, for the log.
    name: String,
    events: MultiSubscription,
}

impl HandlerEvents {
    fn new(bus: &Bus, name: String, filter: Filter, mailbox: MailboxConfig) -> Self {
        Self { events: bus.subscribe_all(filter, mailbox), stopping: bus.stopping(), name }
    }

    /// Receives the next event; `None` after the last one. While the history cannot be read, it tries again.
    async fn next(&mut self) -> Option<Arc<Event>> {
        let Self { stopping, name, events } = self;
        let mut is_failing = false;
        loop {
            match events.next().await? {
                Ok(Received::Event(event)) => return Some(event),
                Ok(Received::Missed { document, epoch, after, through }) => {
                    tracing::warn!(handler = name, %document, %epoch, %after, %through, "the handler misses events that this server can no longer give");
                }
                Ok(Received::Overrun) => {
                    tracing::error!(handler = name, "the handler did not keep up and gets no more events");
                }
                Err(error) if stopping.is_cancelled() => {
                    tracing::error!(handler = name, %error, "the history cannot be read; the handler misses the last events");
                    return None;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(handler = name, %error, "the history cannot be read; the handler waits for it");
                    }
                    stopping.run_until_cancelled(tokio::time::sleep(READ_RETRY)).await;
                }
            }
        }
    }
}

fn count(counters: &Counters, name: &str, event: &Event, result: Result<(), HandlerError>) {
    match result {
        Ok(()) => counters.handler_successes.increment(),
        Err(error) => count_failure(&counters.handler_errors, name, event, &error),
    }
}

fn count_panic(counters: &Counters, name: &str, event: &Event, panic: &(dyn Any + Send)) {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    count_failure(&counters.handler_panics, name, event, &format_args!("it panicked: {message}"));
}

/// Counts a failure of a handler, of which there may be one for each event. The first of its kind is a warning.
fn count_failure(counter: &Counter, name: &str, event: &Event, error: &dyn Display) {
    if counter.increment_first() {
        tracing::warn!(handler = name, event = %event.id, %error, "a handler failed, for the first time in this way");
    } else {
        tracing::debug!(handler = name, event = %event.id, %error, "a handler failed");
    }
}
