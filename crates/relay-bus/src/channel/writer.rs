//! The writer: the task that appends a channel's drafts to the log, batch by batch, and ends when none waits.

use std::sync::Arc;

use relay_core::EventLog;

use super::Channel;

/// The writer of one channel. Dropped before its end, it ends the channel, so that no publisher waits for it.
pub(super) struct Writer {
    channel: Arc<Channel>,
    log: Arc<dyn EventLog>,
    is_done: bool,
}

impl Writer {
    pub(super) fn new(channel: Arc<Channel>, log: Arc<dyn EventLog>) -> Self {
        Self { channel, log, is_done: false }
    }

    pub(super) async fn run(mut self) {
        while let Some(batch) = self.channel.next_batch() {
            if batch.events().is_empty() {
                continue;
            }
            self.channel.context().counters.log_batches.increment();
            match self.log.append(self.channel.document(), batch.events()).await {
                Ok(offsets) => self.channel.commit(batch, offsets),
                Err(error) => self.channel.fail(batch, &error),
            }
        }
        self.is_done = true;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_done {
            self.channel.interrupt_writer();
        }
    }
}
