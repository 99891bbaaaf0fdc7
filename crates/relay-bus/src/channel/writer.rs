//! The writer: the task that appends a channel's drafts to the log, batch by batch, and ends when none waits.

use std::sync::Arc;

use relay_core::{DocumentId, Event, EventId, EventLog, LogError, Offset, PublishError, ReadLimit, Seq};
use relay_tasks::TaskName;

use super::Channel;
use super::batch::{AppendBatch, PendingDraft};
use crate::config::BusConfig;
use crate::recent_ids::MissingIds;

/// The task that appends a channel's drafts to the log.
const WRITER: TaskName = TaskName::new("bus.writer");
/// The task that answers drafts whose events are in the log alone.
const DUPLICATES: TaskName = TaskName::new("bus.duplicates");

/// The writer of one channel. Dropped before its end, it ends the channel, so that no publisher waits for it.
struct Writer {
    channel: Arc<Channel>,
    log: Arc<dyn EventLog>,
    /// The batch that the log is to take.
    batch: Option<AppendBatch>,
    is_done: bool,
}

impl Writer {
    fn new(channel: Arc<Channel>, log: Arc<dyn EventLog>) -> Self {
        Self { channel, log, batch: None, is_done: false }
    }

    async fn run(mut self) {
        while let Some(mut batch) = self.channel.next_batch() {
            self.answer_earlier(batch.take_earlier());
            if let Some(range) = batch.missing_ids().filter(|_| batch.events().is_empty()) {
                self.load_ids(range).await;
            }
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

    /// Reads the ids of `range` from the log. Without them the first draft of the queue is refused, since it may be one that
    /// was sent before.
    async fn load_ids(&self, range: MissingIds) {
        let config = &self.channel.context().config;
        match load_ids(self.log.as_ref(), self.channel.document(), range, config).await {
            Ok(ids) => self.channel.add_ids(ids, range),
            Err(error) => self.channel.refuse_first(&error),
        }
    }

    /// Answers drafts whose events are in the log alone. A task of its own reads the events, so that no other draft waits.
    fn answer_earlier(&self, earlier: Vec<(PendingDraft, Seq)>) {
        if earlier.is_empty() {
            return;
        }
        let (channel, log) = (Arc::clone(&self.channel), Arc::clone(&self.log));
        let context = self.channel.context();
        let answering = async move {
            for (pending, seq) in earlier {
                let limit = ReadLimit { events: 1, bytes: 1 };
                match log.read_document(channel.document(), Seq::new(seq.get() - 1), limit).await {
                    Ok(events) => match events.first() {
                        Some(event) => channel.answer_duplicate(pending, event),
                        None => pending.sender.send(Err(PublishError::Closed)),
                    },
                    // Retention has dropped the event meanwhile, and its id with it.
                    Err(LogError::Trimmed { first, .. }) => {
                        channel.forget_ids_before(first);
                        channel.enqueue_again(pending);
                    }
                    Err(error) => pending.sender.send(Err(error.into())),
                }
            }
        };
        // Dropped before its end, it answers the publishers that are left.
        drop(context.writers.spawn_on(DUPLICATES, answering, &context.runtime));
    }
}

/// Reads the ids of the events of `range`, the latest first, as many as the configuration allows.
async fn load_ids(
    log: &dyn EventLog,
    document: &DocumentId,
    range: MissingIds,
    config: &BusConfig,
) -> Result<Vec<(EventId, Seq)>, LogError> {
    let limit = config.replay_page;
    let (mut ids, mut bytes) = (Vec::new(), 0);
    let mut through = range.through;
    while through > range.after && bytes < config.idempotency_bytes {
        // The log reads forwards. A page of this many events may take several reads.
        let start = Seq::new(through.get().saturating_sub(limit.events as u64)).max(range.after);
        let mut after = start;
        while after < through {
            match log.read_document(document, after, limit).await {
                Ok(events) => {
                    let Some(last) = events.last().and_then(|event| event.seq) else { return Ok(ids) };
                    after = last;
                    bytes += events.iter().map(Event::approx_bytes).sum::<usize>();
                    ids.extend(events.iter().filter_map(|event| Some((event.id, event.seq?))));
                }
                // Earlier events are no longer kept.
                Err(LogError::Trimmed { first, .. }) if first > through => return Ok(ids),
                Err(LogError::Trimmed { first, .. }) => after = Seq::new(first.get() - 1),
                Err(error) => return Err(error),
            }
        }
        through = start;
    }
    Ok(ids)
}

/// Starts a writer for the queue of `channel`, which has none.
pub(super) fn start(channel: &Arc<Channel>, log: &Arc<dyn EventLog>) {
    let context = channel.context();
    let writer = Writer::new(Arc::clone(channel), Arc::clone(log));
    // However it ends, the writer answers the publishers.
    drop(context.writers.spawn_on(WRITER, writer.run(), &context.runtime));
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
