//! One connection: a single task that reads its socket, publishes its pushes, and writes what its documents give.
//!
//! There is no queue between a document and a socket. The task polls the documents' streams only when the socket has
//! taken what it was given before, so a slow client falls behind in history, where catching up costs nothing, and
//! slows nobody. In the other direction the task reads only while there is room for answers.
//!
//! What must hold:
//! - An answer is written before any event of the channel that it opens.
//! - Answers come in the order of what they answer, heartbeats excepted.
//! - Drafts of one connection reach the sink in the order of its pushes: each publish is polled once, at once.
//! - Publishes are polled even while the socket is full, so that a slow client holds no place in anybody's queue.

use std::collections::VecDeque;
use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, Sink, StreamExt};
use relay_core::{
    Clock, DocumentId, Draft, EventSink, EventSource, EventStream, Opening, Start, StreamError,
    SubscribeError,
};
use relay_events::{NoticeLevel, SYSTEM_NOTICE, SystemNotice};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as RawFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::channels::{Action, ChannelRef, Channels, Delivery, Live};
use crate::close::CloseReason;
use crate::codec::{self, ClientMessage, Frame, Status};
use crate::config::WsConfig;
use crate::farewell::Farewell;
use crate::meter::Metered;
use crate::registry::{Alarm, Registry};
use crate::request::{Identity, JoinReply, Refusal};
use crate::rooms::Rooms;
use crate::stats::Counters;

/// What all connections of a server share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<WsConfig>,
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) source: Arc<dyn EventSource>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) counters: Arc<Counters>,
}

/// Messages that are read, or events that are written, before the others get their turn.
const BATCH: usize = 64;
/// Turns before the task lets other tasks run.
const TURNS: usize = 4;
/// What is read from a socket at once.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// How a connection's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// This side closes it.
    Close(CloseReason),
    /// The client closed it.
    ClosedByClient,
    /// It broke.
    Lost,
}

/// A subscription that was asked for.
struct Joined {
    channel: ChannelRef,
    reference: Option<Arc<str>>,
    document: DocumentId,
    result: Result<(Opening, Box<dyn EventStream>), SubscribeError>,
}

/// An answer that waits for its turn, so that answers come in the order of what they answer.
struct Answer {
    frame: Frame,
    /// Bytes of the payload whose publishing is over now.
    released: usize,
}

/// The socket takes nothing.
#[derive(Debug, Clone, Copy)]
struct Stall {
    since: Duration,
    written: u64,
}

pub(crate) struct Connection<S> {
    socket: WebSocketStream<Metered<S>>,
    shared: Shared,
    alarm: Arc<Alarm>,
    identity: Identity,
    channels: Channels,
    joins: FuturesUnordered<BoxFuture<'static, Joined>>,
    answers: FuturesOrdered<BoxFuture<'static, Answer>>,
    /// Bytes of the payloads that are being published.
    pending_bytes: usize,
    /// What is to be written before any event.
    outbox: VecDeque<Frame>,
    outbox_bytes: usize,
    /// A message whose turn has not come: one for a topic whose join is still being made, or a join while answers are
    /// awaited. Nothing is read until it is dealt with.
    parked: Option<Message>,
    heard_at: Duration,
    stall: Option<Stall>,
    /// The server stops: nothing is read, and what was pushed is still answered.
    draining: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) async fn new(io: S, shared: Shared, alarm: Arc<Alarm>, identity: Identity) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(shared.config.write_buffer_bytes)
            .max_message_size(Some(shared.config.max_frame_bytes))
            .max_frame_size(Some(shared.config.max_frame_bytes));
        let io = Metered::new(io, Arc::clone(&shared.counters));
        Self {
            socket: WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await,
            heard_at: shared.clock.monotonic(),
            shared,
            alarm,
            identity,
            channels: Channels::default(),
            joins: FuturesUnordered::new(),
            answers: FuturesOrdered::new(),
            pending_bytes: 0,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            parked: None,
            stall: None,
            draining: false,
        }
    }

    /// Serves the connection until it ends.
    pub(crate) async fn run(mut self) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        tracing::debug!(connection = %self.identity.connection, ?end, "connection ends");
        let counters = &self.shared.counters;
        match end {
            End::Close(reason) => counters.closed.increment(reason.code().into()),
            End::ClosedByClient => counters.closed_by_client.increment(),
            End::Lost => counters.lost.increment(),
        }
        // Nobody is in a room any more whose connection only waits for the other side to say goodbye.
        self.channels = Channels::default();
        self.joins.clear();
        self.answers.clear();
        let farewell = Farewell {
            socket: &mut self.socket,
            clock: &*self.shared.clock,
            alarm: &self.alarm,
            patience: self.shared.config.close_timeout,
        };
        match end {
            End::Close(reason) => farewell.close(reason).await,
            End::ClosedByClient => farewell.answer_close().await,
            End::Lost => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.alarm.register(cx.waker());
        if self.shared.registry.is_stopping() && !self.draining {
            self.begin_draining();
        }
        match self.turns(cx) {
            Err(end) => Poll::Ready(end),
            Ok(()) => match self.overdue() {
                Some(reason) => Poll::Ready(End::Close(reason)),
                None => Poll::Pending,
            },
        }
    }

    /// Writes and reads in turns until there is nothing left to do, or enough was done for now.
    fn turns(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..TURNS {
            let answered = self.collect_answers(cx);
            let wrote = self.write(cx)?;
            if self.draining && self.answers.is_empty() && self.outbox.is_empty() && self.stall.is_none() {
                return Err(End::Close(CloseReason::Restart));
            }
            let read = self.read(cx)?;
            if !answered && !wrote && !read {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Takes finished joins and answers into the outbox. Returns whether there were any.
    fn collect_answers(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(answer)) = self.answers.poll_next_unpin(cx) {
            self.pending_bytes -= answer.released;
            self.enqueue(answer.frame);
            any = true;
        }
        while let Poll::Ready(Some(joined)) = self.joins.poll_next_unpin(cx) {
            self.finish_join(joined);
            any = true;
        }
        any
    }

    /// Writes the outbox, then events. Returns whether anything was written.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.flush(cx)?.is_pending() {
            return Ok(false);
        }
        let mut wrote = false;
        while let Some(frame) = self.outbox.pop_front() {
            self.outbox_bytes -= frame.bytes().len();
            self.send(frame)?;
            wrote = true;
        }
        let (mut events, mut bytes) = (0, 0);
        while events < BATCH && bytes < self.shared.config.write_buffer_bytes && !self.draining {
            let Poll::Ready(delivery) = self.channels.poll_delivery(cx) else { break };
            let frame = match delivery {
                Delivery::Event(event) => {
                    self.shared.counters.deliveries.increment();
                    codec::encode_broadcast(&event)
                }
                Delivery::Ended { channel, cause } => {
                    let reason = reason_of(cause.as_ref(), &channel);
                    self.shared.counters.channel_errors.increment(reason);
                    codec::encode_error(channel.join_ref.as_deref(), &channel.topic, reason)
                }
            };
            events += 1;
            bytes += frame.bytes().len();
            self.send(frame)?;
        }
        wrote |= events > 0;
        if wrote {
            let _ = self.flush(cx)?;
        }
        Ok(wrote)
    }

    /// Hands a message to the WebSocket, which keeps what the socket does not take at once.
    fn send(&mut self, frame: Frame) -> Result<(), End> {
        self.shared.counters.messages_out.increment();
        // A raw frame, since the text is known to be UTF-8 and need not be checked for every receiver.
        let (bytes, kind) = match frame {
            Frame::Text(bytes) => (bytes, Data::Text),
            Frame::Binary(bytes) => (bytes, Data::Binary),
        };
        let message = Message::Frame(RawFrame::message(bytes, OpCode::Data(kind), true));
        Pin::new(&mut self.socket).start_send(message).map_err(|_| End::Lost)
    }

    /// Pushes what was written into the socket, and takes note of whether the socket takes it.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        let written = self.socket.get_ref().written();
        match flushed {
            Poll::Ready(Ok(())) => {
                self.stall = None;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(_)) => Err(End::Lost),
            Poll::Pending => {
                if self.stall.is_none_or(|stall| stall.written != written) {
                    self.stall = Some(Stall { since: self.shared.clock.monotonic(), written });
                }
                Ok(Poll::Pending)
            }
        }
    }

    /// Whether there is room for what another message may lead to.
    fn may_read(&self) -> bool {
        let config = &self.shared.config;
        !self.draining
            && self.parked.is_none()
            && self.answers.len() + self.joins.len() + self.outbox.len() < config.max_pending_pushes
            && self.pending_bytes < config.max_pending_push_bytes
            && self.outbox_bytes < config.write_buffer_bytes
    }

    /// Reads and deals with messages. Returns whether there were any.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut any = false;
        if let Some(parked) = self.parked.take() {
            self.receive(parked, cx)?;
            any = self.parked.is_none();
        }
        for _ in 0..BATCH {
            if !self.may_read() {
                // Who is not listened to is not silent.
                self.heard_at = self.shared.clock.monotonic();
                break;
            }
            let message = match self.socket.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => return Err(End::Lost),
                Poll::Ready(Some(Err(error))) => return Err(end_of(&error)),
                Poll::Ready(Some(Ok(message))) => message,
            };
            any = true;
            self.heard_at = self.shared.clock.monotonic();
            self.shared.counters.messages_in.increment();
            self.receive(message, cx)?;
        }
        Ok(any)
    }

    fn receive(&mut self, message: Message, cx: &mut Context<'_>) -> Result<(), End> {
        let decoded = match &message {
            Message::Text(text) => codec::decode_text(text),
            Message::Binary(bytes) => codec::decode_binary(bytes),
            Message::Close(_) => return Err(End::ClosedByClient),
            // Pings are answered by the WebSocket itself.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(()),
        };
        let decoded = decoded.map_err(|error| {
            tracing::debug!(connection = %self.identity.connection, %error, "malformed message");
            End::Close(CloseReason::Malformed)
        })?;
        // The reply to a join comes after the answers to what was sent before it.
        if decoded.event == "phx_join" && !self.answers.is_empty() {
            self.parked = Some(message);
            return Ok(());
        }
        match self.channels.receive(&decoded, &self.identity, self.shared.config.max_topics) {
            Action::Park => self.parked = Some(message),
            action => self.act(action, &decoded, cx),
        }
        Ok(())
    }

    fn act(&mut self, action: Action, message: &ClientMessage<'_>, cx: &mut Context<'_>) {
        let (join_ref, reference) = (message.join_ref.as_deref(), message.reference.as_deref());
        let ok = |topic: &str| codec::encode_reply(join_ref, reference, topic, Status::Ok, &Empty {});
        match action {
            Action::Heartbeat => {
                self.shared.counters.heartbeats.increment();
                self.enqueue(ok("phoenix"));
            }
            Action::Join { channel, document, start, replaced } => {
                if let Some(replaced) = replaced {
                    self.enqueue(codec::encode_close(replaced.join_ref.as_deref(), &replaced.topic));
                }
                let reference = reference.map(Arc::from);
                self.joins.push(self.subscribe(channel, reference, document, start));
            }
            Action::Leave { closed } => {
                self.answer(ok(&message.topic));
                if let Some(closed) = closed {
                    self.answer(codec::encode_close(closed.join_ref.as_deref(), &closed.topic));
                }
            }
            Action::Publish { channel, draft } => self.publish(channel, reference, *draft, cx),
            Action::Refuse(refusal) => {
                let refused = self.refusal(join_ref, reference, &message.topic, &refusal);
                self.answer(refused);
            }
            Action::Ignore => self.shared.counters.stale_messages.increment(),
            // Dealt with by `receive`, which still has the message.
            Action::Park => {}
        }
    }

    fn subscribe(
        &self,
        channel: ChannelRef,
        reference: Option<Arc<str>>,
        document: DocumentId,
        start: Start,
    ) -> BoxFuture<'static, Joined> {
        let source = Arc::clone(&self.shared.source);
        async move {
            let result = source.subscribe(&document, start).await;
            Joined { channel, reference, document, result }
        }
        .boxed()
    }

    fn finish_join(&mut self, joined: Joined) {
        let Joined { channel, reference, document, result } = joined;
        let (join_ref, reference) = (channel.join_ref.as_deref(), reference.as_deref());
        match result {
            Ok((opening, stream)) => {
                self.shared.counters.joins.increment();
                let Identity { user, connection, .. } = &self.identity;
                let reply = JoinReply { opening, user, connection: *connection };
                let frame = codec::encode_reply(join_ref, reference, &channel.topic, Status::Ok, &reply);
                self.enqueue(frame);
                let membership = self.shared.rooms.enter(document, &self.identity);
                self.channels.opened(&channel, Live { stream, _membership: membership });
            }
            Err(error) => {
                let refusal = Refusal::from(&error);
                if refusal.reason == "log_failed" {
                    tracing::warn!(%document, %error, "a join failed: the history cannot be read");
                }
                let frame = self.refusal(join_ref, reference, &channel.topic, &refusal);
                self.enqueue(frame);
                self.channels.failed(&channel);
            }
        }
    }

    fn publish(&mut self, channel: ChannelRef, reference: Option<&str>, draft: Draft, cx: &mut Context<'_>) {
        let (sink, counters) = (Arc::clone(&self.shared.sink), Arc::clone(&self.shared.counters));
        let reference: Option<Arc<str>> = reference.map(Arc::from);
        let released = draft.payload.len();
        let mut answer = async move {
            let result = sink.publish(draft).await;
            let ChannelRef { topic, join_ref } = &channel;
            let (join_ref, reference) = (join_ref.as_deref(), reference.as_deref());
            let frame = match result {
                Ok(receipt) => {
                    counters.pushes.increment();
                    codec::encode_reply(join_ref, reference, topic, Status::Ok, &receipt)
                }
                Err(error) => {
                    let refusal = Refusal::from(&error);
                    if refusal.reason == "log_failed" {
                        tracing::warn!(%topic, %error, "a push failed: the log did not take it");
                    }
                    counters.errors.increment(refusal.reason);
                    codec::encode_reply(join_ref, reference, topic, Status::Error, &refusal)
                }
            };
            Answer { frame, released }
        }
        .boxed();
        self.pending_bytes += released;
        // The first poll puts the draft into the sink's queue, behind those of the pushes before it.
        match answer.poll_unpin(cx) {
            Poll::Pending => self.answers.push_back(answer),
            Poll::Ready(answer) => self.answers.push_back(ready(answer).boxed()),
        }
    }

    fn refusal(
        &self,
        join_ref: Option<&str>,
        reference: Option<&str>,
        topic: &str,
        refusal: &Refusal,
    ) -> Frame {
        self.shared.counters.errors.increment(refusal.reason);
        codec::encode_reply(join_ref, reference, topic, Status::Error, refusal)
    }

    /// Sends `frame` after the answers that are still awaited.
    fn answer(&mut self, frame: Frame) {
        if self.answers.is_empty() {
            self.enqueue(frame);
        } else {
            self.answers.push_back(ready(Answer { frame, released: 0 }).boxed());
        }
    }

    fn enqueue(&mut self, frame: Frame) {
        self.outbox_bytes += frame.bytes().len();
        self.outbox.push_back(frame);
    }

    /// Tells every channel that the server stops. Pushes that came before are still answered.
    fn begin_draining(&mut self) {
        self.draining = true;
        self.parked = None;
        self.joins.clear();
        let notice = SystemNotice {
            level: NoticeLevel::Info,
            code: "reconnect".to_owned(),
            message: "the server restarts; connect again".to_owned(),
        };
        let notices: Vec<Frame> = self
            .channels
            .joined()
            .map(|channel| {
                let join_ref = channel.join_ref.as_deref();
                codec::encode_push(join_ref, &channel.topic, SYSTEM_NOTICE.as_str(), &notice)
            })
            .collect();
        for notice in notices {
            self.enqueue(notice);
        }
    }

    /// Whether a time-out is over; if not, sets the alarm for the next.
    fn overdue(&mut self) -> Option<CloseReason> {
        let (config, now) = (&self.shared.config, self.shared.clock.monotonic());
        let stale_at = self.heard_at.saturating_add(config.stale_after);
        let stalled_at = self.stall.map(|stall| stall.since.saturating_add(config.write_stall_timeout));
        if stalled_at.is_some_and(|at| now >= at) {
            return Some(CloseReason::TooSlow);
        }
        if now >= stale_at && self.may_read() {
            return Some(CloseReason::Stale);
        }
        self.alarm.set(stalled_at.map_or(stale_at, |at| at.min(stale_at)));
        None
    }
}

/// The response of replies that have nothing to say.
#[derive(serde::Serialize)]
struct Empty {}

/// What a client is told of the end of a channel. What the log says is for operators.
fn reason_of(cause: Option<&StreamError>, channel: &ChannelRef) -> &'static str {
    match cause {
        None => "closed",
        Some(error) => {
            if let StreamError::Log(error) = error {
                tracing::warn!(topic = %channel.topic, %error, "a channel ends: its history cannot be read");
            }
            error.code()
        }
    }
}

fn end_of(error: &tungstenite::Error) -> End {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    match error {
        Error::Utf8(_) => End::Close(CloseReason::NotUtf8),
        Error::Capacity(_) => End::Close(CloseReason::TooLarge),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => End::Lost,
        _ => End::Close(CloseReason::NotWebSocket),
    }
}
