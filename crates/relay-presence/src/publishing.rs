//! Publishing: the tasks that hand the events of sessions, users and locks to an [`EventSink`].

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

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
/// The most changes of locks that are published at the same time.
const MAX_LOCK_CHANGES: usize = 256;
/// The first wait of a publisher that finds the log overloaded. Each further wait is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest wait of a publisher that finds the log overloaded.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// The task that publishes the events of one document's sessions and users.
const DOCUMENT: TaskName = TaskName::new("presence.publisher");
/// The task that publishes the changes of locks.
const LOCKS: TaskName = TaskName::new("presence.locks");

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
        let publishing = (self.clone(), id);
        let _in_runtime = self.runtime.enter();
        self.tasks.keep_running(DOCUMENT, publishing, |(publishing, id)| {
            Box::pin(async move {
                let aborting = publishing.aborting.clone();
                _ = aborting.run_until_cancelled(publishing.publish_document(id)).await;
            })
        });
    }

    /// Starts the task that publishes the changes of locks until they are shut down.
    pub(crate) fn start_locks(&self, locks: Locks) {
        let publishing = (self.clone(), locks);
        self.tasks.keep_running(LOCKS, publishing, |(publishing, locks)| {
            Box::pin(async move {
                let aborting = publishing.aborting.clone();
                _ = aborting.run_until_cancelled(publishing.publish_locks(locks)).await;
            })
        });
    }

    /// Publishes the events of one document until its outbox is empty. Each is handed to the sink after the one before it, and is
    /// not awaited before the next, so that many share one write to the disk.
    async fn publish_document(&self, id: &DocumentId) {
        let documents = &*self.documents;
        // A publisher that panicked left events in flight.
        documents.reclaim_outgoing(id);
        let mut in_flight = FuturesOrdered::new();
        while !(in_flight.is_empty() && documents.release_publisher(id)) {
            tokio::select! {
                biased;
                draft = documents.next_outgoing(id), if in_flight.len() < MAX_IN_FLIGHT => {
                    let Some(draft) = draft else { return };
                    let mut publishing = Box::pin(self.publish(draft.clone()));
                    // The first poll gives the event its place behind those before it.
                    let polled = poll_fn(|cx| Poll::Ready(publishing.as_mut().poll(cx))).await;
                    documents.mark_handed_over(id);
                    in_flight.push_back(async move {
                        let outcome = match polled {
                            Poll::Ready(outcome) => outcome,
                            Poll::Pending => publishing.await,
                        };
                        (draft, outcome)
                    });
                }
                Some((draft, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                    if is_overloaded(&outcome) {
                        // The others in flight end first, so that what is tried again keeps its order.
                        documents.set_delayed(id, true);
                        let rest: Vec<_> = std::mem::take(&mut in_flight).collect().await;
                        for (draft, outcome) in std::iter::once((draft, outcome)).chain(rest) {
                            let outcome = match outcome {
                                outcome if is_overloaded(&outcome) => {
                                    self.publish_patiently(draft, &documents.counters().retries).await
                                }
                                outcome => outcome,
                            };
                            end_outgoing(documents, id, &outcome);
                        }
                        documents.set_delayed(id, false);
                    } else {
                        end_outgoing(documents, id, &outcome);
                    }
                }
            }
        }
    }

    /// Publishes one event, again and again while the log is overloaded.
    pub(crate) async fn publish_patiently(
        &self,
        draft: CheckedDraft,
        retries: &Counter,
    ) -> Result<(), PublishError> {
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

    /// Publishes the changes of locks until they are shut down. The changes of one document come one by one. The
    /// end of a lock, which has happened already, is published patiently; a grant is refused while the log is overloaded.
    async fn publish_locks(&self, locks: &Locks) {
        let publish_change = async |LockChange { draft, publication }: LockChange| {
            publication.report(if draft.is_closing() {
                self.publish_patiently(draft, locks.retries()).await
            } else {
                self.publish(draft).await
            });
        };
        let mut under_way = FuturesUnordered::new();
        let mut is_over = false;
        while !is_over || !under_way.is_empty() {
            tokio::select! {
                change = locks.next_change(), if !is_over && under_way.len() < MAX_LOCK_CHANGES => match change {
                    Some(change) => under_way.push(publish_change(change)),
                    None => is_over = true,
                },
                Some(()) = under_way.next() => {}
            }
        }
    }

    /// Publishes one event. A sink that panics has failed for this event alone.
    async fn publish(&self, draft: CheckedDraft) -> Result<(), PublishError> {
        let document = draft.document.clone();
        let attempt = self.leftovers.begin(&draft);
        let publishing = async { self.sink.publish(draft).await };
        let outcome = AssertUnwindSafe(publishing).catch_unwind().await.unwrap_or_else(|_panic| {
            tracing::error!(%document, "publishing an event of presence panicked, which is a defect");
            let source = Arc::new(std::io::Error::other("publishing the event panicked"));
            Err(LogError::Failed { source }.into())
        });
        self.leftovers.end(attempt, &outcome);
        outcome.map(drop)
    }
}

fn is_overloaded(outcome: &Result<(), PublishError>) -> bool {
    outcome.as_ref().is_err_and(|error| error.code() == ErrorCode::Overloaded)
}

fn end_outgoing(documents: &Documents, id: &DocumentId, outcome: &Result<(), PublishError>) {
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
