//! [`Connection`]: the state machine of one connection. Its shard polls it when its socket or one of its operations has woken
//! it.
//!
//! It reads its socket, publishes its pushes, and writes the replies. While a topic catches up, it also writes the events of
//! the topic's document.
//!
//! Each part has its own state. The [`Link`] writes to the socket, and the [`Reader`] decodes the bytes that arrive. The
//! [`MessageHandler`] acts on the messages, and [`Closing`] ends the connection. An idle connection holds no buffer and no task.
//!
//! Four rules hold:
//! - The reply to a join is written before any event of its topic.
//! - Replies are in the order of the requests, except those to heartbeats, joins, and commands that have to wait.
//! - Drafts of one connection reach the sink in the order of its pushes, for each publish is polled once immediately.
//! - Publishes are polled even while the socket is full, so that a slow client holds no permit of any queue.

mod client;
mod closing;
mod deferred;
mod end;
mod held_memory;
mod link;
mod message_handler;
mod pending;
mod reader;
mod reply;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use relay_core::{ConnectionId, DocumentId, ErrorCode, Monotonic};

use self::client::Client;
use self::closing::Closing;
use self::end::End;
use self::held_memory::{HeldBytes, HeldMemory};
use self::link::Link;
use self::message_handler::MessageHandler;
use self::reader::Reader;
use crate::close::CloseReason;
use crate::config::WsConfig;
use crate::connection_limiter::ConnectionPermit;
use crate::document_stream::DocumentStream;
use crate::frame_batch::FrameBatch;
use crate::frame_writer::FrameWriter;
use crate::framing::Deflater;
use crate::room::{BatchWrite, RoomId};
use crate::schedule::{TURN_WORK, work_of};
use crate::shard_context::{ShardContext, ShardDeps};
use crate::shard_queue::{NewConnection, ShardWakeup};
use crate::stats::{ConnectionStats, Member};

/// The most messages that are read, and items that are written, before the other direction has its turn.
const MAX_ITEMS: usize = 32;
/// The bytes that are read of large messages before the other direction has its turn.
const MAX_READ_BYTES: usize = 128 * 1024;

/// The state of one connection.
pub(crate) struct Connection {
    link: Link,
    reader: Reader,
    handler: MessageHandler,
    /// The moment at which the connection ends since the server stops.
    drain_at: Option<Monotonic>,
    /// The time after which the client is to connect again, until it is told.
    restart_notice: Option<Duration>,
    /// Set once the connection is being closed.
    closing: Option<Closing>,
    memory: HeldMemory,
    wakeup: Arc<ShardWakeup>,
    _permit: ConnectionPermit,
}

impl Connection {
    pub(crate) fn new(new: NewConnection, deps: Arc<ShardDeps>, wakeup: Arc<ShardWakeup>) -> Self {
        let NewConnection { socket, identity, protocol, deflate, permit, memory } = new;
        let now = deps.parts.clock.monotonic();
        Self {
            link: Link::new(socket, deflate),
            reader: Reader::new(deps.config.max_frame_bytes, deflate.is_some(), now),
            memory: HeldMemory::new(&memory),
            handler: MessageHandler::new(protocol, Client::new(identity, memory, deps)),
            drain_at: None,
            restart_notice: None,
            closing: None,
            wakeup,
            _permit: permit,
        }
    }

    /// Reads, acts and writes as much as is possible at present. Ready when the connection has ended. `scratch` is the buffer
    /// for the socket's bytes.
    pub(crate) fn poll(&mut self, shard: &mut ShardContext<'_>, scratch: &mut [u8]) -> Poll<()> {
        self.wakeup.clear();
        let waker = Waker::from(Arc::clone(&self.wakeup));
        let cx = &mut Context::from_waker(&waker);
        if self.closing.is_none() {
            let polled = self.run_io(shard, scratch, cx).and_then(|()| self.check_deadlines(shard));
            let end = match polled.and_then(|()| self.reserve_memory(shard)) {
                Ok(()) => return Poll::Pending,
                Err(end) => end,
            };
            tracing::debug!(connection = %self.id(), ?end, "the connection ends");
            // The closing handshake follows. The client is in no room from here on.
            self.handler.end(end.leave_reason(), shard);
            self.closing = Closing::begin(end, shard);
            if self.closing.is_some_and(|closing| !closing.awaits_close()) {
                self.reader.discard();
            }
        }
        let polled = match &self.closing {
            Some(closing) => closing.poll(&mut self.link, &mut self.reader, shard, scratch, cx),
            None => Poll::Ready(()),
        };
        // Most is given back; the rest is the close message and a part of one message.
        let _ = self.memory.reserve(self.held_bytes());
        polled
    }

    /// Writes a batch of a room. With compression, `deflater` compresses it.
    pub(crate) fn write_batch(
        &mut self,
        batch: &mut FrameBatch,
        deflater: &mut Deflater,
        deps: &ShardDeps,
        now: Monotonic,
    ) -> BatchWrite {
        let waker = Waker::from(Arc::clone(&self.wakeup));
        self.link.write_batch(batch, deflater, deps, now, &waker)
    }

    /// Queues the connection for a turn.
    pub(crate) fn requeue(&self) {
        self.wakeup.requeue();
    }

    /// Lets the topic that waits for `room` catch up and enter. This is work of the room, and no turn: nothing else is written
    /// or read.
    pub(crate) fn rejoin(&mut self, room: RoomId, shard: &mut ShardContext<'_>) {
        if self.link.queued_bytes() > 0 || self.closing.is_some() || self.is_draining(shard.now) {
            return;
        }
        let waker = Waker::from(Arc::clone(&self.wakeup));
        let cx = &mut Context::from_waker(&waker);
        let max_bytes = shard.deps.config.write_buffer_bytes;
        let mut items = 0;
        while items < MAX_ITEMS
            && self.unsent_bytes(shard) < max_bytes
            && self.handler.send_rejoin(room, &mut self.link, shard, cx)
        {
            items += 1;
        }
        if items > 0 {
            // An error, a full socket and further items are matters of the connection's own turn.
            let _ = self.link.flush(shard, cx);
            self.requeue();
        }
    }

    /// Replaces the room of the topic in `room` by a stream of its own.
    pub(crate) fn left_room(&mut self, room: RoomId, stream: DocumentStream) {
        self.handler.left_room(room, stream);
    }

    /// Ends the join whose topic is in `room`. The room has ended for `reason`.
    pub(crate) fn room_ended(&mut self, room: RoomId, reason: ErrorCode, shard: &mut ShardContext<'_>) {
        self.handler.room_ended(room, reason, &mut self.link, shard);
    }

    /// Leaves all topics.
    pub(crate) fn leave_all_rooms(&mut self, shard: &mut ShardContext<'_>) {
        self.handler.leave_all_rooms(shard);
    }

    /// Lets the connection ask its client, on every topic, to connect again after `return_after`, since the server stops. From
    /// the moment `at` the connection reads no more. It answers the earlier pushes, and closes. All this is work of its turns.
    pub(crate) fn begin_draining(&mut self, at: Monotonic, return_after: Duration) {
        (self.drain_at, self.restart_notice) = (Some(at), Some(return_after));
        self.requeue();
    }

    /// The work of the connection so far, in both directions; see [`crate::schedule`].
    pub(crate) fn work(&self) -> u64 {
        let messages = self.reader.messages_in() + self.link.messages_out();
        let bytes = self.link.bytes_in() + self.link.bytes_out() + self.handler.deferred_bytes();
        work_of(messages, bytes)
    }

    /// The moment at which the connection must be polled even without a wake-up.
    pub(crate) fn deadline(&self, config: &WsConfig) -> Monotonic {
        if let Some(closing) = &self.closing {
            return closing.deadline;
        }
        let stale_at = self.reader.stale_at(config);
        let others = [self.link.stalled_at(config), self.reader.message_due_at(config), self.drain_at];
        others.into_iter().flatten().fold(stale_at, Monotonic::min)
    }

    /// True while the socket takes no bytes.
    pub(crate) fn is_stalled(&self) -> bool {
        self.link.is_stalled()
    }

    /// The id of the connection.
    pub(crate) fn id(&self) -> ConnectionId {
        self.handler.identity().connection
    }

    /// The connection as a member of `document`; `None` when it has not joined it.
    pub(crate) fn member_of(&self, document: &DocumentId) -> Option<Member> {
        self.handler.documents().find(|joined| *joined == document)?;
        let identity = self.handler.identity();
        Some(Member { connection: identity.connection, user: identity.user.clone() })
    }

    /// The numbers of the connection. `shard` is the index of its shard.
    pub(crate) fn stats(&self, shard: usize) -> ConnectionStats {
        let identity = self.handler.identity();
        ConnectionStats {
            connection: identity.connection,
            user: identity.user.clone(),
            shard,
            documents: self.handler.documents().cloned().collect(),
            messages_in: self.reader.messages_in(),
            messages_out: self.link.messages_out(),
            bytes_in: self.link.bytes_in(),
            bytes_out: self.link.bytes_out(),
            bytes_waiting: self.link.queued_bytes() as u64,
            slow: self.link.slow(),
        }
    }

    /// Moves the messages in `writer` into the queue, and wakes the connection to write them.
    pub(crate) fn queue_unflushed(&mut self, writer: &mut FrameWriter) {
        if !writer.is_empty() {
            self.link.queue_unflushed(writer);
            Waker::from(Arc::clone(&self.wakeup)).wake();
        }
    }

    /// Writes and reads in turns until nothing is left to do, or until the connection's turn ends. It ends with a write, so that
    /// replies do not wait for the next turn.
    fn run_io(
        &mut self,
        shard: &mut ShardContext<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        let begun = self.work();
        if let Some(return_after) = self.restart_notice.take() {
            self.handler.send_restart_notices(return_after, &mut self.link, shard);
        }
        loop {
            let is_draining = self.is_draining(shard.now);
            if is_draining {
                self.handler.stop_pending(&mut self.link, shard);
            }
            let replied = self.handler.poll_pending(&mut self.link, shard, cx);
            let wrote = self.write(shard, cx)?;
            if is_draining && !self.handler.has_pending() && self.unsent_bytes(shard) == 0 {
                return Err(End::Close(CloseReason::Restart));
            }
            if self.work() - begun >= TURN_WORK {
                self.wakeup.requeue();
                return Ok(());
            }
            let read = self.read(shard, scratch, cx)?;
            if !replied && !wrote && !read {
                return Ok(());
            }
        }
    }

    /// Writes the replies, then the items of topics that catch up. Returns true when anything was written.
    fn write(&mut self, shard: &mut ShardContext<'_>, cx: &mut Context<'_>) -> Result<bool, End> {
        let wrote_replies = !shard.writer.is_empty();
        if self.link.flush(shard, cx)?.is_pending() {
            return Ok(false);
        }
        let max_bytes = shard.deps.config.write_buffer_bytes;
        let mut items = 0;
        while items < MAX_ITEMS
            && self.unsent_bytes(shard) < max_bytes
            && !self.is_draining(shard.now)
            && self.handler.send_catch_up(&mut self.link, shard, cx)
        {
            items += 1;
        }
        if items > 0 {
            // A socket that is full wakes the connection later.
            let _ = self.link.flush(shard, cx)?;
        }
        Ok(wrote_replies || items > 0)
    }

    /// Reads messages and acts on them. Returns true when there were any.
    fn read(
        &mut self,
        shard: &mut ShardContext<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<bool, End> {
        if self.handler.handle_deferred(&mut self.link, shard, cx) {
            // It may be as much work as a turn.
            return Ok(true);
        }
        let (mut count, mut bytes) = (0, 0);
        while count < MAX_ITEMS && bytes < MAX_READ_BYTES {
            if !self.may_read(shard) {
                // While reads are paused, the client cannot be found silent.
                self.reader.reset_idle(shard.now);
                break;
            }
            let mut input: &mut [u8] = &mut [];
            if !self.reader.has_carry_over() {
                match self.link.poll_read(cx, scratch) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0) | Err(_)) => return Err(End::Lost),
                    Poll::Ready(Ok(length)) => {
                        shard.deps.counters.bytes_in.add(length as u64);
                        bytes += length;
                        input = &mut scratch[..length];
                    }
                }
            }
            while let Some(message) = self.reader.next(&mut input, shard)? {
                count += 1;
                self.handler.handle(message, &mut self.link, shard, cx)?;
                if count >= MAX_ITEMS || !self.may_read(shard) {
                    break;
                }
            }
            self.reader.keep(input);
        }
        self.reader.note_partial(shard.now);
        Ok(count > 0 || bytes >= MAX_READ_BYTES)
    }

    /// True when there is space for the replies and operations of another message.
    fn may_read(&self, shard: &ShardContext<'_>) -> bool {
        !self.is_draining(shard.now)
            && self.unsent_bytes(shard) < shard.deps.config.write_buffer_bytes
            && self.handler.has_capacity(&shard.deps.config)
    }

    /// The bytes that the socket has not taken yet.
    fn unsent_bytes(&self, shard: &ShardContext<'_>) -> usize {
        self.link.queued_bytes() + shard.writer.len()
    }

    fn is_draining(&self, now: Monotonic) -> bool {
        self.drain_at.is_some_and(|at| now >= at)
    }

    /// Checks the deadlines. Returns the end of a connection that is stalled or stale.
    fn check_deadlines(&self, shard: &ShardContext<'_>) -> Result<(), End> {
        let config = &shard.deps.config;
        if self.link.stalled_at(config).is_some_and(|at| shard.now >= at) {
            return Err(End::Close(CloseReason::TooSlow));
        }
        if shard.now >= self.reader.stale_at(config) && self.may_read(shard) {
            return Err(End::Close(CloseReason::Stale));
        }
        if self.reader.message_due_at(config).is_some_and(|at| shard.now >= at) && self.may_read(shard) {
            return Err(End::Close(CloseReason::SlowMessage));
        }
        Ok(())
    }

    fn held_bytes(&self) -> HeldBytes {
        HeldBytes {
            messages: self.reader.held_bytes(),
            requests: self.handler.pending_bytes(),
            outgoing: self.link.owned_bytes(),
        }
    }

    /// Reserves the memory that the connection holds. Returns the end of a connection whose share is used up, and of one that
    /// does not read while the memory for all is used up.
    fn reserve_memory(&mut self, shard: &ShardContext<'_>) -> Result<(), End> {
        if let Err(error) = self.memory.reserve(self.held_bytes()) {
            tracing::debug!(connection = %self.id(), %error, "a connection holds too much");
            return Err(End::Close(CloseReason::TooMuchMemory));
        }
        if self.is_stalled() && shard.deps.parts.memory.total().is_over() {
            return Err(End::Close(CloseReason::TooSlow));
        }
        Ok(())
    }
}
