//! The log itself: a bounded queue, a thread, bounded memory, and followers.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use relay_core::Timestamp;
use relay_tasks::{OnPanic, Pulse, TaskGroup, TaskName, call_blocking};
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use xxhash_rust::xxh3::xxh3_64;

use super::config::{DecisionLogConfig, DecisionLogError};
use super::files::{self, RecordFiles, Unwritten};
use super::record::{Decision, DecisionFilter, DecisionRecord, Outcome};

/// The thread that records decisions.
const RECORDER: TaskName = TaskName::new("router.decisions");

/// The decisions that a follower may lag behind before it misses some.
const FOLLOWER_CAPACITY: usize = 1_024;

/// A log of decisions. Clones are handles to the same log.
#[derive(Clone)]
pub struct DecisionLog(Arc<Inner>);

struct Inner {
    queue: Mutex<Option<Sender<(Waiting, QueuedBytes)>>>,
    max_queued_bytes: usize,
    /// The largest hash of an event id that is sampled.
    sample_limit: u64,
    state: Arc<LogState>,
    /// `None` if nothing is written to files.
    directory: Option<PathBuf>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Work that waits for the log's thread.
#[allow(
    clippy::large_enum_variant,
    reason = "most are decisions, and an allocation for each costs more than the space"
)]
enum Waiting {
    /// A decision that is to be explained and kept.
    New(Decision),
    /// A record that memory has already, for the files.
    Kept(Arc<DecisionRecord>),
}

impl Waiting {
    /// The memory that it takes while it waits.
    fn bytes(&self) -> usize {
        match self {
            Self::New(decision) => decision.bytes(),
            Self::Kept(record) => record.bytes(),
        }
    }
}

/// The state that the thread and the readers share.
struct LogState {
    records: Mutex<KeptRecords>,
    /// The number of the last record.
    number: AtomicU64,
    /// The bytes of the decisions that wait.
    queued_bytes: Arc<AtomicUsize>,
    followers: broadcast::Sender<Arc<DecisionRecord>>,
    kept: AtomicU64,
    dropped: AtomicU64,
    unsampled: AtomicU64,
    unwritten: AtomicU64,
}

impl LogState {
    /// The number of the next record. It is at least the time in microseconds, so that numbers also grow across restarts.
    fn next_number(&self, at: Timestamp) -> u64 {
        let next = |last: u64| u64::try_from(at.as_micros()).unwrap_or(0).max(last + 1);
        let last = self.number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }

    /// Keeps a record and sends it to the followers.
    fn add(&self, record: Arc<DecisionRecord>) {
        self.kept.fetch_add(1, Ordering::Relaxed);
        self.records.lock().push(Arc::clone(&record));
        // Without followers the send fails, which is fine.
        let _ = self.followers.send(record);
    }
}

/// The share of one decision in the bytes that wait. Dropping it gives them back.
struct QueuedBytes {
    all: Arc<AtomicUsize>,
    own: usize,
}

impl QueuedBytes {
    /// Takes `own` bytes, if there are no more than `max` with those of the others, or if there are no others.
    fn take(all: &Arc<AtomicUsize>, own: usize, max: usize) -> Option<Self> {
        let others = all.fetch_add(own, Ordering::Relaxed);
        let taken = Self { all: Arc::clone(all), own };
        (others == 0 || others.saturating_add(own) <= max).then_some(taken)
    }
}

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// The latest records, within bounds. Records of lost events give way last, up to half of the bounds: others come by the
/// thousand and would push them out.
struct KeptRecords {
    losses: RecordQueue,
    others: RecordQueue,
    /// The number of the latest record that gave way.
    dropped: Option<u64>,
    max_records: usize,
    max_bytes: usize,
}

/// Records in the order of their numbers, with their bytes.
#[derive(Default)]
struct RecordQueue {
    records: VecDeque<Arc<DecisionRecord>>,
    bytes: usize,
}

impl RecordQueue {
    fn push(&mut self, record: Arc<DecisionRecord>) {
        self.bytes += record.bytes();
        self.records.push_back(record);
    }

    fn pop(&mut self) -> Option<Arc<DecisionRecord>> {
        let oldest = self.records.pop_front()?;
        self.bytes -= oldest.bytes();
        Some(oldest)
    }

    fn oldest(&self) -> Option<u64> {
        self.records.front().map(|record| record.number)
    }
}

impl KeptRecords {
    fn new(max_records: usize, max_bytes: usize) -> Self {
        let (losses, others) = Default::default();
        Self { losses, others, dropped: None, max_records, max_bytes }
    }

    fn push(&mut self, record: Arc<DecisionRecord>) {
        let newest = Some(record.number);
        let queue = if record.outcome == Outcome::Lost { &mut self.losses } else { &mut self.others };
        queue.push(record);
        // The newest one stays, however large it is.
        while self.is_over() {
            let Self { losses, others, max_records, max_bytes, .. } = self;
            let losses_are_over =
                losses.records.len() > max_records.div_ceil(2) || losses.bytes > *max_bytes / 2;
            let is_loss = matches!(others.oldest(), oldest if oldest.is_none() || oldest == newest)
                || (losses_are_over && losses.oldest() != newest);
            let Some(oldest) = (if is_loss { losses.pop() } else { others.pop() }) else { return };
            self.dropped = self.dropped.max(Some(oldest.number));
        }
    }

    fn is_over(&self) -> bool {
        let records = self.losses.records.len() + self.others.records.len();
        let bytes = self.losses.bytes + self.others.bytes;
        records > self.max_records || (bytes > self.max_bytes && records > 1)
    }

    /// Returns at most `limit` records that match, the newest first.
    fn matching(&self, filter: &DecisionFilter, limit: usize) -> Vec<Arc<DecisionRecord>> {
        let matching = |queue: &RecordQueue| -> Vec<_> {
            queue.records.iter().rev().filter(|record| filter.matches(record)).take(limit).cloned().collect()
        };
        newest_first(matching(&self.losses), matching(&self.others), limit)
    }

    /// The number from which on no record is missing; `u64::MAX` when there is none.
    fn complete_from(&self) -> u64 {
        let oldest = self.losses.oldest().into_iter().chain(self.others.oldest()).min().unwrap_or(u64::MAX);
        self.dropped.map_or(oldest, |dropped| oldest.max(dropped + 1))
    }
}

/// Merges records: each once, the newest first, at most `limit`.
fn newest_first(
    mut records: Vec<Arc<DecisionRecord>>,
    more: impl IntoIterator<Item = Arc<DecisionRecord>>,
    limit: usize,
) -> Vec<Arc<DecisionRecord>> {
    records.extend(more);
    records.sort_by_key(|record| Reverse(record.number));
    records.dedup_by_key(|record| record.number);
    records.truncate(limit);
    records
}

/// The statistics of a decision log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DecisionLogStats {
    /// Decisions that were kept.
    pub kept: u64,
    /// Decisions that sampling left out.
    pub unsampled: u64,
    /// Decisions that came faster than they could be kept.
    pub dropped: u64,
    /// Decisions that could not be written to disk.
    pub unwritten: u64,
}

impl DecisionLog {
    /// Starts the log, with files in `directory` if the configuration asks for them. It begins with `losses`, the stored
    /// decisions of earlier runs, oldest first. The configuration has been validated.
    ///
    /// # Errors
    /// See [`DecisionLogError`].
    pub(crate) fn start(
        config: &DecisionLogConfig,
        directory: PathBuf,
        losses: Vec<DecisionRecord>,
        tasks: &TaskGroup,
    ) -> Result<Self, DecisionLogError> {
        let io = |source| DecisionLogError::Io { directory: directory.display().to_string(), source };
        let open = || RecordFiles::open(&directory, config.max_file_bytes, config.max_files).map_err(io);
        let files = config.disk.then(open).transpose()?;
        let last_in_files = files.as_ref().map_or(Ok(0), RecordFiles::last_number).map_err(io)?;
        let number = losses.iter().map(|record| record.number).fold(last_in_files, u64::max);
        let mut records = KeptRecords::new(config.memory_records, config.memory_bytes);
        for record in losses {
            records.push(Arc::new(record));
        }
        // All other decisions of earlier runs are in the files alone.
        records.dropped = Some(number);
        let state = Arc::new(LogState {
            records: Mutex::new(records),
            number: AtomicU64::new(number),
            queued_bytes: Arc::default(),
            followers: broadcast::Sender::new(FOLLOWER_CAPACITY),
            kept: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            unsampled: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
        });
        let (queue, waiting) = bounded(config.queue);
        let thread = {
            let mut recorder = Recorder { state: Arc::clone(&state), waiting, files };
            let work = move |pulse: &Pulse| recorder.run(pulse);
            tasks.thread(RECORDER, "relay-decisions".to_owned(), OnPanic::Restart, work).map_err(io)?
        };
        // The share of all hashes; the cast saturates at the ends.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share between 0 and 1 fits"
        )]
        let sample_limit = (config.sample * u64::MAX as f64) as u64;
        Ok(Self(Arc::new(Inner {
            queue: Mutex::new(Some(queue)),
            max_queued_bytes: config.queue_bytes,
            sample_limit,
            state,
            directory: config.disk.then_some(directory),
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Records `decision` if its event is sampled. Never waits.
    pub(crate) fn record(&self, decision: Decision) {
        let state = &self.0.state;
        if !decision.outcome.is_trouble()
            && let Some(id) = decision.event.id
            && xxh3_64(&id.as_u128().to_be_bytes()) > self.0.sample_limit
        {
            state.unsampled.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let waiting = Waiting::New(decision);
        let bytes = QueuedBytes::take(&state.queued_bytes, waiting.bytes(), self.0.max_queued_bytes);
        if !bytes.is_some_and(|bytes| self.send(waiting, bytes)) {
            state.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The record of a decision about a loss, which is to be stored before it is [added](DecisionLog::add_loss).
    pub(crate) fn record_of(&self, decision: Decision) -> Arc<DecisionRecord> {
        let number = self.0.state.next_number(decision.at);
        Arc::new(decision.into_record(number))
    }

    /// Adds a stored decision about a loss. Unlike others it is never dropped because decisions come too fast: memory has it
    /// at once. Never waits.
    pub(crate) fn add_loss(&self, record: Arc<DecisionRecord>) {
        let state = &self.0.state;
        state.add(Arc::clone(&record));
        if self.0.directory.is_some() {
            let waiting = Waiting::Kept(record);
            let bytes = QueuedBytes::take(&state.queued_bytes, waiting.bytes(), self.0.max_queued_bytes);
            if !bytes.is_some_and(|bytes| self.send(waiting, bytes)) {
                state.unwritten.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn send(&self, waiting: Waiting, bytes: QueuedBytes) -> bool {
        self.0.queue.lock().as_ref().is_some_and(|queue| queue.try_send((waiting, bytes)).is_ok())
    }

    /// Returns the newest decisions that match, at most `limit`, newest first: from memory, then from the
    /// files.
    ///
    /// # Errors
    /// [`DecisionLogError::Io`], [`DecisionLogError::Panicked`].
    pub async fn query(
        &self,
        filter: DecisionFilter,
        limit: usize,
    ) -> Result<Vec<Arc<DecisionRecord>>, DecisionLogError> {
        let (mut found, before) = {
            let records = self.0.state.records.lock();
            (records.matching(&filter, limit), records.complete_from())
        };
        let complete = found.partition_point(|record| record.number >= before);
        if let Some(directory) = self.0.directory.clone().filter(|_| complete < limit) {
            let left = limit - complete;
            let name = directory.display().to_string();
            let reading = call_blocking(move || files::read(&directory, &filter, before, left));
            let older = reading.await.map_err(DecisionLogError::Panicked)?;
            let older = older.map_err(|source| DecisionLogError::Io { directory: name, source })?;
            // A loss that memory still has is most often in the files, too.
            found = newest_first(found, older.into_iter().map(Arc::new), limit);
        }
        Ok(found)
    }

    /// Follows the decisions that match, from now on.
    pub fn follow(&self, filter: DecisionFilter) -> DecisionStream {
        DecisionStream { records: self.0.state.followers.subscribe(), filter }
    }

    /// Returns the statistics.
    pub(crate) fn stats(&self) -> DecisionLogStats {
        let LogState { kept, dropped, unsampled, unwritten, .. } = &*self.0.state;
        DecisionLogStats {
            kept: kept.load(Ordering::Relaxed),
            unsampled: unsampled.load(Ordering::Relaxed),
            dropped: dropped.load(Ordering::Relaxed),
            unwritten: unwritten.load(Ordering::Relaxed),
        }
    }

    /// Records the waiting decisions and ends the thread. Later decisions are dropped.
    pub(crate) async fn close(&self) {
        self.0.queue.lock().take();
        let Some(thread) = self.0.thread.lock().take() else { return };
        let joined = call_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the decision log's thread panicked");
        }
    }
}

/// A stream of decisions as they are made.
pub struct DecisionStream {
    records: broadcast::Receiver<Arc<DecisionRecord>>,
    filter: DecisionFilter,
}

/// An item of a [`DecisionStream`].
#[derive(Debug, Clone)]
pub enum DecisionStreamItem {
    /// A decision.
    Decision(Arc<DecisionRecord>),
    /// The follower was too slow: this many decisions were missed, whether they match or not.
    Missed(u64),
}

impl DecisionStream {
    /// Returns the next item; `None` when the log is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<DecisionStreamItem> {
        loop {
            match self.records.recv().await {
                Ok(record) if self.filter.matches(&record) => {
                    return Some(DecisionStreamItem::Decision(record));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => return Some(DecisionStreamItem::Missed(missed)),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// The state of the log's thread.
struct Recorder {
    state: Arc<LogState>,
    waiting: Receiver<(Waiting, QueuedBytes)>,
    files: Option<RecordFiles>,
}

impl Recorder {
    /// Records decisions until the queue is closed.
    fn run(&mut self, pulse: &Pulse) {
        let Self { state, waiting, files } = self;
        while let Ok(next) = waiting.recv() {
            pulse.check();
            for (next, bytes) in std::iter::once(next).chain(waiting.try_iter().take(FOLLOWER_CAPACITY)) {
                let (record, is_new) = match next {
                    Waiting::New(decision) => {
                        let number = state.next_number(decision.at);
                        (Arc::new(decision.into_record(number)), true)
                    }
                    Waiting::Kept(record) => (record, false),
                };
                drop(bytes);
                if let Some(Err(unwritten)) = files.as_mut().map(|files| files.write(&record)) {
                    count_unwritten(state, &unwritten);
                }
                if is_new {
                    state.add(record);
                }
            }
            if let Some(Err(unwritten)) = files.as_mut().map(RecordFiles::flush) {
                count_unwritten(state, &unwritten);
            }
        }
    }
}

fn count_unwritten(state: &LogState, unwritten: &Unwritten) {
    let Unwritten { records, error } = unwritten;
    if state.unwritten.fetch_add(*records, Ordering::Relaxed) == 0 {
        tracing::error!(%error, "decisions cannot be written to disk and are kept in memory only");
    }
}
