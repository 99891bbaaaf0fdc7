//! Publishing: the tasks that hand the events of sessions, users and locks to an [`EventSink`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use relay_core::{CheckedDraft, DocumentId, ErrorCode, EventSink, PublishError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::documents::Documents;
use crate::locks::{LockChange, Locks};

/// The most changes of locks that are published at the same time.
const MAX_LOCK_CHANGES: usize = 256;
/// The first wait of a publisher that finds the log overloaded. Each further wait is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest wait of a publisher that finds the log overloaded.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Starts the publishers of documents, in the tasks of its owner.
pub(crate) struct Publishing {
    pub(crate) documents: Arc<Documents>,
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) tasks: TaskTracker,
    /// Ends every publisher when it is cancelled.
    pub(crate) aborting: CancellationToken,
}

impl Publishing {
    /// Starts the publisher of a document: a task that lives until the document's outbox is empty.
    pub(crate) fn start(&self, id: DocumentId) {
        let publishing = publish_document(Arc::clone(&self.documents), Arc::clone(&self.sink), id);
        let aborting = self.aborting.clone();
        self.tasks.spawn(async move { aborting.run_until_cancelled_owned(publishing).await });
    }

    /// Starts the task that publishes the changes of locks until they are shut down.
    pub(crate) fn start_locks(&self, locks: Locks) {
        let publishing = publish_locks(locks, Arc::clone(&self.sink));
        let aborting = self.aborting.clone();
        self.tasks.spawn(async move { aborting.run_until_cancelled_owned(publishing).await });
    }
}

/// Publishes the events of one document, one after the other, until its outbox is empty.
async fn publish_document(documents: Arc<Documents>, sink: Arc<dyn EventSink>, id: DocumentId) {
    while let Some(draft) = documents.next_outgoing(&id) {
        let outcome = publish_patiently(&documents, &*sink, draft).await;
        match &outcome {
            Ok(()) => documents.counters().published.increment(),
            Err(error) => {
                tracing::warn!(document = %id, %error, "an event of a session or user was not published");
                documents.counters().failed.increment();
            }
        }
        documents.end_outgoing(&id, outcome.is_ok());
    }
}

/// Publishes one event, again and again while the log is overloaded.
async fn publish_patiently(
    documents: &Documents,
    sink: &dyn EventSink,
    draft: CheckedDraft,
) -> Result<(), PublishError> {
    let mut wait = FIRST_RETRY;
    loop {
        match sink.publish(draft.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == ErrorCode::Overloaded => {
                documents.counters().retries.increment();
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_RETRY);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Publishes the changes of locks until they are shut down. The changes of one document come one by one.
async fn publish_locks(locks: Locks, sink: Arc<dyn EventSink>) {
    let publish = |LockChange { draft, publication }: LockChange| {
        let sink = Arc::clone(&sink);
        async move { publication.report(sink.publish(draft).await.map(drop)) }
    };
    let mut under_way = FuturesUnordered::new();
    let mut is_over = false;
    while !is_over || !under_way.is_empty() {
        tokio::select! {
            change = locks.next_change(), if !is_over && under_way.len() < MAX_LOCK_CHANGES => match change {
                Some(change) => under_way.push(publish(change)),
                None => is_over = true,
            },
            Some(()) = under_way.next() => {}
        }
    }
}
