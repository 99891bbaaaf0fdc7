//! The way of a draft into its channel.

use std::sync::Arc;

use relay_core::{CheckedDraft, EventLog, PublishError};

use super::batch::{AckSender, PendingDraft, PublishResult};
use super::{Channel, writer};

/// Publishes `draft` in its document's channel. Seqs follow the order in which the futures are first polled, as long as
/// the queue has space.
pub(crate) async fn publish(channel: &Arc<Channel>, draft: CheckedDraft) -> PublishResult {
    if draft.kind.is_ephemeral() {
        return channel.publish_ephemeral(draft);
    }
    match &channel.context().log {
        None => channel.publish_in_memory(draft),
        Some(log) => publish_logged(channel, draft, log).await,
    }
}

/// Queues `draft` for the writer, and waits for its answer.
async fn publish_logged(
    channel: &Arc<Channel>,
    draft: CheckedDraft,
    log: &Arc<dyn EventLog>,
) -> PublishResult {
    let permit = channel.acquire_permit(draft.approx_bytes()).await?;
    let (sender, answer) = AckSender::new(permit);
    writer::enqueue(channel, log, PendingDraft { draft, sender });
    // The writer answers every draft, at the latest when it is dropped. `Closed` is a fallback for an answer that is lost.
    answer.await.unwrap_or(Err(PublishError::Closed))
}
