//! The plain model of a log: vectors behind one lock. It outlives the bus in tests as the disk outlives a process,
//! and can be told to wait and to fail.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};

use super::waiting::yield_once;
use crate::event::Event;
use crate::id::DocumentId;
use crate::kind::DeliveryClass;
use crate::log::{EventLog, Head, LogError, LogStats, ReadLimit};
use crate::payload::Payload;
use crate::position::{Epoch, Offset, Seq};

/// A log that keeps everything in memory and is as durable as the value itself. Clones share their content.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    epoch: Epoch,
    state: Arc<Mutex<State>>,
    faults: Arc<Mutex<Faults>>,
}

/// The order of a test for one append.
#[derive(Debug)]
pub enum AppendFault {
    /// It fails, and keeps nothing.
    Error(LogError),
    /// It panics.
    Panic,
    /// It keeps the events, and returns other offsets than theirs.
    Offsets(fn(Vec<Offset>) -> Vec<Offset>),
}

/// The orders of a test.
#[derive(Debug, Default)]
struct Faults {
    /// The appends that succeed before every one fails; `None` without limit.
    appends_until_failure: Option<usize>,
    next_append: Option<AppendFault>,
    next_head: Option<LogError>,
    /// The failure of every read by offset.
    reads: Option<LogError>,
    /// The event that the next read by offset returns without its offset.
    omitted_offset: Option<Offset>,
    /// The failure of every call but `close`.
    every_call: Option<LogError>,
    /// The appends that may go on while others wait; `None` when none waits.
    permits: Option<usize>,
    /// True while questions for the last offset are not answered.
    last_offset_hangs: bool,
    /// The number of questions for the last offset.
    last_offset_questions: u64,
    /// The appends that wait for a permit, and the questions that hang.
    waiting: Vec<Waker>,
}

impl Faults {
    /// Returns the fault of an append that has its permit.
    fn take_append(&mut self) -> Option<AppendFault> {
        if let Some(error) = &self.every_call {
            return Some(AppendFault::Error(error.clone()));
        }
        match &mut self.appends_until_failure {
            Some(0) => {
                let source = Arc::new(std::io::Error::other("told to fail"));
                Some(AppendFault::Error(LogError::Failed { source }))
            }
            Some(left) => {
                *left -= 1;
                self.next_append.take()
            }
            None => self.next_append.take(),
        }
    }

    /// Takes the offset off its event, if the page has that event.
    fn take_offset(&mut self, page: &mut [Event]) {
        let at_fault = |event: &&mut Event| event.offset.is_some() && event.offset == self.omitted_offset;
        if let Some(event) = page.iter_mut().find(at_fault) {
            event.offset = None;
            self.omitted_offset = None;
        }
    }

    fn take_head(&mut self) -> Result<(), LogError> {
        match self.every_call.clone().or_else(|| self.next_head.take()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Every event ever appended, in the order of offsets; `None` where it was trimmed.
    events: Vec<Option<Event>>,
    documents: HashMap<DocumentId, Document>,
    stats: LogStats,
    closed: bool,
    hold: Option<Offset>,
    /// The tasks that wait for another event, by the numbers of their waits.
    waiting: HashMap<u64, Waker>,
    next_wait: u64,
}

impl State {
    fn last_offset(&self) -> Offset {
        Offset::new(self.events.len() as u64)
    }

    fn wake(&mut self) {
        self.waiting.drain().for_each(|(_, waker)| waker.wake());
    }
}

/// A wait for another event. Dropped, it leaves no waker behind.
struct Wait<'a> {
    state: &'a Mutex<State>,
    number: u64,
}

impl<'a> Wait<'a> {
    fn new(state: &'a Mutex<State>) -> Self {
        let mut locked = state.lock();
        let number = locked.next_wait;
        locked.next_wait += 1;
        Self { state, number }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.state.lock().waiting.remove(&self.number);
    }
}

#[derive(Debug, Clone, Default)]
struct Document {
    /// Indexes into `State::events`; the sequenced event of seq `n` is at `n - 1`.
    places: Vec<usize>,
    trimmed_through: u64,
}

impl Document {
    fn head(&self, epoch: Epoch) -> Head {
        Head { epoch, first: Seq::new(self.trimmed_through + 1), last: Seq::new(self.places.len() as u64) }
    }
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self { epoch: Epoch::random(), state: Arc::default(), faults: Arc::default() }
    }

    /// A log with this one's content, open whether this one is or not: what a log on disk is to a new process.
    pub fn reopen(&self) -> Self {
        let state = self.state.lock();
        let (events, documents) = (state.events.clone(), state.documents.clone());
        let state = State { events, documents, ..State::default() };
        Self { epoch: self.epoch, state: Arc::new(Mutex::new(state)), faults: Arc::default() }
    }

    /// Drops the oldest events of each document that has more than `max_events`, up to the first one that is held.
    pub fn apply_retention(&self, max_events: usize) {
        let mut state = self.state.lock();
        let State { events, documents, hold, stats, .. } = &mut *state;
        for document in documents.values_mut() {
            while let Ok(trimmed) = usize::try_from(document.trimmed_through)
                && document.places.len() - trimmed > max_events
                && let Some(&place) = document.places.get(trimmed)
                && hold.is_none_or(|hold| (place as u64) < hold.get())
            {
                events[place] = None;
                document.trimmed_through += 1;
                stats.dropped_events += 1;
            }
        }
    }

    /// The end of the present hold.
    pub fn held_after(&self) -> Option<Offset> {
        self.state.lock().hold
    }

    /// Lets `count` more appends succeed and then fails every one, as a full disk would. With [`usize::MAX`] none fails.
    pub fn fail_after(&self, count: usize) {
        self.faults.lock().appends_until_failure = (count < usize::MAX).then_some(count);
    }

    /// Makes the next append go wrong.
    pub fn fail_next_append(&self, fault: AppendFault) {
        self.faults.lock().next_append = Some(fault);
    }

    /// Makes the next question for a head fail with `error`.
    pub fn fail_next_head(&self, error: LogError) {
        self.faults.lock().next_head = Some(error);
    }

    /// Makes every read by offset fail with `error`; with `None` none fails.
    pub fn fail_reads(&self, error: Option<LogError>) {
        self.faults.lock().reads = error;
    }

    /// Makes the next read by offset that reaches the event at `offset` return it without its offset, against the contract.
    pub fn omit_offset_once(&self, offset: Offset) {
        self.faults.lock().omitted_offset = Some(offset);
    }

    /// Makes every call but that to close the log fail with `error`.
    pub fn fail_always(&self, error: LogError) {
        self.faults.lock().every_call = Some(error);
    }

    /// Makes questions for the last offset wait while `hangs` is true.
    pub fn hang_last_offset(&self, hangs: bool) {
        let mut faults = self.faults.lock();
        faults.last_offset_hangs = hangs;
        faults.waiting.drain(..).for_each(Waker::wake);
    }

    /// The number of questions for the last offset so far, those that wait included.
    pub fn last_offset_questions(&self) -> u64 {
        self.faults.lock().last_offset_questions
    }

    /// Makes appends wait until they are [let through](Self::let_through). They begin, and the answers to questions for a
    /// head come, a turn later.
    pub fn hold(&self) {
        self.faults.lock().permits = Some(0);
    }

    /// Lets `appends` more appends through.
    pub fn let_through(&self, appends: usize) {
        let mut faults = self.faults.lock();
        faults.permits = faults.permits.map(|permits| permits + appends);
        faults.waiting.drain(..).for_each(Waker::wake);
    }

    /// Waits for the permit of an append, and returns the fault of the append.
    async fn pass_gate(&self) -> Option<AppendFault> {
        poll_fn(|cx| {
            let mut faults = self.faults.lock();
            match &mut faults.permits {
                Some(0) => {
                    faults.waiting.push(cx.waker().clone());
                    return Poll::Pending;
                }
                Some(permits) => *permits -= 1,
                None => {}
            }
            Poll::Ready(faults.take_append())
        })
        .await
    }

    /// Waits for one turn of the other tasks while appends are held.
    async fn wait_a_turn(&self) {
        let is_held = self.faults.lock().permits.is_some();
        if is_held {
            yield_once().await;
        }
    }

    fn check_every_call(&self) -> Result<(), LogError> {
        self.faults.lock().every_call.clone().map_or(Ok(()), Err)
    }

    /// Locks the state of a log that is not closed.
    fn lock_open(&self) -> Result<MutexGuard<'_, State>, LogError> {
        let state = self.state.lock();
        if state.closed { Err(LogError::Closed) } else { Ok(state) }
    }

    fn keep(&self, document: &DocumentId, events: &[Event]) -> Result<Vec<Offset>, LogError> {
        let mut state = self.lock_open()?;
        let state = &mut *state;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let entry = state.documents.entry(document.clone()).or_default();
        let head = entry.head(self.epoch);
        let mut expected = head.last;
        for event in events {
            let fits = match event.kind.class() {
                DeliveryClass::Sequenced => {
                    expected = expected.next();
                    event.seq == Some(expected)
                }
                DeliveryClass::Logged => event.seq.is_none(),
                DeliveryClass::Ephemeral => false,
            };
            if !fits || event.epoch != self.epoch || event.document != *document {
                let seq = event.seq.unwrap_or_default();
                return Err(LogError::Conflict { document: document.clone(), head, epoch: event.epoch, seq });
            }
        }
        if events.iter().any(|event| matches!(event.payload, Payload::Absent(_))) {
            return Err(LogError::Unreadable { detail: "its payload is absent".to_owned() });
        }
        let mut offsets = Vec::with_capacity(events.len());
        for event in events {
            let mut event = event.clone();
            let offset = Offset::new(state.events.len() as u64 + 1);
            event.offset = Some(offset);
            offsets.push(offset);
            if event.seq.is_some() {
                entry.places.push(state.events.len());
            }
            state.events.push(Some(event));
        }
        state.stats.appends += 1;
        state.stats.appended_events += offsets.len() as u64;
        state.wake();
        Ok(offsets)
    }

    /// Makes the event of `seq` in `document` unreadable, as a damaged file would.
    pub fn damage(&self, document: &DocumentId, seq: Seq) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let places = state.documents.get(document).map_or(&[][..], |entry| &entry.places);
        let place = usize::try_from(seq.get()).ok().and_then(|seq| places.get(seq.checked_sub(1)?)).copied();
        if let Some(event) = place.and_then(|place| state.events[place].as_mut()) {
            *event = Event::lost(document.clone(), event.epoch, event.seq, event.offset, event.time);
        }
    }

    fn page<'a>(events: impl Iterator<Item = &'a Event>, limit: ReadLimit) -> Vec<Event> {
        let mut page = Vec::new();
        let mut bytes = 0;
        for event in events {
            bytes += event.approx_bytes();
            if !page.is_empty() && (page.len() >= limit.events || bytes > limit.bytes) {
                break;
            }
            page.push(event.clone());
        }
        page
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    async fn head(&self, document: &DocumentId) -> Result<Head, LogError> {
        self.wait_a_turn().await;
        self.faults.lock().take_head()?;
        let state = self.lock_open()?;
        Ok(state.documents.get(document).map_or(Head::empty(self.epoch), |d| d.head(self.epoch)))
    }

    async fn append(&self, document: &DocumentId, events: &[Event]) -> Result<Vec<Offset>, LogError> {
        self.wait_a_turn().await;
        match self.pass_gate().await {
            None => self.keep(document, events),
            Some(AppendFault::Error(error)) => Err(error),
            Some(AppendFault::Panic) => panic!("told to panic"),
            Some(AppendFault::Offsets(lie)) => self.keep(document, events).map(lie),
        }
    }

    async fn read_document(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, LogError> {
        self.check_every_call()?;
        let state = self.lock_open()?;
        let Some(entry) = state.documents.get(document) else { return Ok(Vec::new()) };
        if after.get() < entry.trimmed_through {
            let first = Seq::new(entry.trimmed_through + 1);
            return Err(LogError::Trimmed { document: document.clone(), first });
        }
        let skip = usize::try_from(after.get()).unwrap_or(usize::MAX);
        let events = entry.places.iter().skip(skip).filter_map(|&place| state.events[place].as_ref());
        Ok(Self::page(events, limit))
    }

    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError> {
        self.check_every_call()?;
        if let Some(error) = &self.faults.lock().reads {
            return Err(error.clone());
        }
        let state = self.lock_open()?;
        let skip = usize::try_from(after.get()).unwrap_or(usize::MAX);
        let mut page = Self::page(state.events.iter().skip(skip).flatten(), limit);
        self.faults.lock().take_offset(&mut page);
        Ok(page)
    }

    async fn last_offset(&self) -> Result<Offset, LogError> {
        self.faults.lock().last_offset_questions += 1;
        poll_fn(|cx| {
            let mut faults = self.faults.lock();
            if faults.last_offset_hangs {
                faults.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        self.check_every_call()?;
        Ok(self.lock_open()?.last_offset())
    }

    async fn wait_past(&self, offset: Offset) -> Result<Offset, LogError> {
        self.check_every_call()?;
        let wait = Wait::new(&self.state);
        poll_fn(|cx| {
            let mut state = self.lock_open()?;
            let last = state.last_offset();
            if last > offset {
                return Poll::Ready(Ok(last));
            }
            state.waiting.insert(wait.number, cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError> {
        self.check_every_call()?;
        let mut state = self.lock_open()?;
        let state = &mut *state;
        let Some(entry) = state.documents.get_mut(document) else { return Ok(Head::empty(self.epoch)) };
        let through = through.get().min(entry.places.len() as u64);
        for seq in entry.trimmed_through..through {
            if let Some(&place) = usize::try_from(seq).ok().and_then(|i| entry.places.get(i)) {
                state.events[place] = None;
            }
        }
        entry.trimmed_through = entry.trimmed_through.max(through);
        Ok(entry.head(self.epoch))
    }

    fn hold(&self, after: Option<Offset>) {
        self.state.lock().hold = after;
    }

    fn offsets_are_contiguous(&self) -> bool {
        true
    }

    async fn close(&self) -> Result<(), LogError> {
        let mut state = self.state.lock();
        state.closed = true;
        state.wake();
        Ok(())
    }

    fn stats(&self) -> LogStats {
        self.state.lock().stats
    }
}
