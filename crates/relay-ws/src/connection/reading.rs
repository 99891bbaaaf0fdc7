//! What a connection does with what its client sends.

use std::task::{Context, Poll};

use bytes::Bytes;
use relay_core::{Activity, LeaveReason, Monotonic};

use super::busy::{Empty, Parked, reply};
use super::{BATCH, Connection, End, Env, Protocol};
use crate::channels::Action;
use crate::close::CloseReason;
use crate::codec::{self, ClientMessage, DecodeError, Frame};
use crate::error_reply::ErrorReply;
use crate::framing::{Decoder, FramingError, Message, OpCode};

impl Connection {
    /// Whether there is room for what another message may lead to.
    pub(super) fn may_read(&self, now: Monotonic) -> bool {
        let config = &self.shared.config;
        if self.is_draining(now) || self.output.bytes() >= config.write_buffer_bytes {
            return false;
        }
        self.busy.as_ref().is_none_or(|busy| {
            let (count, bytes) = busy.load();
            busy.parked.is_none()
                && count < config.max_pending_pushes
                && bytes < config.max_pending_push_bytes
        })
    }

    /// Reads and deals with messages. Returns whether there were any.
    pub(super) fn read(
        &mut self,
        env: &mut Env<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<bool, End> {
        let mut any = false;
        if let Some(parked) = self.busy.as_mut().and_then(|busy| busy.parked.take()) {
            match &parked {
                Parked::Text(text) => self.receive(codec::decode_text(text), Raw::Text(text), env, cx)?,
                Parked::Binary(bytes) => {
                    self.receive(codec::decode_binary(bytes), Raw::Binary(bytes), env, cx)?;
                }
            }
            any = self.busy.as_ref().is_none_or(|busy| busy.parked.is_none());
        }
        // Taken out, so that what it gives can be dealt with.
        let mut decoder = std::mem::take(&mut self.decoder);
        let read = self.read_messages(&mut decoder, env, scratch, cx);
        self.decoder = decoder;
        Ok(read? || any)
    }

    fn read_messages(
        &mut self,
        decoder: &mut Decoder,
        env: &mut Env<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<bool, End> {
        let mut count = 0;
        while count < BATCH {
            if !self.may_read(env.now) {
                // Who is not listened to is not silent.
                self.heard_at = env.now;
                break;
            }
            let mut input: &mut [u8] = &mut [];
            if !decoder.has_held() {
                match self.socket.poll_read(cx, scratch) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0) | Err(_)) => return Err(End::Lost),
                    Poll::Ready(Ok(length)) => {
                        self.shared.counters.bytes_in.add(length as u64);
                        input = &mut scratch[..length];
                    }
                }
            }
            while let Some(message) = decoder.next(&mut input).map_err(|error| end_of(&error))? {
                count += 1;
                self.heard_at = env.now;
                self.messages_in += 1;
                self.shared.counters.messages_in.increment();
                self.take(&message, env, cx)?;
                if count >= BATCH || !self.may_read(env.now) {
                    break;
                }
            }
            decoder.hold(input);
        }
        Ok(count > 0)
    }

    fn take(&mut self, message: &Message<'_>, env: &mut Env<'_>, cx: &mut Context<'_>) -> Result<(), End> {
        match (*message, self.protocol) {
            (Message::Close(close), _) => {
                Err(End::ClosedByClient(close.map(|(code, _)| code), reason(close)))
            }
            (Message::Ping(payload), _) => {
                env.pen.control(OpCode::Pong, payload);
                self.alive();
                Ok(())
            }
            (Message::Pong(_), _) => {
                self.alive();
                Ok(())
            }
            (Message::Text(text), Protocol::Phoenix) => {
                self.receive(codec::decode_text(text), Raw::Text(text), env, cx)
            }
            (Message::Binary(bytes), Protocol::Phoenix) => {
                self.receive(codec::decode_binary(bytes), Raw::Binary(bytes), env, cx)
            }
            (Message::Text(text), Protocol::Echo) => {
                self.send(&Frame::Text(Bytes::copy_from_slice(text.as_bytes())), env.pen);
                Ok(())
            }
            (Message::Binary(bytes), Protocol::Echo) => {
                self.send(&Frame::Binary(Bytes::copy_from_slice(bytes)), env.pen);
                Ok(())
            }
        }
    }

    fn receive(
        &mut self,
        decoded: Result<ClientMessage<'_>, DecodeError>,
        raw: Raw<'_>,
        env: &mut Env<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        let decoded = decoded.map_err(|error| {
            tracing::debug!(connection = %self.identity.connection, %error, "malformed message");
            End::Close(CloseReason::Malformed)
        })?;
        // The reply to a join comes after the answers to what was sent before it.
        if decoded.event == "phx_join" && self.busy.as_ref().is_some_and(|busy| busy.awaits_answers()) {
            self.busy().parked = Some(raw.park());
            return Ok(());
        }
        let commands = &self.shared.backend.commands;
        match self.channels.receive(&decoded, &self.identity, commands, self.shared.config.max_topics) {
            Action::Park => self.busy().parked = Some(raw.park()),
            action => self.act(action, &decoded, env, cx),
        }
        Ok(())
    }

    fn act(&mut self, action: Action, message: &ClientMessage<'_>, env: &mut Env<'_>, cx: &mut Context<'_>) {
        let (join_ref, reference) = (message.join_ref.as_deref(), message.reference.as_deref());
        let ok = |topic: &str| reply(join_ref, reference, topic, &Ok::<_, ErrorReply>(Empty {}));
        match action {
            Action::Heartbeat => {
                self.shared.counters.heartbeats.increment();
                self.alive();
                self.send(&ok("phoenix"), env.pen);
            }
            Action::Join { channel, wish, replaced } => {
                if let Some(replaced) = replaced {
                    let close =
                        codec::encode_close(replaced.name.join_ref.as_deref(), &replaced.name.topic());
                    self.send(&close, env.pen);
                    // The join that follows takes the membership again.
                    self.close_channel(&replaced, LeaveReason::Lost, env);
                }
                self.join(channel, reference, wish);
            }
            Action::Leave { closed } => {
                self.answer(ok(&message.topic), env);
                if let Some(closed) = closed {
                    let close = codec::encode_close(closed.name.join_ref.as_deref(), &closed.name.topic());
                    self.answer(close, env);
                    self.close_channel(&closed, LeaveReason::Left, env);
                }
            }
            Action::Publish { channel, draft } => {
                self.active(&channel.document);
                self.publish(channel, reference, *draft, env, cx);
            }
            Action::Request { channel } => self.command(channel, message, env, cx),
            Action::Refuse(refusal) => {
                let refused = self.refusal(join_ref, reference, &message.topic, &refusal);
                self.answer(refused, env);
            }
            Action::Ignore => self.shared.counters.stale_messages.increment(),
            // Dealt with by `receive`, which still has the message.
            Action::Park => {}
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
        if let Some(channel) = self.channels.joined().find(|channel| channel.name.document == *document) {
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
    fn park(self) -> Parked {
        match self {
            Self::Text(text) => Parked::Text(text.to_owned()),
            Self::Binary(bytes) => Parked::Binary(bytes.to_vec()),
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
