//! The helpers that the tests share: drafts, buses, and a log that can be held shut.

use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use parking_lot::Mutex;
use relay_bus::{Bus, BusConfig, Subscription};
use relay_core::testing::MemoryLog;
use relay_core::{
    Actor, CheckedDraft, DocumentId, Draft, Event, EventLog, Head, LogError, LogStats, ManualClock, Offset,
    Payload, ReadLimit, Seq, StreamError, UserId,
};
use tokio::sync::Semaphore;

pub(crate) fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap()
}

/// A durable draft that carries a number.
pub(crate) fn note(document: &DocumentId, number: u64) -> CheckedDraft {
    let payload = Payload::json(&number).unwrap();
    checked(Draft::new(document.clone(), relay_events::kind("x-note").unwrap(), payload))
}

pub(crate) fn checked(draft: Draft) -> CheckedDraft {
    relay_events::check(draft).unwrap()
}

/// An ephemeral draft that carries a number.
pub(crate) fn laser(document: &DocumentId, user: &str, number: u64) -> CheckedDraft {
    checked(Draft::new(
        document.clone(),
        relay_events::kind("x-ephemeral-laser").unwrap(),
        Payload::json(&number).unwrap(),
    ))
    .actor(Actor::User(UserId::new(user).unwrap()))
}

pub(crate) fn number(event: &Event) -> u64 {
    payload_number(&event.payload)
}

pub(crate) fn draft_number(draft: &Draft) -> u64 {
    payload_number(&draft.payload)
}

fn payload_number(payload: &Payload) -> u64 {
    match payload {
        Payload::Json(text) => text.as_str().parse().unwrap(),
        Payload::Binary(_) => panic!("{payload:?} carries no number"),
    }
}

pub(crate) fn seq(event: &Event) -> u64 {
    event.seq.unwrap().get()
}

/// The default configuration with some fields set.
pub(crate) fn config(set: impl FnOnce(&mut BusConfig)) -> BusConfig {
    let mut config = BusConfig::default();
    set(&mut config);
    config
}

pub(crate) fn in_memory(config: BusConfig) -> Bus {
    Bus::new(config, None, Arc::new(ManualClock::new())).unwrap()
}

pub(crate) fn over(log: impl EventLog, config: BusConfig) -> Bus {
    Bus::new(config, Some(Arc::new(log)), Arc::new(ManualClock::new())).unwrap()
}

/// Receives everything that is there without waiting.
pub(crate) fn available(events: &mut Subscription) -> Vec<Result<Arc<Event>, StreamError>> {
    std::iter::from_fn(|| events.next().now_or_never().flatten()).collect()
}

/// Receives everything that is there without waiting, and returns its seqs.
pub(crate) fn available_seqs(events: &mut Subscription) -> Vec<u64> {
    available(events).into_iter().map(|event| seq(&event.unwrap())).collect()
}

/// Lets every other task run until it waits for something.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Returns the output of `future`, which must come as soon as every other task waits. A test that would wait for ever fails
/// instead.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..50 {
        if let Some(output) = future.as_mut().now_or_never() {
            return output;
        }
        tokio::task::yield_now().await;
    }
    panic!("the future still waits, as every other task does");
}

/// A log whose appends wait until they are let through.
#[derive(Clone)]
pub(crate) struct GatedLog {
    pub(crate) log: MemoryLog,
    gate: Arc<Semaphore>,
}

impl GatedLog {
    pub(crate) fn shut() -> Self {
        Self { log: MemoryLog::new(), gate: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) fn let_through(&self, appends: usize) {
        self.gate.add_permits(appends);
    }
}

#[async_trait]
impl EventLog for GatedLog {
    async fn head(&self, document: &DocumentId) -> Result<Head, LogError> {
        tokio::task::yield_now().await;
        self.log.head(document).await
    }

    async fn append(&self, document: &DocumentId, events: &[Event]) -> Result<Vec<Offset>, LogError> {
        self.gate.acquire().await.unwrap().forget();
        self.log.append(document, events).await
    }

    async fn read_document(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, LogError> {
        self.log.read_document(document, after, limit).await
    }

    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError> {
        self.log.read(after, limit).await
    }

    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError> {
        self.log.trim(document, through).await
    }

    async fn last_offset(&self) -> Result<Offset, LogError> {
        self.log.last_offset().await
    }

    async fn wait_past(&self, offset: Offset) -> Result<Offset, LogError> {
        self.log.wait_past(offset).await
    }

    async fn close(&self) -> Result<(), LogError> {
        self.log.close().await
    }

    fn stats(&self) -> LogStats {
        self.log.stats()
    }
}

/// A log whose next call can be made to fail.
#[derive(Clone)]
pub(crate) struct BrokenLog {
    log: MemoryLog,
    append_fault: Arc<Mutex<Option<Fault>>>,
    head_fault: Arc<Mutex<Option<LogError>>>,
}

enum Fault {
    Error(LogError),
    Panic,
    Offsets(fn(Vec<Offset>) -> Vec<Offset>),
}

impl BrokenLog {
    pub(crate) fn new() -> Self {
        Self { log: MemoryLog::new(), append_fault: Arc::default(), head_fault: Arc::default() }
    }

    /// Makes the next append fail with `error`. It keeps nothing.
    pub(crate) fn fail_next(&self, error: fn() -> LogError) {
        *self.append_fault.lock() = Some(Fault::Error(error()));
    }

    /// Makes the next append panic.
    pub(crate) fn panic_next(&self) {
        *self.append_fault.lock() = Some(Fault::Panic);
    }

    /// Makes the next append return other offsets than those of the events that it keeps.
    pub(crate) fn lie_next(&self, lie: fn(Vec<Offset>) -> Vec<Offset>) {
        *self.append_fault.lock() = Some(Fault::Offsets(lie));
    }

    /// Makes the next question for a head fail with `error`.
    pub(crate) fn fail_head(&self, error: fn() -> LogError) {
        *self.head_fault.lock() = Some(error());
    }
}

#[async_trait]
impl EventLog for BrokenLog {
    async fn head(&self, document: &DocumentId) -> Result<Head, LogError> {
        if let Some(error) = self.head_fault.lock().take() {
            return Err(error);
        }
        self.log.head(document).await
    }

    async fn append(&self, document: &DocumentId, events: &[Event]) -> Result<Vec<Offset>, LogError> {
        let fault = self.append_fault.lock().take();
        match fault {
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Panic) => panic!("told to panic"),
            Some(Fault::Offsets(lie)) => self.log.append(document, events).await.map(lie),
            None => self.log.append(document, events).await,
        }
    }

    async fn read_document(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, LogError> {
        self.log.read_document(document, after, limit).await
    }

    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError> {
        self.log.read(after, limit).await
    }

    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError> {
        self.log.trim(document, through).await
    }

    async fn last_offset(&self) -> Result<Offset, LogError> {
        self.log.last_offset().await
    }

    async fn wait_past(&self, offset: Offset) -> Result<Offset, LogError> {
        self.log.wait_past(offset).await
    }

    async fn close(&self) -> Result<(), LogError> {
        self.log.close().await
    }

    fn stats(&self) -> LogStats {
        self.log.stats()
    }
}
