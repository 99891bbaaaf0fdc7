//! [`Link`]: the socket of a connection, and the bytes that it has not taken yet.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};

use relay_core::Monotonic;

use super::end::End;
use crate::codec::Frame;
use crate::config::WsConfig;
use crate::frame_batch::FrameBatch;
use crate::frame_writer::FrameWriter;
use crate::framing::{DeflateParams, Deflater};
use crate::room::BatchWrite;
use crate::send_queue::{Holder, SendQueue};
use crate::shard_context::{ShardContext, ShardDeps};
use crate::socket::Socket;

/// The socket of a connection, and the bytes that it has not taken yet.
pub(super) struct Link {
    socket: Socket,
    /// The bytes that the socket takes first.
    queue: SendQueue,
    deflate: Option<DeflateParams>,
    /// Set while the socket takes no bytes.
    stall: Option<Stall>,
    messages_out: u64,
    /// The number of batches for which the socket was full.
    slow: u64,
}

/// A time in which the socket takes no bytes.
#[derive(Debug, Clone, Copy)]
struct Stall {
    since: Monotonic,
    /// The bytes that the socket had taken when the stall began.
    written: u64,
}

impl Link {
    pub(super) fn new(socket: Socket, deflate: Option<DeflateParams>) -> Self {
        Self { socket, queue: SendQueue::default(), deflate, stall: None, messages_out: 0, slow: 0 }
    }

    /// Moves the messages in `writer` into the queue.
    pub(super) fn queue_unflushed(&mut self, writer: &mut FrameWriter) {
        writer.flush_to(&mut self.queue);
    }

    /// Writes a message of this connection alone behind the others.
    pub(super) fn send(&mut self, frame: &Frame, shard: &mut ShardContext<'_>) {
        self.write(frame, Holder::Connection, shard);
    }

    /// Writes a message behind the others whose bytes other connections share. They are accounted for where they were made.
    pub(super) fn send_shared(&mut self, frame: &Frame, shard: &mut ShardContext<'_>) {
        self.write(frame, Holder::Shared, shard);
    }

    fn write(&mut self, frame: &Frame, holder: Holder, shard: &mut ShardContext<'_>) {
        self.messages_out += 1;
        shard.deps.counters.messages_out.increment();
        let deflate = self.deflate.map(|params| (params, &mut *shard.deflater));
        shard.writer.write(frame, holder, deflate, &mut self.queue);
    }

    /// Writes as much as the socket takes. Ready when the socket has all bytes.
    pub(super) fn flush(
        &mut self,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, End> {
        let before = self.socket.bytes_out;
        let flushed = shard.writer.flush(&mut self.socket, &mut self.queue, cx);
        shard.deps.counters.bytes_out.add(self.socket.bytes_out - before);
        match flushed {
            Poll::Ready(Ok(())) => {
                self.stall = None;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(_)) => Err(End::Lost),
            Poll::Pending => {
                self.record_stall(shard.now);
                Ok(Poll::Pending)
            }
        }
    }

    /// Writes a batch of a room. `waker` is the connection's.
    pub(super) fn write_batch(
        &mut self,
        batch: &mut FrameBatch,
        deflater: &mut Deflater,
        deps: &ShardDeps,
        now: Monotonic,
        waker: &Waker,
    ) -> BatchWrite {
        let cx = &mut Context::from_waker(waker);
        let (messages, bytes) = (batch.messages(), batch.bytes(self.deflate, deflater));
        let counters = &deps.counters;
        self.messages_out += messages;
        counters.messages_out.add(messages);
        counters.deliveries.add(messages);
        let mut taken = 0;
        if self.queue.is_empty() {
            while taken < bytes.len() {
                match self.socket.poll_write(cx, &[IoSlice::new(&bytes[taken..])]) {
                    Poll::Ready(Ok(count)) => taken += count,
                    // The connection meets the error again when it is polled, and ends.
                    Poll::Ready(Err(_)) => {
                        waker.wake_by_ref();
                        return BatchWrite::Done;
                    }
                    Poll::Pending => break,
                }
            }
            counters.bytes_out.add(taken as u64);
        }
        if taken == bytes.len() {
            // A layer such as TLS may have buffered the bytes.
            if !matches!(self.socket.poll_flush(cx), Poll::Ready(Ok(()))) {
                waker.wake_by_ref();
            }
            return BatchWrite::Done;
        }
        self.queue.push(bytes.slice(taken..), Holder::Shared);
        self.record_stall(now);
        self.slow += 1;
        counters.slow.increment();
        // The connection sets a timer for its stall when it is polled.
        waker.wake_by_ref();
        BatchWrite::Partial
    }

    /// Reads from the socket; see [`Socket::poll_read`].
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buffer)
    }

    /// Shuts down the socket's writing side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_shutdown(cx)
    }

    /// The moment at which the socket has taken no bytes for too long. `None` while it takes bytes.
    pub(super) fn stalled_at(&self, config: &WsConfig) -> Option<Monotonic> {
        self.stall.map(|stall| stall.since + config.write_stall_timeout)
    }

    /// The bytes that wait for the socket. Messages that are not flushed yet are not among them.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Those of the waiting bytes that are not shared with other connections.
    pub(super) fn owned_bytes(&self) -> usize {
        self.queue.owned_bytes()
    }

    /// True while the socket takes no bytes.
    pub(super) fn is_stalled(&self) -> bool {
        self.stall.is_some()
    }

    pub(super) fn messages_out(&self) -> u64 {
        self.messages_out
    }

    /// The number of batches for which the socket was full.
    pub(super) fn slow(&self) -> u64 {
        self.slow
    }

    pub(super) fn bytes_in(&self) -> u64 {
        self.socket.bytes_in
    }

    pub(super) fn bytes_out(&self) -> u64 {
        self.socket.bytes_out
    }

    /// Begins a stall. A stall that has begun lasts while no byte is taken.
    fn record_stall(&mut self, now: Monotonic) {
        let written = self.socket.bytes_out;
        if self.stall.is_none_or(|stall| stall.written != written) {
            self.stall = Some(Stall { since: now, written });
        }
    }
}
