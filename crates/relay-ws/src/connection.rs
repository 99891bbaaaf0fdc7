//! One connection: a state machine that its shard polls when its socket or something it waits for has woken up. It reads
//! its socket, publishes its pushes, and writes the answers, and, while a channel catches up, what its document gives.
//!
//! Idle, it holds no buffer and no task: what it needs while something is under way is in [`Busy`], which comes and goes.
//!
//! What must hold:
//! - An answer is written before any event of the channel that it opens.
//! - Answers come in the order of what they answer, save for heartbeats, joins and requests that have to wait.
//! - Drafts of one connection reach the sink in the order of its pushes: each publish is polled once, at once.
//! - Publishes are polled even while the socket is full, so that a slow client holds no place in anybody's queue.

mod closing;
mod pending;
mod reading;

use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use relay_core::{
    Activity, ConnectionId, DocumentId, ErrorCode, LeaveReason, Membership, Monotonic, StreamError,
};

use self::closing::Closing;
use self::pending::Pending;
use crate::admission::Permit;
use crate::channels::{Channel, ChannelRef, Channels, Delivery};
use crate::close::CloseReason;
use crate::codec::{self, Frame};
use crate::document_stream::StreamItem;
use crate::frame_writer::FrameWriter;
use crate::framing::{Decoder, DeflateParams};
use crate::handshake::Protocol;
use crate::request::Identity;
use crate::room::RoomId;
use crate::send_queue::SendQueue;
use crate::shard_context::{ShardContext, ShardDeps};
use crate::shard_queue::{NewConnection, ShardWakeup};
use crate::socket::Socket;
use crate::stats::{ConnectionStats, Member};
use crate::timer_wheel::Tick;

/// Messages that are read, or items that are written, before the others get their turn.
pub(crate) const BATCH: usize = 64;
/// Turns before other connections get theirs.
const MAX_IO_ROUNDS: usize = 4;

/// How a connection's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// This side closes it.
    Close(CloseReason),
    /// The client closed it, with this code, and on purpose or not.
    ClosedByClient(Option<u16>, LeaveReason),
    /// It broke.
    Lost,
}

/// The socket takes nothing.
#[derive(Debug, Clone, Copy)]
struct Stall {
    since: Monotonic,
    written: u64,
}

/// Whether the server wants the connection to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    /// At this moment.
    At(Monotonic),
}

pub(crate) struct Connection {
    socket: Socket,
    decoder: Decoder,
    send_queue: SendQueue,
    /// What both sides agreed on about compression.
    deflate: Option<DeflateParams>,
    protocol: Protocol,
    identity: Identity,
    channels: Channels,
    pending: Option<Box<Pending>>,
    last_received_at: Monotonic,
    stall: Option<Stall>,
    drain: Drain,
    /// Set once it is being closed.
    closing: Option<Closing>,
    reason: LeaveReason,
    messages_in: u64,
    messages_out: u64,
    slow: u64,
    deps: Arc<ShardDeps>,
    wakeup: Arc<ShardWakeup>,
    /// When the shard's wheel will look at it.
    pub(crate) scheduled: Tick,
    _permit: Permit,
}

impl Connection {
    pub(crate) fn new(new_connection: NewConnection, deps: Arc<ShardDeps>, wakeup: Arc<ShardWakeup>) -> Self {
        let NewConnection { socket, identity, protocol, deflate, permit } = new_connection;
        Self {
            socket,
            decoder: Decoder::new(deps.config.max_frame_bytes, deflate.is_some()),
            send_queue: SendQueue::default(),
            deflate,
            protocol,
            identity,
            channels: Channels::default(),
            pending: None,
            last_received_at: deps.parts.clock.monotonic(),
            stall: None,
            drain: Drain::No,
            closing: None,
            reason: LeaveReason::Lost,
            messages_in: 0,
            messages_out: 0,
            slow: 0,
            deps,
            wakeup,
            scheduled: Tick::MAX,
            _permit: permit,
        }
    }

    /// Does what there is to do. Returns whether the connection goes on.
    ///
    /// `scratch` is where its socket is read into.
    pub(crate) fn poll(&mut self, shard: &mut ShardContext<'_>, scratch: &mut [u8]) -> bool {
        self.wakeup.clear();
        let waker = Waker::from(Arc::clone(&self.wakeup));
        let cx = &mut Context::from_waker(&waker);
        if self.closing.is_none() {
            let end = match self.run_io(shard, scratch, cx) {
                Err(end) => end,
                Ok(()) => match self.overdue(shard.now) {
                    Some(reason) => End::Close(reason),
                    None => return true,
                },
            };
            if !self.end(end, shard) {
                return false;
            }
        }
        self.poll_closing(shard, scratch, cx)
    }

    /// Writes and reads in turns until there is nothing left to do, or enough was done for now.
    fn run_io(
        &mut self,
        shard: &mut ShardContext<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        for _ in 0..MAX_IO_ROUNDS {
            if self.is_draining(shard.now)
                && let Some(pending) = &mut self.pending
            {
                pending.stop();
            }
            let answered = self.poll_replies(shard, cx);
            let wrote = self.write(shard, cx)?;
            let is_quiet = self.pending.is_none() && self.send_queue.is_empty();
            if self.is_draining(shard.now) && is_quiet {
                return Err(End::Close(CloseReason::Restart));
            }
            let read = self.read(shard, scratch, cx)?;
            if !answered && !wrote && !read {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Writes the answers, then what channels that catch up are given. Returns whether anything was written.
    fn write(&mut self, shard: &mut ShardContext<'_>, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut wrote = !shard.writer.is_empty();
        if self.flush(shard.writer, cx)?.is_pending() {
            return Ok(false);
        }
        let mut items = 0;
        let max_bytes = self.deps.config.write_buffer_bytes;
        while items < BATCH
            && shard.writer.len() + self.send_queue.bytes() < max_bytes
            && !self.is_draining(shard.now)
        {
            let Some((index, item)) = self.channels.poll_catch_up(cx, shard.rooms, shard.key) else { break };
            items += 1;
            match item {
                StreamItem::Event(event) => {
                    self.deps.counters.deliveries.increment();
                    self.send(&codec::encode_broadcast(&event), shard.writer);
                }
                StreamItem::Presence(change) => {
                    let frame =
                        codec::encode_presence(&self.channels.at(index).channel_ref.document, &change);
                    self.send(&frame, shard.writer);
                }
                StreamItem::Ended(cause) => self.channel_ended(index, cause.as_ref(), shard),
            }
        }
        wrote |= items > 0;
        if items > 0 {
            let _ = self.flush(shard.writer, cx)?;
        }
        Ok(wrote)
    }

    /// Puts a message behind those that wait to be written.
    fn send(&mut self, frame: &Frame, writer: &mut FrameWriter) {
        self.messages_out += 1;
        self.deps.counters.messages_out.increment();
        writer.write(frame, self.deflate, &mut self.send_queue);
    }

    /// Writes what waits, and takes note of whether the socket takes it.
    fn flush(&mut self, writer: &mut FrameWriter, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        let before = self.socket.bytes_out;
        let flushed = writer.flush(&mut self.socket, &mut self.send_queue, cx);
        self.deps.counters.bytes_out.add(self.socket.bytes_out - before);
        match flushed {
            Poll::Ready(Ok(())) => {
                self.stall = None;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(_)) => Err(End::Lost),
            Poll::Pending => {
                self.record_stall();
                Ok(Poll::Pending)
            }
        }
    }

    fn record_stall(&mut self) {
        let written = self.socket.bytes_out;
        if self.stall.is_none_or(|stall| stall.written != written) {
            self.stall = Some(Stall { since: self.deps.parts.clock.monotonic(), written });
        }
    }

    /// Gives the connection what everybody in `room` gets. One whose socket does not take all of it leaves the room.
    pub(crate) fn deliver(&mut self, room: RoomId, shard: &mut ShardContext<'_>) {
        let batch = shard.rooms.get_mut(room).and_then(|room| room.batch(self.deflate, shard.writer));
        let (Some((messages, bytes)), None) = (batch, &self.closing) else { return };
        let waker = Waker::from(Arc::clone(&self.wakeup));
        let cx = &mut Context::from_waker(&waker);
        let counters = Arc::clone(&self.deps.counters);
        self.messages_out += messages;
        counters.messages_out.add(messages);
        counters.deliveries.add(messages);
        let mut taken = 0;
        if self.send_queue.is_empty() {
            while taken < bytes.len() {
                match self.socket.poll_write(cx, &[IoSlice::new(&bytes[taken..])]) {
                    Poll::Ready(Ok(count)) => taken += count,
                    // Polled, the connection will find out for itself.
                    Poll::Ready(Err(_)) => {
                        waker.wake_by_ref();
                        return;
                    }
                    Poll::Pending => break,
                }
            }
            counters.bytes_out.add(taken as u64);
        }
        if taken == bytes.len() {
            // What a layer such as TLS has buffered has to be pushed on.
            if !matches!(self.socket.poll_flush(cx), Poll::Ready(Ok(()))) {
                waker.wake_by_ref();
            }
            return;
        }
        self.send_queue.push(bytes.slice(taken..));
        self.record_stall();
        self.slow += 1;
        counters.slow.increment();
        if let Some(stream) = shard.rooms.detach(room, shard.key) {
            self.channels.left_room(room, stream);
        }
        // So that its time-out is set.
        waker.wake_by_ref();
    }

    /// Ends the channel in `room`, which is over.
    pub(crate) fn room_ended(
        &mut self,
        room: RoomId,
        cause: Option<&StreamError>,
        shard: &mut ShardContext<'_>,
    ) {
        if let Some(index) = self.channels.in_room(room) {
            self.channel_ended(index, cause, shard);
            shard.writer.flush_to(&mut self.send_queue);
        }
        Waker::from(Arc::clone(&self.wakeup)).wake();
    }

    fn channel_ended(&mut self, index: usize, cause: Option<&StreamError>, shard: &mut ShardContext<'_>) {
        let channel = self.channels.remove(index);
        let reason = error_code(cause, &channel.channel_ref);
        self.deps.counters.channel_errors.increment(reason.as_str());
        let frame = codec::encode_error(
            channel.channel_ref.join_ref.as_deref(),
            &channel.channel_ref.topic(),
            reason.as_str(),
        );
        self.send(&frame, shard.writer);
        self.close_channel(&channel, LeaveReason::Lost, shard);
    }

    /// What has to be done when a channel is no more.
    fn close_channel(&self, channel: &Channel, reason: LeaveReason, shard: &mut ShardContext<'_>) {
        if let Delivery::Room(room) = channel.delivery {
            shard.rooms.leave(room, shard.key);
        }
        self.release_membership(channel, reason);
    }

    /// Gives up what a channel holds outside of its shard.
    fn release_membership(&self, channel: &Channel, reason: LeaveReason) {
        if matches!(channel.delivery, Delivery::Joining) {
            return;
        }
        self.deps.membership_counts.decrement(&channel.channel_ref.document);
        if let (true, Some(presence)) = (channel.presence, &self.deps.parts.presence) {
            presence.leave(&self.membership(&channel.channel_ref.document), reason);
        }
    }

    fn membership(&self, document: &DocumentId) -> Membership {
        let Identity { user, connection, .. } = &self.identity;
        Membership { document: document.clone(), user: user.clone(), connection: *connection }
    }

    /// Tells whoever knows of participants that this one is there.
    fn touch(&self, channel: &Channel, activity: Activity) {
        if let (true, Some(presence)) = (channel.presence, &self.deps.parts.presence) {
            presence.touch(&self.membership(&channel.channel_ref.document), activity);
        }
    }

    fn is_draining(&self, now: Monotonic) -> bool {
        matches!(self.drain, Drain::At(at) if now >= at)
    }

    /// Whether a time-out is over.
    fn overdue(&self, now: Monotonic) -> Option<CloseReason> {
        let config = &self.deps.config;
        let stalled_at = self.stall.map(|stall| stall.since + config.write_stall_timeout);
        if stalled_at.is_some_and(|at| now >= at) {
            return Some(CloseReason::TooSlow);
        }
        let is_stale = now >= self.last_received_at + config.stale_after;
        (is_stale && self.may_read(now)).then_some(CloseReason::Stale)
    }

    /// When it has to be polled even if nothing wakes it.
    pub(crate) fn deadline(&self) -> Monotonic {
        let config = &self.deps.config;
        if let Some(closing) = &self.closing {
            return closing.deadline;
        }
        let mut deadline = self.last_received_at + config.stale_after;
        if let Some(stall) = self.stall {
            deadline = deadline.min(stall.since + config.write_stall_timeout);
        }
        if let Drain::At(at) = self.drain {
            deadline = deadline.min(at);
        }
        deadline
    }

    /// Its id.
    pub(crate) fn id(&self) -> ConnectionId {
        self.identity.connection
    }

    /// What it is in `document`, if it has joined that.
    pub(crate) fn member_of(&self, document: &DocumentId) -> Option<Member> {
        self.channels.joined().find(|channel| channel.channel_ref.document == *document)?;
        let Identity { user, connection, .. } = &self.identity;
        Some(Member { connection: *connection, user: user.clone() })
    }

    /// Its numbers. `shard` is the one it lives on.
    pub(crate) fn stats(&self, shard: usize) -> ConnectionStats {
        ConnectionStats {
            connection: self.identity.connection,
            user: self.identity.user.clone(),
            shard,
            documents: self.channels.joined().map(|channel| channel.channel_ref.document.clone()).collect(),
            messages_in: self.messages_in,
            messages_out: self.messages_out,
            bytes_in: self.socket.bytes_in,
            bytes_out: self.socket.bytes_out,
            bytes_waiting: self.send_queue.bytes() as u64,
            slow: self.slow,
        }
    }
}

/// Wherever it ends, by a panic too, nobody is left in a document.
impl Drop for Connection {
    fn drop(&mut self) {
        for channel in self.channels.drain() {
            self.release_membership(&channel, self.reason);
        }
    }
}

/// What a client is told of the end of a channel. What the log says is for operators.
fn error_code(cause: Option<&StreamError>, channel: &ChannelRef) -> ErrorCode {
    match cause {
        None => ErrorCode::Closed,
        Some(error) => {
            if let StreamError::Log(error) = error {
                tracing::warn!(document = %channel.document, %error, "a channel ends: its history cannot be read");
            }
            error.code()
        }
    }
}
