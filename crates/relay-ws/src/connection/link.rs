//! [`Link`]: the socket of a connection, and the bytes that it has not taken yet.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};

use relay_core::Monotonic;

use super::end::End;
use crate::codec::Frame;
use crate::config::WsConfig;
use crate::frame_batch::FrameBatch;
use crate::frame_writer::FrameWriter;
use crate::framing::{DeflateParams, Deflater, OpCode};
use crate::room::BatchWrite;
use crate::send_queue::SendQueue;
use crate::shard_context::{ShardContext, ShardDeps};
use crate::socket::Socket;

/// The socket of a connection, and the bytes that it has not taken yet.
pub(super) struct Link {
    socket: Socket,
    /// The bytes that the socket takes first.
    queue: SendQueue,
    /// The messages that were written since the last flush. Empty while the connection is not polled.
    writer: FrameWriter,
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
        Self {
            socket,
            queue: SendQueue::default(),
            writer: FrameWriter::default(),
            deflate,
            stall: None,
            messages_out: 0,
            slow: 0,
        }
    }

    /// Takes the shard's buffer. [`Link::return_buffer`] returns it.
    pub(super) fn take_buffer(&mut self, buffer: &mut FrameWriter) {
        std::mem::swap(&mut self.writer, buffer);
    }

    /// Returns the shard's buffer. Unflushed messages move into the queue. Returns true when there were any.
    pub(super) fn return_buffer(&mut self, buffer: &mut FrameWriter) -> bool {
        let was_left = !self.writer.is_empty();
        self.writer.flush_to(&mut self.queue);
        std::mem::swap(&mut self.writer, buffer);
        was_left
    }

    /// Writes a message behind the others.
    pub(super) fn send(&mut self, frame: &Frame, shard: &mut ShardContext<'_>) {
        self.messages_out += 1;
        shard.deps.counters.messages_out.increment();
        let deflate = self.deflate.map(|params| (params, &mut *shard.deflater));
        self.writer.write(frame, deflate, &mut self.queue);
    }

    /// Writes the answer to a ping behind the messages.
    pub(super) fn send_pong(&mut self, payload: &[u8]) {
        self.writer.control(OpCode::Pong, payload);
    }

    /// Writes a close message behind the others.
    pub(super) fn close(&mut self, code: u16, reason: &str) {
        self.writer.close(code, reason);
    }

    /// Writes the answer to the client's close message behind the others.
    pub(super) fn answer_close(&mut self, code: Option<u16>) {
        self.writer.answer_close(code);
    }

    /// True when messages were written since the last flush.
    pub(super) fn has_unflushed(&self) -> bool {
        !self.writer.is_empty()
    }

    /// Writes as much as the socket takes. Ready when the socket has all bytes.
    pub(super) fn flush(
        &mut self,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, End> {
        let before = self.socket.bytes_out;
        let flushed = self.writer.flush(&mut self.socket, &mut self.queue, cx);
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
        self.queue.push(bytes.slice(taken..));
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

    /// The bytes that wait for the socket.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.bytes() + self.writer.len()
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
