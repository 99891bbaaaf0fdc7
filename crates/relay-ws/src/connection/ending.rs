//! The end of a connection: saying why, and waiting for the other side's goodbye, but not for ever.

use std::task::{Context, Poll};
use std::time::Duration;

use relay_core::{LeaveReason, Monotonic};
use relay_events::{NoticeLevel, SYSTEM_NOTICE, SystemNotice};

use super::{Connection, Drain, End, Env};
use crate::codec;
use crate::framing::Message;

/// A connection that has only to be closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Farewell {
    pub(super) give_up_at: Monotonic,
    goodbye: Goodbye,
}

/// How to wait for the other side's goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    /// It still speaks WebSocket: read until its close message.
    Read,
    /// It may be in the middle of something that cannot be read: throw away what comes until it ends. Closing at
    /// once would make the operating system throw away our close message instead.
    Discard,
    /// It has said goodbye: only ours is left to be written.
    Said,
}

impl Connection {
    /// Begins to end. Returns whether there is anything left to do.
    pub(super) fn end(&mut self, end: End, env: &mut Env<'_>) -> bool {
        tracing::debug!(connection = %self.identity.connection, ?end, "connection ends");
        // Nobody is in a room any more whose connection only waits for the other side to say goodbye.
        self.reason = match end {
            End::ClosedByClient(_, reason) => reason,
            End::Close(_) | End::Lost => LeaveReason::Lost,
        };
        self.dissolve(env);
        self.busy = None;
        let counters = &self.shared.counters;
        let goodbye = match end {
            End::Lost => {
                counters.lost.increment();
                return false;
            }
            End::Close(reason) => {
                counters.closed.increment(reason.code());
                env.pen.close(reason.code(), reason.text());
                if reason.breaks_framing() { Goodbye::Discard } else { Goodbye::Read }
            }
            End::ClosedByClient(code, _) => {
                counters.closed_by_client.increment();
                env.pen.answer_close(code);
                Goodbye::Said
            }
        };
        let give_up_at = env.now + self.shared.config.close_timeout;
        self.farewell = Some(Farewell { give_up_at, goodbye });
        true
    }

    /// Takes the connection out of all its rooms.
    pub(crate) fn dissolve(&mut self, env: &mut Env<'_>) {
        for channel in self.channels.drain() {
            self.close_channel(&channel, self.reason, env);
        }
    }

    /// Goes on with saying goodbye. Returns whether it takes longer.
    pub(super) fn poll_farewell(
        &mut self,
        env: &mut Env<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(Farewell { give_up_at, goodbye }) = self.farewell else { return false };
        if env.now >= give_up_at {
            return false;
        }
        match self.flush(env.pen, cx) {
            Err(_) => return false,
            Ok(Poll::Pending) => return true,
            Ok(Poll::Ready(())) => {}
        }
        if goodbye != Goodbye::Read {
            match self.socket.poll_shutdown(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(())) if goodbye == Goodbye::Discard => {}
                Poll::Ready(_) => return false,
            }
        }
        loop {
            match self.socket.poll_read(cx, scratch) {
                Poll::Pending => return true,
                Poll::Ready(Ok(0) | Err(_)) => return false,
                Poll::Ready(Ok(length)) => {
                    if goodbye == Goodbye::Read && self.hears_goodbye(&mut scratch[..length]) {
                        return false;
                    }
                }
            }
        }
    }

    fn hears_goodbye(&mut self, mut input: &mut [u8]) -> bool {
        loop {
            match self.decoder.next(&mut input) {
                Ok(Some(Message::Close(_))) | Err(_) => return true,
                Ok(Some(_)) => {}
                Ok(None) => return false,
            }
        }
    }

    /// Tells every channel that the server stops. At the moment `at`, by the monotonic clock, nothing more is read, what was
    /// pushed before is answered, and the connection is closed. The client is asked to come back after `return_after`.
    pub(crate) fn begin_draining(&mut self, at: Monotonic, return_after: Duration, env: &mut Env<'_>) {
        self.drain = Drain::At(at);
        let notice = SystemNotice {
            level: NoticeLevel::Info,
            code: "reconnect".to_owned(),
            message: "the server restarts; connect again".to_owned(),
            reconnect_after_ms: u64::try_from(return_after.as_millis()).ok(),
        };
        let notices: Vec<_> = self
            .channels
            .joined()
            .map(|channel| {
                let join_ref = channel.name.join_ref.as_deref();
                codec::encode_push(join_ref, &channel.name.topic(), SYSTEM_NOTICE.as_str(), &notice)
            })
            .collect();
        for notice in notices {
            match notice {
                Ok(notice) => self.send(&notice, env.pen),
                Err(error) => tracing::error!(%error, "a notice cannot be encoded"),
            }
        }
        env.pen.put_into(&mut self.output);
    }
}
