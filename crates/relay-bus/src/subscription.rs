//! A reader of one document: a position in the channel's history, which goes on in the log where memory ends.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use relay_core::{
    EncodingCache, Event, EventStream, LogError, MemoryPurpose, Reservation, Seq, StreamError, StreamPosition,
};

use crate::channel::{Channel, Cursor, ReadResult};
use crate::context::ChannelContext;
use crate::filter::Filter;

/// The most events that the filter refuses in a row before other tasks get their turn.
const MAX_SKIPPED: usize = 256;
/// The most bytes that are reserved before a page is read. Then it is charged with its own size.
const PAGE_RESERVE: usize = 128 * 1024;

/// The policy for a reader that does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LagPolicy {
    /// The reader catches up from history at any distance, as long as history reaches back to it.
    #[default]
    Refill,
    /// The reader gets [`StreamError::Lagged`] when it is further behind than the limit.
    Disconnect {
        /// The most sequenced events that the reader may be behind.
        max_behind: u64,
    },
}

/// The events of one document from some start on. [`EventStream`] has the promises.
#[derive(Debug)]
pub struct Subscription {
    channel: Arc<Channel>,
    context: Arc<ChannelContext>,
    cursor: Cursor,
    ready: VecDeque<Arc<Event>>,
    page_read: PageRead,
    /// The memory of the ready events, or of the page that is being read.
    memory: Reservation,
    filter: Filter,
    on_lag: LagPolicy,
    over: bool,
}

/// A page of history that is being read from the log.
struct PageRead(Option<PageFuture>);

type PageFuture = Pin<Box<dyn Future<Output = Result<Vec<Event>, LogError>> + Send>>;

impl std::fmt::Debug for PageRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "PageRead(under way)" } else { "PageRead(none)" })
    }
}

impl Subscription {
    pub(crate) fn new(
        channel: Arc<Channel>,
        context: Arc<ChannelContext>,
        after: Seq,
        filter: Filter,
        on_lag: LagPolicy,
    ) -> Self {
        context.counters.subscribed.increment();
        let cursor = channel.new_cursor(after);
        let memory = context.memory.total().charge(MemoryPurpose::Events, 0);
        Self {
            channel,
            context,
            cursor,
            ready: VecDeque::new(),
            page_read: PageRead(None),
            memory,
            filter,
            on_lag,
            over: false,
        }
    }

    /// The next event; `None` when the bus has stopped. Cancel-safe: dropped, no event is lost.
    ///
    /// # Errors
    /// See [`StreamError`]; the subscription is over then.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>, StreamError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Makes more events ready, from memory or from the log. `None` when the bus has stopped.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(), StreamError>>> {
        if let Some(page_read) = &mut self.page_read.0 {
            let Poll::Ready(page) = page_read.as_mut().poll(cx) else { return Poll::Pending };
            self.page_read.0 = None;
            return Poll::Ready(Some(self.take_page(page)));
        }
        match self.channel.read(&mut self.cursor, &mut self.ready, cx.waker()) {
            ReadResult::Events => Poll::Ready(Some(Ok(()))),
            ReadResult::Pending => Poll::Pending,
            ReadResult::Closed => Poll::Ready(None),
            ReadResult::Failed(error) => Poll::Ready(Some(Err(error))),
            ReadResult::Behind => Poll::Ready(Some(self.fetch_page())),
        }
    }

    fn fetch_page(&mut self) -> Result<(), StreamError> {
        let Some(log) = self.context.log.clone() else { return Err(self.lagged()) };
        let (document, after) = (self.channel.document().clone(), self.cursor.seq());
        let limit = self.context.config.replay_page;
        // A reader that finds no memory for a page is told its position, and can come back to it.
        if self.memory.try_resize(limit.bytes.min(PAGE_RESERVE)).is_err() {
            return Err(self.lagged());
        }
        self.context.counters.replay_pages.increment();
        self.page_read.0 = Some(Box::pin(async move { log.read_document(&document, after, limit).await }));
        Ok(())
    }

    fn take_page(&mut self, page: Result<Vec<Event>, LogError>) -> Result<(), StreamError> {
        // From here on the events are charged as all that are ready.
        self.memory.resize(0);
        match page {
            Ok(page) if page.is_empty() => Err(self.lagged()),
            Ok(page) => {
                if let Some(last) = page.last().and_then(|event| event.seq) {
                    self.cursor.advance_to(last);
                }
                let total = self.context.memory.total();
                self.ready.extend(page.into_iter().map(|mut event| {
                    event.encodings = EncodingCache::charged_to(total.clone(), MemoryPurpose::Events);
                    Arc::new(event)
                }));
                Ok(())
            }
            Err(LogError::Trimmed { .. }) => Err(self.lagged()),
            Err(error) => Err(error.into()),
        }
    }

    fn lagged(&self) -> StreamError {
        self.context.counters.readers_lagged.increment();
        StreamError::Lagged { position: self.cursor.seq(), behind: self.behind() }
    }

    /// Takes the next event that is ready. The first time it charges those that are left, since they may wait for the caller.
    /// So an event that comes alone is never charged.
    fn pop_ready(&mut self) -> Option<Arc<Event>> {
        let event = self.ready.pop_front()?;
        if self.ready.is_empty() {
            self.memory.resize(0);
        } else if self.memory.bytes() == 0 {
            self.memory.resize(self.ready.iter().map(|event| event.approx_bytes()).sum());
            self.context.relieve_memory();
        }
        Some(event)
    }

    /// Ends the subscription. It is no reader any more, also while its owner keeps it.
    fn end(&mut self) {
        self.over = true;
        self.stand_for(0);
    }

    fn behind(&self) -> u64 {
        self.channel.head().last.since(self.cursor.seq())
    }

    fn is_too_far_behind(&self) -> bool {
        match self.on_lag {
            LagPolicy::Refill => false,
            LagPolicy::Disconnect { max_behind } => self.behind() > max_behind,
        }
    }
}

impl EventStream for Subscription {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, StreamError>>> {
        let mut skipped = 0;
        loop {
            while let Some(event) = self.pop_ready() {
                match self.context.present(event) {
                    Some(event) if self.filter.matches(&event) => return Poll::Ready(Some(Ok(event))),
                    _ => skipped += 1,
                }
            }
            if self.over {
                return Poll::Ready(None);
            }
            if skipped >= MAX_SKIPPED {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let more = if self.is_too_far_behind() {
                Poll::Ready(Some(Err(self.lagged())))
            } else {
                self.poll_more(cx)
            };
            match more {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(()))) => {}
                Poll::Ready(None) => self.end(),
                Poll::Ready(Some(Err(error))) => {
                    self.end();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn position(&self) -> Option<StreamPosition> {
        self.ready.is_empty().then(|| self.cursor.position())
    }

    fn fork(&self) -> Box<dyn EventStream> {
        Box::new(self.forked())
    }

    fn stand_for(&mut self, readers: u64) {
        self.channel.stand_for(&mut self.cursor, readers);
    }
}

impl Subscription {
    fn forked(&self) -> Self {
        self.context.counters.subscribed.increment();
        let memory = self.context.memory.total().charge(MemoryPurpose::Events, self.memory.bytes());
        Self {
            channel: Arc::clone(&self.channel),
            context: Arc::clone(&self.context),
            cursor: self.channel.fork_cursor(&self.cursor),
            ready: self.ready.clone(),
            // The fork reads the page again that the other is reading from the log.
            page_read: PageRead(None),
            memory,
            filter: self.filter.clone(),
            on_lag: self.on_lag,
            over: self.over,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.channel.release_cursor(&mut self.cursor);
    }
}
