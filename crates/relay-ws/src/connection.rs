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

mod busy;
mod ending;
mod reading;

use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use relay_core::{
    Activity, Clock, Commands, ConnectionId, DocumentId, ErrorCode, EventSink, EventSource, LeaveReason,
    Membership, Monotonic, Presence, StreamError, UserId,
};
use relay_metrics::LatencyWindow;
use serde::Serialize;

use self::busy::Busy;
use self::ending::Farewell;
use crate::admission::Permit;
use crate::channels::{Channel, ChannelRef, Channels, Place};
use crate::close::CloseReason;
use crate::codec::{self, Frame};
use crate::config::WsConfig;
use crate::directory::{Directory, Member};
use crate::feed::Item;
use crate::framing::{Agreement, Decoder};
use crate::output::Output;
use crate::pen::Pen;
use crate::request::Identity;
use crate::room::{RoomId, Rooms};
use crate::shard::ShardWakeup;
use crate::socket::Socket;
use crate::stats::Counters;
use crate::wheel::Tick;

/// What connections serve.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) source: Arc<dyn EventSource>,
    /// `None` where members are not told of each other.
    pub(crate) presence: Option<Arc<dyn Presence>>,
    /// What participants may ask for besides publishing.
    pub(crate) commands: Arc<Commands>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// What all connections of a shard share.
pub(crate) struct Shared {
    pub(crate) config: Arc<WsConfig>,
    pub(crate) backend: Backend,
    pub(crate) directory: Arc<Directory>,
    pub(crate) counters: Arc<Counters>,
    /// How long events take from their room's waking to the last member's socket, over all shards.
    pub(crate) broadcasts: Arc<LatencyWindow>,
}

/// What a shard lends a connection that it polls.
pub(crate) struct Env<'a> {
    pub(crate) rooms: &'a mut Rooms,
    pub(crate) pen: &'a mut Pen,
    /// The monotonic time.
    pub(crate) now: Monotonic,
    /// The connection's key in its shard.
    pub(crate) key: usize,
}

/// Messages that are read, or items that are written, before the others get their turn.
pub(crate) const BATCH: usize = 64;
/// Turns before other connections get theirs.
const TURNS: usize = 4;

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

/// What the bytes on the socket mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Phoenix Channels.
    Phoenix,
    /// Every message comes back as it is: for trying out what is between client and server.
    Echo,
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

/// Numbers of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// The connection.
    pub connection: ConnectionId,
    /// Its user.
    pub user: UserId,
    /// The shard that it lives on, from 0.
    pub shard: usize,
    /// The documents that it has joined.
    pub documents: Vec<DocumentId>,
    /// Messages that came in.
    pub messages_in: u64,
    /// Messages that went out.
    pub messages_out: u64,
    /// Bytes that came in, framing included.
    pub bytes_in: u64,
    /// Bytes that its socket has taken, framing included.
    pub bytes_out: u64,
    /// Bytes that wait for its socket.
    pub bytes_waiting: u64,
    /// How often its socket was full when an event came.
    pub slow: u64,
}

pub(crate) struct Connection {
    socket: Socket,
    decoder: Decoder,
    output: Output,
    /// What both sides agreed on about compression.
    compressed: Option<Agreement>,
    protocol: Protocol,
    identity: Identity,
    channels: Channels,
    busy: Option<Box<Busy>>,
    heard_at: Monotonic,
    stall: Option<Stall>,
    drain: Drain,
    /// Set once it is being closed.
    farewell: Option<Farewell>,
    reason: LeaveReason,
    messages_in: u64,
    messages_out: u64,
    slow: u64,
    shared: Arc<Shared>,
    wakeup: Arc<ShardWakeup>,
    /// When the shard's wheel will look at it.
    pub(crate) scheduled: Tick,
    _permit: Permit,
}

/// What a connection begins with.
pub(crate) struct Newcomer {
    pub(crate) socket: Socket,
    pub(crate) identity: Identity,
    pub(crate) protocol: Protocol,
    pub(crate) compressed: Option<Agreement>,
    pub(crate) permit: Permit,
}

impl Connection {
    pub(crate) fn new(newcomer: Newcomer, shared: Arc<Shared>, wakeup: Arc<ShardWakeup>) -> Self {
        let Newcomer { socket, identity, protocol, compressed, permit } = newcomer;
        Self {
            socket,
            decoder: Decoder::new(shared.config.max_frame_bytes, compressed.is_some()),
            output: Output::default(),
            compressed,
            protocol,
            identity,
            channels: Channels::default(),
            busy: None,
            heard_at: shared.backend.clock.monotonic(),
            stall: None,
            drain: Drain::No,
            farewell: None,
            reason: LeaveReason::Lost,
            messages_in: 0,
            messages_out: 0,
            slow: 0,
            shared,
            wakeup,
            scheduled: Tick::MAX,
            _permit: permit,
        }
    }

    /// Does what there is to do. Returns whether the connection goes on.
    ///
    /// `scratch` is where its socket is read into.
    pub(crate) fn poll(&mut self, env: &mut Env<'_>, scratch: &mut [u8]) -> bool {
        self.wakeup.begin();
        let waker = Waker::from(Arc::clone(&self.wakeup));
        let cx = &mut Context::from_waker(&waker);
        if self.farewell.is_none() {
            let end = match self.turns(env, scratch, cx) {
                Err(end) => end,
                Ok(()) => match self.overdue(env.now) {
                    Some(reason) => End::Close(reason),
                    None => return true,
                },
            };
            if !self.end(end, env) {
                return false;
            }
        }
        self.poll_farewell(env, scratch, cx)
    }

    /// Writes and reads in turns until there is nothing left to do, or enough was done for now.
    fn turns(&mut self, env: &mut Env<'_>, scratch: &mut [u8], cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..TURNS {
            if self.is_draining(env.now)
                && let Some(busy) = &mut self.busy
            {
                busy.stop();
            }
            let answered = self.collect_answers(env, cx);
            let wrote = self.write(env, cx)?;
            let is_quiet = self.busy.is_none() && self.output.is_empty();
            if self.is_draining(env.now) && is_quiet {
                return Err(End::Close(CloseReason::Restart));
            }
            let read = self.read(env, scratch, cx)?;
            if !answered && !wrote && !read {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Writes the answers, then what channels that catch up are given. Returns whether anything was written.
    fn write(&mut self, env: &mut Env<'_>, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut wrote = !env.pen.is_empty();
        if self.flush(env.pen, cx)?.is_pending() {
            return Ok(false);
        }
        let mut items = 0;
        let max_bytes = self.shared.config.write_buffer_bytes;
        while items < BATCH && env.pen.len() + self.output.bytes() < max_bytes && !self.is_draining(env.now) {
            let Some((index, item)) = self.channels.poll_own(cx, env.rooms, env.key) else { break };
            items += 1;
            match item {
                Item::Event(event) => {
                    self.shared.counters.deliveries.increment();
                    self.send(&codec::encode_broadcast(&event), env.pen);
                }
                Item::Presence(change) => {
                    let frame = codec::encode_presence(&self.channels.at(index).name.document, &change);
                    self.send(&frame, env.pen);
                }
                Item::Ended(cause) => self.channel_ended(index, cause.as_ref(), env),
            }
        }
        wrote |= items > 0;
        if items > 0 {
            let _ = self.flush(env.pen, cx)?;
        }
        Ok(wrote)
    }

    /// Puts a message behind those that wait to be written.
    fn send(&mut self, frame: &Frame, pen: &mut Pen) {
        self.messages_out += 1;
        self.shared.counters.messages_out.increment();
        pen.write(frame, self.compressed, &mut self.output);
    }

    /// Writes what waits, and takes note of whether the socket takes it.
    fn flush(&mut self, pen: &mut Pen, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        let before = self.socket.bytes_out;
        let flushed = pen.flush(&mut self.socket, &mut self.output, cx);
        self.shared.counters.bytes_out.add(self.socket.bytes_out - before);
        match flushed {
            Poll::Ready(Ok(())) => {
                self.stall = None;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(_)) => Err(End::Lost),
            Poll::Pending => {
                self.note_stall();
                Ok(Poll::Pending)
            }
        }
    }

    fn note_stall(&mut self) {
        let written = self.socket.bytes_out;
        if self.stall.is_none_or(|stall| stall.written != written) {
            self.stall = Some(Stall { since: self.shared.backend.clock.monotonic(), written });
        }
    }

    /// Gives the connection what everybody in `room` gets. One whose socket does not take all of it leaves the room.
    pub(crate) fn deliver(&mut self, room: RoomId, env: &mut Env<'_>) {
        let batch = env.rooms.get_mut(room).and_then(|room| room.batch(self.compressed, env.pen));
        let (Some((messages, bytes)), None) = (batch, &self.farewell) else { return };
        let waker = Waker::from(Arc::clone(&self.wakeup));
        let cx = &mut Context::from_waker(&waker);
        let counters = Arc::clone(&self.shared.counters);
        self.messages_out += messages;
        counters.messages_out.add(messages);
        counters.deliveries.add(messages);
        let mut taken = 0;
        if self.output.is_empty() {
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
        self.output.push(bytes.slice(taken..));
        self.note_stall();
        self.slow += 1;
        counters.slow.increment();
        if let Some(feed) = env.rooms.detach(room, env.key) {
            self.channels.detached(room, feed);
        }
        // So that its time-out is set.
        waker.wake_by_ref();
    }

    /// Ends the channel in `room`, which is over.
    pub(crate) fn room_over(&mut self, room: RoomId, cause: Option<&StreamError>, env: &mut Env<'_>) {
        if let Some(index) = self.channels.in_room(room) {
            self.channel_ended(index, cause, env);
            env.pen.put_into(&mut self.output);
        }
        Waker::from(Arc::clone(&self.wakeup)).wake();
    }

    fn channel_ended(&mut self, index: usize, cause: Option<&StreamError>, env: &mut Env<'_>) {
        let channel = self.channels.remove(index);
        let reason = reason_of(cause, &channel.name);
        self.shared.counters.channel_errors.increment(reason.as_str());
        let frame =
            codec::encode_error(channel.name.join_ref.as_deref(), &channel.name.topic(), reason.as_str());
        self.send(&frame, env.pen);
        self.close_channel(&channel, LeaveReason::Lost, env);
    }

    /// What has to be done when a channel is no more.
    fn close_channel(&self, channel: &Channel, reason: LeaveReason, env: &mut Env<'_>) {
        if let Place::Room(room) = channel.place {
            env.rooms.leave(room, env.key);
        }
        self.give_up(channel, reason);
    }

    /// Gives up what a channel holds outside of its shard.
    fn give_up(&self, channel: &Channel, reason: LeaveReason) {
        if matches!(channel.place, Place::Joining) {
            return;
        }
        self.shared.directory.leave(&channel.name.document);
        if let (true, Some(presence)) = (channel.presence, &self.shared.backend.presence) {
            presence.leave(&self.membership(&channel.name.document), reason);
        }
    }

    fn membership(&self, document: &DocumentId) -> Membership {
        let Identity { user, connection, .. } = &self.identity;
        Membership { document: document.clone(), user: user.clone(), connection: *connection }
    }

    /// Tells whoever knows of participants that this one is there.
    fn touch(&self, channel: &Channel, activity: Activity) {
        if let (true, Some(presence)) = (channel.presence, &self.shared.backend.presence) {
            presence.touch(&self.membership(&channel.name.document), activity);
        }
    }

    fn is_draining(&self, now: Monotonic) -> bool {
        matches!(self.drain, Drain::At(at) if now >= at)
    }

    /// Whether a time-out is over.
    fn overdue(&self, now: Monotonic) -> Option<CloseReason> {
        let config = &self.shared.config;
        let stalled_at = self.stall.map(|stall| stall.since + config.write_stall_timeout);
        if stalled_at.is_some_and(|at| now >= at) {
            return Some(CloseReason::TooSlow);
        }
        let is_stale = now >= self.heard_at + config.stale_after;
        (is_stale && self.may_read(now)).then_some(CloseReason::Stale)
    }

    /// When it has to be polled even if nothing wakes it.
    pub(crate) fn deadline(&self) -> Monotonic {
        let config = &self.shared.config;
        if let Some(farewell) = &self.farewell {
            return farewell.give_up_at;
        }
        let mut deadline = self.heard_at + config.stale_after;
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
        self.channels.joined().find(|channel| channel.name.document == *document)?;
        let Identity { user, connection, .. } = &self.identity;
        Some(Member { connection: *connection, user: user.clone() })
    }

    /// Its numbers. `shard` is the one it lives on.
    pub(crate) fn stats(&self, shard: usize) -> ConnectionStats {
        ConnectionStats {
            connection: self.identity.connection,
            user: self.identity.user.clone(),
            shard,
            documents: self.channels.joined().map(|channel| channel.name.document.clone()).collect(),
            messages_in: self.messages_in,
            messages_out: self.messages_out,
            bytes_in: self.socket.bytes_in,
            bytes_out: self.socket.bytes_out,
            bytes_waiting: self.output.bytes() as u64,
            slow: self.slow,
        }
    }
}

/// Wherever it ends, by a panic too, nobody is left in a document.
impl Drop for Connection {
    fn drop(&mut self) {
        for channel in self.channels.drain() {
            self.give_up(&channel, self.reason);
        }
    }
}

/// What a client is told of the end of a channel. What the log says is for operators.
fn reason_of(cause: Option<&StreamError>, channel: &ChannelRef) -> ErrorCode {
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
