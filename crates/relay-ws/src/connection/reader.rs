//! [`Reader`]: the messages of a client, decoded from the bytes of its socket.

use relay_core::Monotonic;

use super::end::End;
use crate::config::WsConfig;
use crate::framing::{Decoder, Message};
use crate::shard_context::ShardContext;

/// The decoder of a connection, and the moment of its last message.
pub(super) struct Reader {
    decoder: Decoder,
    last_received_at: Monotonic,
    /// The moment of the first byte of the message that has arrived in part.
    partial_since: Option<Monotonic>,
    messages_in: u64,
}

impl Reader {
    /// A reader of messages of at most `max_message_bytes`. With `compression` the client may compress them.
    pub(super) fn new(max_message_bytes: usize, compression: bool, now: Monotonic) -> Self {
        let decoder = Decoder::new(max_message_bytes, compression);
        Self { decoder, last_received_at: now, partial_since: None, messages_in: 0 }
    }

    /// Returns the next message, out of the carried-over bytes and `input`; see [`Decoder::next`].
    #[allow(clippy::mut_mut, reason = "the input is advanced, as by the decoder")]
    pub(super) fn next<'m, 'i: 'm>(
        &'m mut self,
        input: &mut &'i mut [u8],
        shard: &ShardContext<'_>,
    ) -> Result<Option<Message<'m>>, End> {
        let message = self.decoder.next(input)?;
        if let Some(message) = &message {
            // A ping or pong may come between the frames of a message.
            if !matches!(message, Message::Ping(_) | Message::Pong(_)) {
                self.partial_since = None;
            }
            self.last_received_at = shard.now;
            self.messages_in += 1;
            shard.deps.counters.messages_in.increment();
        }
        Ok(message)
    }

    /// Carries bytes over to the next call of [`Reader::next`].
    pub(super) fn keep(&mut self, rest: &[u8]) {
        self.decoder.keep(rest);
    }

    /// Notes that a message has arrived in part, for the time that it takes.
    pub(super) fn note_partial(&mut self, now: Monotonic) {
        self.partial_since = self.decoder.is_partial().then(|| self.partial_since.unwrap_or(now));
    }

    /// The moment at which the message that has arrived in part takes too long.
    pub(super) fn message_due_at(&self, config: &WsConfig) -> Option<Monotonic> {
        self.partial_since.map(|since| since + config.message_timeout)
    }

    /// The bytes of the message that has arrived in part.
    pub(super) fn held_bytes(&self) -> usize {
        self.decoder.held_bytes()
    }

    /// True when the next message may be decoded without reading the socket.
    pub(super) fn has_carry_over(&self) -> bool {
        self.decoder.has_carry_over()
    }

    /// Gives up a message that has arrived in part, and all later ones.
    pub(super) fn discard(&mut self) {
        (self.decoder, self.partial_since) = (Decoder::default(), None);
    }

    /// Skips messages. Returns true at a close message, or at bytes that cannot be decoded.
    pub(super) fn saw_close_frame(&mut self, mut input: &mut [u8]) -> bool {
        loop {
            match self.decoder.next(&mut input) {
                Ok(Some(Message::Close(_))) | Err(_) => return true,
                Ok(Some(_)) => {}
                Ok(None) => return false,
            }
        }
    }

    /// Restarts the time without a message, and that of a message in part, at `now`.
    pub(super) fn reset_idle(&mut self, now: Monotonic) {
        self.last_received_at = now;
        self.partial_since = self.partial_since.map(|_| now);
    }

    /// The moment at which the client has been silent for too long.
    pub(super) fn stale_at(&self, config: &WsConfig) -> Monotonic {
        self.last_received_at + config.stale_after
    }

    pub(super) fn messages_in(&self) -> u64 {
        self.messages_in
    }
}
