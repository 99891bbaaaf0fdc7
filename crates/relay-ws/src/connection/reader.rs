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
    messages_in: u64,
}

impl Reader {
    /// A reader of messages of at most `max_message_bytes`. With `compression` the client may compress them.
    pub(super) fn new(max_message_bytes: usize, compression: bool, now: Monotonic) -> Self {
        let decoder = Decoder::new(max_message_bytes, compression);
        Self { decoder, last_received_at: now, messages_in: 0 }
    }

    /// Returns the next message, out of the carried-over bytes and `input`; see [`Decoder::next`].
    #[allow(clippy::mut_mut, reason = "the input is advanced, as by the decoder")]
    pub(super) fn next<'m, 'i: 'm>(
        &'m mut self,
        input: &mut &'i mut [u8],
        shard: &ShardContext<'_>,
    ) -> Result<Option<Message<'m>>, End> {
        let message = self.decoder.next(input)?;
        if message.is_some() {
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

    /// True when the next message may be decoded without reading the socket.
    pub(super) fn has_carry_over(&self) -> bool {
        self.decoder.has_carry_over()
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

    /// Restarts the time without a message at `now`.
    pub(super) fn reset_idle(&mut self, now: Monotonic) {
        self.last_received_at = now;
    }

    /// The moment at which the client has been silent for too long.
    pub(super) fn stale_at(&self, config: &WsConfig) -> Monotonic {
        self.last_received_at + config.stale_after
    }

    pub(super) fn messages_in(&self) -> u64 {
        self.messages_in
    }
}
