//! Handlers: code in this process that is called for every event that it wants.
//!
//! An asynchronous handler runs in a task of its own, with a time-out; a synchronous one runs on worker threads of its
//! own, fed over a bounded crossbeam channel, where it may block as long as it likes. Either way its events of one
//! document come in order, one after the other; an error or a panic ends that call alone; and a handler that does not
//! keep up fills its own mailbox and nobody else's.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use relay_core::Event;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bus::Bus;
use crate::counters::Counters;
use crate::filter::Filter;
use crate::mailbox::MailboxConfig;
use crate::multi_subscription::{MultiSubscription, Received};

/// What a handler says when it could not handle an event. It is logged and counted; the event is not tried again.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// Asynchronous code that is called for events.
#[async_trait]
pub trait EventHandler: Send + Sync + 'static {
    /// Handles `event`. Dropped when it takes longer than the handler's time-out, so it must be cancel-safe.
    ///
    /// # Errors
    /// Whatever went wrong.
    async fn handle(&self, event: Arc<Event>) -> Result<(), HandlerError>;
}

/// Synchronous code that is called for events, on threads where it may block.
pub trait BlockingHandler: Send + Sync + 'static {
    /// Handles `event`. There is no time-out: a thread cannot be interrupted.
    ///
    /// # Errors
    /// Whatever went wrong.
    fn handle(&self, event: &Event) -> Result<(), HandlerError>;
}

/// How many events wait between a blocking handler's mailbox and each of its threads.
const THREAD_QUEUE: usize = 64;

impl Bus {
    /// Calls `handler` for every event that matches `filter`, from now until the bus stops. A call that takes longer
    /// than `timeout` is given up and counted. What the mailbox could not hold comes from history; what history does
    /// not keep any more is logged. `name` is for the log.
    pub fn handle(
        &self,
        name: impl Into<String>,
        filter: Filter,
        mailbox: MailboxConfig,
        timeout: Duration,
        handler: Arc<dyn EventHandler>,
    ) {
        let name = name.into();
        let mut events = self.subscribe_all(filter, mailbox);
        let (bus, aborting) = (self.clone(), self.aborting().clone());
        self.tasks().spawn(async move {
            let calls = async {
                while let Some(event) = next_event(&name, &mut events).await {
                    let call = AssertUnwindSafe(handler.handle(Arc::clone(&event))).catch_unwind();
                    match tokio::time::timeout(timeout, call).await {
                        Ok(Ok(result)) => count(bus.counters(), &name, &event, result),
                        Ok(Err(panic)) => count_panic(bus.counters(), &name, &event, &*panic),
                        Err(_elapsed) => {
                            bus.counters().handler_timeouts.increment();
                            tracing::warn!(handler = name, event = %event.id, ?timeout, "the handler took too long");
                        }
                    }
                }
            };
            // What is cut short by the abort was given up by who set the deadline.
            let _ = aborting.run_until_cancelled(calls).await;
        });
    }

    /// Calls `handler` on `threads` threads of its own for every event that matches `filter`, from now until the bus
    /// stops. All events of one document come to the same thread, in order. `name` is for the log and the threads.
    ///
    /// # Errors
    /// When the threads cannot be started.
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
            let (sender, receiver) = crossbeam_channel::bounded::<Job>(THREAD_QUEUE);
            let (handler, counters, name) = (Arc::clone(handler), Arc::clone(self.counters()), name.clone());
            let worker = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
                for Job { event, _permit } in receiver {
                    match catch_unwind(AssertUnwindSafe(|| handler.handle(&event))) {
                        Ok(result) => count(&counters, &name, &event, result),
                        Err(panic) => count_panic(&counters, &name, &event, &*panic),
                    }
                }
            })?;
            queues.push(WorkerQueue { sender, permits: Arc::new(Semaphore::new(THREAD_QUEUE)) });
            workers.push(worker);
        }
        let mut events = self.subscribe_all(filter, mailbox);
        let aborting = self.aborting().clone();
        self.tasks().spawn(async move {
            let hasher = RandomState::new();
            let all_sent = async {
                while let Some(event) = next_event(&name, &mut events).await {
                    let hash = hasher.hash_one(&event.document);
                    queues[usize::try_from(hash % queues.len() as u64).unwrap_or(0)].send(event).await;
                }
            };
            let aborted = aborting.run_until_cancelled(all_sent).await.is_none();
            drop(queues);
            let joined = tokio::task::spawn_blocking(move || {
                workers.into_iter().try_for_each(std::thread::JoinHandle::join)
            });
            // After an abort the threads end by themselves, after their present call; nobody waits for them.
            if !aborted {
                let _ = aborting.run_until_cancelled(joined).await;
            }
        });
        Ok(())
    }
}

/// A worker thread's queue.
struct WorkerQueue {
    sender: crossbeam_channel::Sender<Job>,
    permits: Arc<Semaphore>,
}

/// An event on its way to a thread, with its place in the queue.
struct Job {
    event: Arc<Event>,
    _permit: OwnedSemaphorePermit,
}

impl WorkerQueue {
    /// Waits for room without blocking the runtime, so that sending never does.
    async fn send(&self, event: Arc<Event>) {
        if let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await
            && self.sender.try_send(Job { event, _permit: permit }).is_err()
        {
            tracing::error!("a handler's thread is gone");
        }
    }
}

/// The next event for a handler; `None` when there will be no more.
async fn next_event(name: &str, events: &mut MultiSubscription) -> Option<Arc<Event>> {
    loop {
        match events.next().await? {
            Ok(Received::Event(event)) => return Some(event),
            Ok(Received::Missed { document, after, through }) => {
                tracing::warn!(handler = name, %document, %after, %through, "events were missed: history no longer keeps them");
            }
            Ok(Received::Overrun) => {
                tracing::error!(handler = name, "the handler did not keep up and gets no more events");
            }
            Err(error) => {
                tracing::error!(handler = name, %error, "the history cannot be read; the handler gets no more events");
                return None;
            }
        }
    }
}

fn count(counters: &Counters, name: &str, event: &Event, result: Result<(), HandlerError>) {
    match result {
        Ok(()) => counters.handler_successes.increment(),
        Err(error) => {
            counters.handler_errors.increment();
            tracing::warn!(handler = name, event = %event.id, %error, "the handler failed");
        }
    }
}

fn count_panic(counters: &Counters, name: &str, event: &Event, panic: &(dyn Any + Send)) {
    counters.handler_panics.increment();
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(handler = name, event = %event.id, message, "the handler panicked");
}
