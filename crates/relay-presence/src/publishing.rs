//! Publishing: the tasks that hand the events of sessions, users and locks to an [`EventSink`].

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, Ready, ready};
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use relay_core::{CheckedDraft, DocumentId, ErrorCode, EventSink, LogError, PublishError};
use relay_metrics::Counter;
use relay_tasks::{TaskGroup, TaskName};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::documents::Documents;
use crate::leftovers::LeftoverTracker;
use crate::locks::{LockChange, Locks};

/// The most events of one document that are handed to the sink and not answered.
const MAX_IN_FLIGHT: usize = 256;
/// The first wait of a publisher that finds the log overloaded. Each further wait is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest wait of a publisher that finds the log overloaded.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// The task that publishes the events of one document's sessions and users.
const DOCUMENT: TaskName = TaskName::new("presence.publisher");
/// The task that publishes the changes of locks.
const LOCKS: TaskName = TaskName::new("presence.locks");

/// The outcome of an attempt to publish an event.
type Outcome = Result<(), PublishError>;

/// Starts the publishers of documents, in the tasks of its owner.
#[derive(Clone)]
pub(crate) struct Publishing {
    pub(crate) documents: Arc<Documents>,
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) leftovers: Arc<LeftoverTracker>,
    pub(crate) tasks: TaskGroup,
    /// The runtime of the tasks. A participant may leave by being dropped outside of it.
    pub(crate) runtime: Handle,
    /// Ends every publisher when it is cancelled.
    pub(crate) aborting: CancellationToken,
}

impl Publishing {
    /// Starts the publisher of a document: a task that lives until the document's outbox is empty.
    pub(crate) fn start(&self, id: DocumentId) {
        let publisher = DocumentPublisher { publishing: self.clone(), id, in_flight: FuturesOrdered::new() };
        let _in_runtime = self.runtime.enter();
        self.tasks.keep_running(DOCUMENT, publisher, |publisher| {
            Box::pin(async move {
                let aborting = publisher.publishing.aborting.clone();
                _ = aborting.run_until_cancelled(publisher.publish()).await;
            })
        });
    }

    /// Starts the task that publishes the changes of locks until they are shut down.
    pub(crate) fn start_locks(&self, locks: Locks) {
        let publishing = Arc::new(self.clone());
        let publisher = LockPublisher { publishing, locks, in_flight: FuturesUnordered::new() };
        self.tasks.keep_running(LOCKS, publisher, |publisher| {
            Box::pin(async move {
                let aborting = publisher.publishing.aborting.clone();
                _ = aborting.run_until_cancelled(publisher.publish()).await;
            })
        });
    }

    /// Publishes one event, again and again while the log is overloaded.
    pub(crate) async fn publish_patiently(&self, draft: CheckedDraft, retries: &Counter) -> Outcome {
        let mut wait = FIRST_RETRY;
        loop {
            match self.publish(draft.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == ErrorCode::Overloaded => {
                    retries.increment();
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_RETRY);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Begins to publish one event. A sink that panics has failed for this event alone.
    fn publish(&self, draft: CheckedDraft) -> BoxFuture<'static, Outcome> {
        let (sink, leftovers) = (Arc::clone(&self.sink), Arc::clone(&self.leftovers));
        Box::pin(async move {
            let document = draft.document.clone();
            let attempt = leftovers.begin(&draft);
            let publishing = async { sink.publish(draft).await };
            let outcome = AssertUnwindSafe(publishing).catch_unwind().await.unwrap_or_else(|_panic| {
                tracing::error!(%document, "publishing an event of presence panicked, which is a defect");
                let source = Arc::new(std::io::Error::other("publishing the event panicked"));
                Err(LogError::Failed { source }.into())
            });
            if let Some(attempt) = attempt {
                attempt.end(&outcome);
            }
            outcome.map(drop)
        })
    }
}

/// The publisher of one document's events. It keeps the attempts in flight when it panics, so that it learns their outcomes
/// after its restart: an event that was handed over twice could be in the log twice.
struct DocumentPublisher {
    publishing: Publishing,
    id: DocumentId,
    in_flight: FuturesOrdered<Either<Ready<Outcome>, BoxFuture<'static, Outcome>>>,
}

impl DocumentPublisher {
    /// Publishes the events until the outbox is empty. Each is handed to the sink after the one before it, and is not awaited
    /// before the next, so that many share one write to the disk.
    async fn publish(&mut self) {
        let Self { publishing, id, in_flight } = self;
        let documents = &*publishing.documents;
        // Nothing is in flight that this publisher does not wait for.
        documents.reclaim_outgoing(id, in_flight.len());
        let mut wait = FIRST_RETRY;
        while !(in_flight.is_empty() && documents.release_publisher(id)) {
            tokio::select! {
                biased;
                draft = documents.next_outgoing(id), if in_flight.len() < MAX_IN_FLIGHT => {
                    let Some(draft) = draft else { return };
                    let mut attempt = publishing.publish(draft);
                    // The first poll gives the event its place behind those before it.
                    in_flight.push_back(match poll_fn(|cx| Poll::Ready(attempt.as_mut().poll(cx))).await {
                        Poll::Ready(outcome) => Either::Left(ready(outcome)),
                        Poll::Pending => Either::Right(attempt),
                    });
                    documents.mark_handed_over(id);
                }
                Some(outcome) = in_flight.next(), if !in_flight.is_empty() => {
                    if is_overloaded(&outcome) {
                        documents.refuse_outgoing(id);
                        documents.counters().retries.increment();
                        if in_flight.is_empty() {
                            tokio::time::sleep(wait).await;
                            wait = (wait * 2).min(LONGEST_RETRY);
                        }
                    } else {
                        end_outgoing(documents, id, &outcome);
                        wait = FIRST_RETRY;
                    }
                }
            }
        }
    }
}

/// The publisher of the changes of locks. It keeps the attempts in flight when it panics, as that of a document does.
struct LockPublisher {
    publishing: Arc<Publishing>,
    locks: Locks,
    in_flight: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl LockPublisher {
    /// Publishes the changes until the locks are shut down. The changes of one document come one by one, so there are at most as
    /// many attempts as documents with locks. Those of a document that is overloaded hold up no other.
    async fn publish(&mut self) {
        let Self { publishing, locks, in_flight } = self;
        let mut is_over = false;
        while !is_over || !in_flight.is_empty() {
            tokio::select! {
                change = locks.next_change(), if !is_over => match change {
                    Some(change) => in_flight.push(publish_change(publishing, locks, change)),
                    None => is_over = true,
                },
                Some(()) = in_flight.next() => {}
            }
        }
    }
}

/// Publishes a change of a lock. The end of a lock, which has happened already, is published patiently; a grant is refused
/// while the log is overloaded.
fn publish_change(publishing: &Arc<Publishing>, locks: &Locks, change: LockChange) -> BoxFuture<'static, ()> {
    let (publishing, locks) = (Arc::clone(publishing), locks.clone());
    let LockChange { draft, publication } = change;
    Box::pin(async move {
        publication.report(if draft.is_closing() {
            publishing.publish_patiently(draft, locks.retries()).await
        } else {
            publishing.publish(draft).await
        });
    })
}

fn is_overloaded(outcome: &Outcome) -> bool {
    outcome.as_ref().is_err_and(|error| error.code() == ErrorCode::Overloaded)
}

fn end_outgoing(documents: &Documents, id: &DocumentId, outcome: &Outcome) {
    match outcome {
        Ok(()) => documents.counters().published.increment(),
        Err(error) => {
            // A client can cause one for each of its joins. They are counted, and the first is a warning.
            if documents.counters().failed.increment_first() {
                tracing::warn!(document = %id, %error, "an event of a session or user was not published, the first one");
            } else {
                tracing::debug!(document = %id, %error, "an event of a session or user was not published");
            }
        }
    }
    documents.end_outgoing(id, outcome.is_ok());
}
