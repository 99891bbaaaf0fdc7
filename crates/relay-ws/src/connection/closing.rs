//! [`Closing`]: the closing handshake of a connection. The close message is written, and the client's own is awaited for some
//! time.

use std::task::{Context, Poll, ready};

use relay_core::Monotonic;

use super::end::End;
use super::link::Link;
use super::reader::Reader;
use crate::shard_context::ShardContext;

/// The most reads of a turn. A client that goes on sending must not keep other connections waiting.
const MAX_READS: usize = 4;

/// The state of a connection that is being closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closing {
    /// The moment at which the handshake ends even without the client's part.
    pub(super) deadline: Monotonic,
    phase: ClosePhase,
}

/// The client's part in the closing handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClosePhase {
    /// The client's messages can still be read. They are read until its close message.
    AwaitClose,
    /// The client may be in the middle of a message that cannot be read. Its bytes are discarded until it closes the socket.
    /// If the server closed first, the operating system would discard its close message.
    Discard,
    /// The client's close message has arrived. Only the answer is left to be written.
    CloseReceived,
}

impl Closing {
    /// Writes the close message of a connection that ends. Returns `None` when the connection is lost.
    pub(super) fn begin(end: End, shard: &mut ShardContext<'_>) -> Option<Self> {
        let counters = &shard.deps.counters;
        let phase = match end {
            End::Lost => {
                counters.lost.increment();
                return None;
            }
            End::Close(reason) => {
                counters.closed.increment(reason.code());
                shard.writer.close(reason.code(), reason.text());
                if reason.breaks_framing() { ClosePhase::Discard } else { ClosePhase::AwaitClose }
            }
            End::ClosedByClient { code, .. } => {
                counters.closed_by_client.increment();
                shard.writer.answer_close(code);
                ClosePhase::CloseReceived
            }
        };
        Some(Self { deadline: shard.now + shard.deps.config.close_timeout, phase })
    }

    /// True when the client's messages are read until its close message.
    pub(super) fn awaits_close(&self) -> bool {
        self.phase == ClosePhase::AwaitClose
    }

    /// Continues the closing handshake. Ready when the socket can be dropped.
    pub(super) fn poll(
        &self,
        link: &mut Link,
        reader: &mut Reader,
        shard: &mut ShardContext<'_>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if shard.now >= self.deadline {
            return Poll::Ready(());
        }
        match link.flush(shard, cx) {
            Err(_) => return Poll::Ready(()),
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
        }
        if self.phase != ClosePhase::AwaitClose {
            let shut_down = ready!(link.poll_shutdown(cx));
            if shut_down.is_err() || self.phase == ClosePhase::CloseReceived {
                return Poll::Ready(());
            }
        }
        for _ in 0..MAX_READS {
            match ready!(link.poll_read(cx, scratch)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(length) => {
                    let received = &mut scratch[..length];
                    if self.phase == ClosePhase::AwaitClose && reader.saw_close_frame(received) {
                        return Poll::Ready(());
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
