//! The end of a connection.

use std::task::{Context, Poll};
use std::time::Duration;

use relay_core::{LeaveReason, Monotonic};
use relay_events::{NoticeLevel, SYSTEM_NOTICE, SystemNotice};

use super::{Connection, Drain, End};
use crate::codec;
use crate::framing::Message;
use crate::shard_context::ShardContext;

/// A connection that has only to be closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closing {
    pub(super) deadline: Monotonic,
    phase: ClosePhase,
}

/// How to wait for the other side's goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClosePhase {
    /// It still speaks WebSocket: read until its close message.
    AwaitClose,
    /// It may be in the middle of something that cannot be read: throw away what comes until it ends. Closing at
    /// once would make the operating system throw away our close message instead.
    Discard,
    /// It has said phase: only ours is left to be written.
    CloseReceived,
}

impl Connection {
    /// Begins to end. Returns whether there is anything left to do.
    pub(super) fn end(&mut self, end: End, shard: &mut ShardContext<'_>) -> bool {
        tracing::debug!(connection = %self.identity.connection, ?end, "connection ends");
        // Nobody is in a room any more whose connection only waits for the other side to say phase.
        self.reason = match end {
            End::ClosedByClient(_, reason) => reason,
            End::Close(_) | End::Lost => LeaveReason::Lost,
        };
        self.leave_all_rooms(shard);
        self.pending = None;
        let counters = &self.deps.counters;
        let phase = match end {
            End::Lost => {
                counters.lost.increment();
                return false;
            }
            End::Close(reason) => {
                counters.closed.increment(reason.code());
                shard.writer.close(reason.code(), reason.text());
                if reason.breaks_framing() { ClosePhase::Discard } else { ClosePhase::AwaitClose }
            }
            End::ClosedByClient(code, _) => {
                counters.closed_by_client.increment();
                shard.writer.answer_close(code);
                ClosePhase::CloseReceived
            }
        };
        let deadline = shard.now + self.deps.config.close_timeout;
        self.closing = Some(Closing { deadline, phase });
        true
    }

    /// Takes the connection out of all its rooms.
    pub(crate) fn leave_all_rooms(&mut self, shard: &mut ShardContext<'_>) {
        for channel in self.channels.drain() {
            self.close_channel(&channel, self.reason, shard);
        }
    }

    /// Goes on with saying phase. Returns whether it takes longer.
    pub(super) fn poll_closing(
        &mut self,
        shard: &mut ShardContext<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(Closing { deadline, phase }) = self.closing else { return false };
        if shard.now >= deadline {
            return false;
        }
        match self.flush(shard.writer, cx) {
            Err(_) => return false,
            Ok(Poll::Pending) => return true,
            Ok(Poll::Ready(())) => {}
        }
        if phase != ClosePhase::AwaitClose {
            match self.socket.poll_shutdown(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(())) if phase == ClosePhase::Discard => {}
                Poll::Ready(_) => return false,
            }
        }
        loop {
            match self.socket.poll_read(cx, scratch) {
                Poll::Pending => return true,
                Poll::Ready(Ok(0) | Err(_)) => return false,
                Poll::Ready(Ok(length)) => {
                    if phase == ClosePhase::AwaitClose && self.saw_close_frame(&mut scratch[..length]) {
                        return false;
                    }
                }
            }
        }
    }

    fn saw_close_frame(&mut self, mut input: &mut [u8]) -> bool {
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
    pub(crate) fn begin_draining(
        &mut self,
        at: Monotonic,
        return_after: Duration,
        shard: &mut ShardContext<'_>,
    ) {
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
                let join_ref = channel.channel_ref.join_ref.as_deref();
                codec::encode_push(join_ref, &channel.channel_ref.topic(), SYSTEM_NOTICE.as_str(), &notice)
            })
            .collect();
        for notice in notices {
            match notice {
                Ok(notice) => self.send(&notice, shard.writer),
                Err(error) => tracing::error!(%error, "a notice cannot be encoded"),
            }
        }
        shard.writer.flush_to(&mut self.send_queue);
    }
}
