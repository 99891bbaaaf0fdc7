//! A document's history as readers see it: the events that retention keeps and that the channel has shown.

use std::sync::Arc;

use relay_core::{DocumentId, Event, Head, LogError, ReadLimit, Seq, SubscribeError};

use crate::channel::Channel;
use crate::channel_map::ChannelMap;

/// Returns the document's head. Its `first` is the earliest event that the log keeps, or memory where there is no log.
///
/// # Errors
/// The reason for which the document must be opened again, such as its loss to another server, and the errors of the log.
pub(crate) async fn retained_range(channels: &ChannelMap, channel: &Channel) -> Result<Head, SubscribeError> {
    let Some(log) = &channels.context().log else { return channel.owned_head() };
    let kept = log.head(channel.document()).await?;
    let visible = channel.owned_head()?;
    Ok(Head::new(visible.epoch, kept.first.min(visible.last.next()), visible.last))
}

/// A page of history that cannot be read.
pub(crate) enum HistoryError {
    /// Retention has dropped the page's first event. What is left is that of this head.
    Trimmed(Head),
    Other(SubscribeError),
}

impl<E: Into<SubscribeError>> From<E> for HistoryError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Reads one page of a document's history, from memory where it reaches back so far.
pub(crate) async fn page(
    channels: &ChannelMap,
    document: &DocumentId,
    after: Seq,
    limit: ReadLimit,
) -> Result<(Head, Vec<Arc<Event>>), HistoryError> {
    channels.end_if_lost(document);
    let channel = channels.open_to_read(document).await?;
    let page = channel.cached_page(after, limit);
    let head = retained_range(channels, &channel).await?;
    let is_kept = after.next() >= head.first;
    match (page, &channels.context().log) {
        // Events that retention has dropped are not served, though memory may still hold them.
        (Some(page), _) if is_kept => Ok((head, page)),
        (_, Some(log)) if is_kept => {
            let page = match log.read_document(document, after, limit).await {
                // Retention has moved on meanwhile.
                Err(LogError::Trimmed { first, .. }) => {
                    return Err(HistoryError::Trimmed(Head::new(head.epoch, first, head.last)));
                }
                page => page?,
            };
            // The log may be ahead of the events that are visible.
            let visible = page.into_iter().filter(|event| event.seq.is_some_and(|seq| seq <= head.last));
            Ok((head, visible.map(Arc::new).collect()))
        }
        _ => Err(HistoryError::Trimmed(head)),
    }
}
