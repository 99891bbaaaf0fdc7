//! Publishing: the tasks that hand the events of sessions, users and locks to an [`EventSink`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use relay_core::{CheckedDraft, DocumentId, ErrorCode, EventSink, LogError, PublishError};
use relay_metrics::Counter;
use relay_tasks::{TaskGroup, TaskName};
use tokio_util::sync::CancellationToken;

use crate::documents::Documents;
use crate::locks::{LockChange, Locks};

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
    pub(crate) tasks: TaskGroup,
    /// Ends every publisher when it is cancelled.
    pub(crate) aborting: CancellationToken,
}

impl Publishing {
    /// Starts the publisher of a document: a task that lives until the document's outbox is empty.
    pub(crate) fn start(&self, id: DocumentId) {
        let publishing = (self.clone(), id);
        self.tasks.keep_running(DOCUMENT, publishing, |(Self { documents, sink, aborting, .. }, id)| {
            let publishing = publish_document(documents, &**sink, id);
            Box::pin(async move { _ = aborting.run_until_cancelled(publishing).await })
        });
    }

    /// Starts the task that publishes the changes of locks until they are shut down.
    pub(crate) fn start_locks(&self, locks: Locks) {
        let publishing = (Arc::clone(&self.sink), self.aborting.clone(), locks);
        self.tasks.keep_running(LOCKS, publishing, |(sink, aborting, locks)| {
            let publishing = publish_locks(locks, &**sink);
            Box::pin(async move { _ = aborting.run_until_cancelled(publishing).await })
        });
    }
}

/// Publishes the events of one document in their order, until its outbox is empty.
async fn publish_document(documents: &Documents, sink: &dyn EventSink, id: &DocumentId) {
    loop {
        let drafts = documents.next_outgoing(id);
        if drafts.is_empty() {
            return;
        }
        let publish = |draft| publish_patiently(sink, draft, &documents.counters().retries);
        let outcomes = join_all(drafts.into_iter().map(publish)).await;
        for outcome in &outcomes {
            match outcome {
                Ok(()) => documents.counters().published.increment(),
                Err(error) => {
                    tracing::warn!(document = %id, %error, "an event of a session or user was not published");
                    documents.counters().failed.increment();
                }
            }
        }
        let are_kept: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
        documents.end_outgoing(id, &are_kept);
    }
}

/// Publishes one event, again and again while the log is overloaded.
async fn publish_patiently(
    sink: &dyn EventSink,
    draft: CheckedDraft,
    retries: &Counter,
) -> Result<(), PublishError> {
    let mut wait = FIRST_RETRY;
    loop {
        match publish(sink, draft.clone()).await {
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

/// Publishes the changes of locks until they are shut down. The changes of one document come one by one. The end of a lock,
/// which has happened already, is published patiently; a grant is refused while the log is overloaded.
async fn publish_locks(locks: &Locks, sink: &dyn EventSink) {
    let publish_change = async |LockChange { draft, publication }: LockChange| {
        publication.report(if draft.is_closing() {
            publish_patiently(sink, draft, locks.retries()).await
        } else {
            publish(sink, draft).await
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
async fn publish(sink: &dyn EventSink, draft: CheckedDraft) -> Result<(), PublishError> {
    let document = draft.document.clone();
    let publishing = async { sink.publish(draft).await.map(drop) };
    AssertUnwindSafe(publishing).catch_unwind().await.unwrap_or_else(|_panic| {
        tracing::error!(%document, "publishing an event of presence panicked, which is a defect");
        let source = Arc::new(std::io::Error::other("publishing the event panicked"));
        Err(LogError::Failed { source }.into())
    })
}
