//! What a connection does with what its client sends.

use std::task::{Context, Poll};

use bytes::Bytes;
use relay_core::{Activity, LeaveReason, Monotonic};

use super::pending::{Deferred, Empty, reply};
use super::{BATCH, Connection, End};
use crate::channels::Action;
use crate::close::CloseReason;
use crate::codec::{self, ClientMessage, DecodeError, Frame};
use crate::error_reply::ErrorReply;
use crate::framing::{Decoder, FramingError, Message, OpCode};
use crate::handshake::Protocol;
use crate::shard_context::ShardContext;

impl Connection {
    /// Whether there is room for what another message may lead to.
    pub(super) fn may_read(&self, now: Monotonic) -> bool {
        let config = &self.deps.config;
        if self.is_draining(now) || self.send_queue.bytes() >= config.write_buffer_bytes {
            return false;
        }
        self.pending.as_ref().is_none_or(|pending| {
            let (count, bytes) = pending.load();
            pending.deferred.is_none()
                && count < config.max_pending_pushes
                && bytes < config.max_pending_push_bytes
        })
    }

    /// Reads and deals with messages. Returns whether there were any.
    pub(super) fn read(
        &mut self,
        shard: &mut ShardContext<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<bool, End> {
        let mut any = false;
        if let Some(deferred) = self.pending.as_mut().and_then(|pending| pending.deferred.take()) {
            match &deferred {
                Deferred::Text(text) => self.receive(codec::decode_text(text), Raw::Text(text), shard, cx)?,
                Deferred::Binary(bytes) => {
                    self.receive(codec::decode_binary(bytes), Raw::Binary(bytes), shard, cx)?;
                }
            }
            any = self.pending.as_ref().is_none_or(|pending| pending.deferred.is_none());
        }
        // Taken out, so that what it gives can be dealt with.
        let mut decoder = std::mem::take(&mut self.decoder);
        let read = self.read_messages(&mut decoder, shard, scratch, cx);
        self.decoder = decoder;
        Ok(read? || any)
    }

    fn read_messages(
        &mut self,
        decoder: &mut Decoder,
        shard: &mut ShardContext<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<bool, End> {
        let mut count = 0;
        while count < BATCH {
            if !self.may_read(shard.now) {
                // Who is not listened to is not silent.
                self.last_received_at = shard.now;
                break;
            }
            let mut input: &mut [u8] = &mut [];
            if !decoder.has_carry_over() {
                match self.socket.poll_read(cx, scratch) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0) | Err(_)) => return Err(End::Lost),
                    Poll::Ready(Ok(length)) => {
                        self.deps.counters.bytes_in.add(length as u64);
                        input = &mut scratch[..length];
                    }
                }
            }
            while let Some(message) = decoder.next(&mut input).map_err(|error| end_of(&error))? {
                count += 1;
                self.last_received_at = shard.now;
                self.messages_in += 1;
                self.deps.counters.messages_in.increment();
                self.take(&message, shard, cx)?;
                if count >= BATCH || !self.may_read(shard.now) {
                    break;
                }
            }
            decoder.keep(input);
        }
        Ok(count > 0)
    }

    fn take(
        &mut self,
        message: &Message<'_>,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        match (*message, self.protocol) {
            (Message::Close(close), _) => {
                Err(End::ClosedByClient(close.map(|(code, _)| code), reason(close)))
            }
            (Message::Ping(payload), _) => {
                shard.writer.control(OpCode::Pong, payload);
                self.alive();
                Ok(())
            }
            (Message::Pong(_), _) => {
                self.alive();
                Ok(())
            }
            (Message::Text(text), Protocol::Phoenix) => {
                self.receive(codec::decode_text(text), Raw::Text(text), shard, cx)
            }
            (Message::Binary(bytes), Protocol::Phoenix) => {
                self.receive(codec::decode_binary(bytes), Raw::Binary(bytes), shard, cx)
            }
            (Message::Text(text), Protocol::Echo) => {
                self.send(&Frame::Text(Bytes::copy_from_slice(text.as_bytes())), shard.writer);
                Ok(())
            }
            (Message::Binary(bytes), Protocol::Echo) => {
                self.send(&Frame::Binary(Bytes::copy_from_slice(bytes)), shard.writer);
                Ok(())
            }
        }
    }

    fn receive(
        &mut self,
        decoded: Result<ClientMessage<'_>, DecodeError>,
        raw: Raw<'_>,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        let decoded = decoded.map_err(|error| {
            tracing::debug!(connection = %self.identity.connection, %error, "malformed message");
            End::Close(CloseReason::Malformed)
        })?;
        // The reply to a join comes after the answers to what was sent before it.
        if decoded.event == "phx_join"
            && self.pending.as_ref().is_some_and(|pending| pending.awaits_replies())
        {
            self.pending().deferred = Some(raw.defer());
            return Ok(());
        }
        let commands = &self.deps.parts.commands;
        match self.channels.receive(&decoded, &self.identity, commands, self.deps.config.max_topics) {
            Action::Defer => self.pending().deferred = Some(raw.defer()),
            action => self.act(action, &decoded, shard, cx),
        }
        Ok(())
    }

    fn act(
        &mut self,
        action: Action,
        message: &ClientMessage<'_>,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) {
        let (join_ref, reference) = (message.join_ref.as_deref(), message.reference.as_deref());
        let ok = |topic: &str| reply(join_ref, reference, topic, &Ok::<_, ErrorReply>(Empty {}));
        match action {
            Action::Heartbeat => {
                self.deps.counters.heartbeats.increment();
                self.alive();
                self.send(&ok("phoenix"), shard.writer);
            }
            Action::Join { channel, request, replaced } => {
                if let Some(replaced) = replaced {
                    let close = codec::encode_close(
                        replaced.channel_ref.join_ref.as_deref(),
                        &replaced.channel_ref.topic(),
                    );
                    self.send(&close, shard.writer);
                    // The join that follows takes the membership again.
                    self.close_channel(&replaced, LeaveReason::Lost, shard);
                }
                self.join(channel, reference, request);
            }
            Action::Leave { closed } => {
                self.reply_in_order(ok(&message.topic), shard);
                if let Some(closed) = closed {
                    let close = codec::encode_close(
                        closed.channel_ref.join_ref.as_deref(),
                        &closed.channel_ref.topic(),
                    );
                    self.reply_in_order(close, shard);
                    self.close_channel(&closed, LeaveReason::Left, shard);
                }
            }
            Action::Publish { channel, draft } => {
                self.active(&channel.document);
                self.publish(channel, reference, *draft, shard, cx);
            }
            Action::Request { channel } => self.command(channel, message, shard, cx),
            Action::Refuse(refusal) => {
                let refused = self.refusal(join_ref, reference, &message.topic, &refusal);
                self.reply_in_order(refused, shard);
            }
            Action::Ignore => self.deps.counters.stale_messages.increment(),
            // Dealt with by `receive`, which still has the message.
            Action::Defer => {}
        }
    }

    /// Tells whoever knows of participants that this one is there.
    fn alive(&self) {
        for channel in self.channels.joined() {
            self.touch(channel, Activity::Alive);
        }
    }

    /// Tells whoever knows of participants that this one did something.
    fn active(&self, document: &relay_core::DocumentId) {
        if let Some(channel) =
            self.channels.joined().find(|channel| channel.channel_ref.document == *document)
        {
            self.touch(channel, Activity::Active);
        }
    }
}

/// Whether a close was meant. `disconnect()` of the `phoenix` client gives no code, or one that its caller chose; a page
/// that is closed or loaded again gives 1001; and the client itself gives 1000 when its heartbeat is not answered.
fn reason(close: Option<(u16, &str)>) -> LeaveReason {
    match close {
        None => LeaveReason::Left,
        Some((1000, reason)) if reason != "heartbeat timeout" => LeaveReason::Left,
        Some(_) => LeaveReason::Lost,
    }
}

/// A message as it came.
#[derive(Clone, Copy)]
enum Raw<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

impl Raw<'_> {
    fn defer(self) -> Deferred {
        match self {
            Self::Text(text) => Deferred::Text(text.to_owned()),
            Self::Binary(bytes) => Deferred::Binary(bytes.to_vec()),
        }
    }
}

fn end_of(error: &FramingError) -> End {
    End::Close(match error {
        FramingError::NotUtf8 => CloseReason::NotUtf8,
        FramingError::TooLarge { .. } => CloseReason::TooLarge,
        FramingError::Protocol { .. } => CloseReason::NotWebSocket,
    })
}
