//! The writer: the task that appends a channel's drafts to the log, batch by batch, and ends when none waits.

use std::sync::Arc;

use relay_core::{EventLog, LogError, Offset};

use super::Channel;
use super::batch::AppendBatch;

/// The writer of one channel. Dropped before its end, it ends the channel, so that no publisher waits for it.
pub(super) struct Writer {
    channel: Arc<Channel>,
    log: Arc<dyn EventLog>,
    /// The batch that the log is to take.
    batch: Option<AppendBatch>,
    is_done: bool,
}

impl Writer {
    pub(super) fn new(channel: Arc<Channel>, log: Arc<dyn EventLog>) -> Self {
        Self { channel, log, batch: None, is_done: false }
    }

    pub(super) async fn run(mut self) {
        while let Some(batch) = self.channel.next_batch() {
            if batch.events().is_empty() {
                continue;
            }
            self.channel.context().counters.log_batches.increment();
            let batch = self.batch.insert(batch);
            let appended = self.log.append(self.channel.document(), batch.events()).await;
            let stored = appended.and_then(|offsets| set_offsets(batch, offsets));
            let Some(batch) = self.batch.take() else { break };
            match stored {
                Ok(()) => self.channel.commit(batch),
                Err(error) => self.channel.fail(batch, &error),
            }
        }
        self.is_done = true;
    }
}

/// The offsets that a log returned for a batch break its contract. It is not known which of the events it keeps.
#[derive(Debug, thiserror::Error)]
enum OffsetError {
    #[error("it returned {offsets} offsets for {events} events")]
    Count { offsets: usize, events: usize },
    #[error("it returned offset {offset} after offset {before}")]
    Order { offset: Offset, before: Offset },
}

/// Gives each event of `batch` the offset that the log returned for it.
///
/// # Errors
/// [`LogError::Failed`] when the offsets break the contract of [`EventLog`].
fn set_offsets(batch: &mut AppendBatch, offsets: Vec<Offset>) -> Result<(), LogError> {
    check_offsets(batch, &offsets).map_err(|error| LogError::Failed { source: Arc::new(error) })?;
    batch.set_offsets(offsets);
    Ok(())
}

/// Checks that each event of `batch` has one offset, and that the offsets grow from the document's last one on.
fn check_offsets(batch: &AppendBatch, offsets: &[Offset]) -> Result<(), OffsetError> {
    let events = batch.events().len();
    if offsets.len() != events {
        return Err(OffsetError::Count { offsets: offsets.len(), events });
    }
    let mut before = batch.last_offset();
    for &offset in offsets {
        if offset <= before {
            return Err(OffsetError::Order { offset, before });
        }
        before = offset;
    }
    Ok(())
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_done {
            self.channel.interrupt_writer(self.batch.take());
        }
    }
}
