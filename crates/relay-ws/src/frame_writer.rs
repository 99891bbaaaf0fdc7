//! [`FrameWriter`]: the buffer of encoded messages that a connection flushes to its socket.
//!
//! A shard has one buffer, and its connections take turns with it. A connection gets the buffer with its
//! [`ShardContext`](crate::shard_context::ShardContext) alone. The shard makes a context for one call, and moves what is left
//! in the buffer into the connection's queue then. So no call can lose an encoded byte or leave it to another connection.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::codec::Frame;
use crate::framing::{self, DeflateParams, Deflater, OpCode};
use crate::send_queue::{Holder, SendQueue};
use crate::socket::Socket;

/// The size in bytes from which a message is shared with the queue instead of copied into the buffer.
const SHARED_BYTES: usize = 16 * 1024;

/// The opcode of a message.
pub(crate) fn op_code(frame: &Frame) -> OpCode {
    match frame {
        Frame::Text(_) => OpCode::Text,
        Frame::Binary(_) => OpCode::Binary,
    }
}

/// A buffer of encoded messages.
#[derive(Debug, Default)]
pub(crate) struct FrameWriter {
    buffer: Vec<u8>,
}

impl FrameWriter {
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Writes a message of `holder` behind the bytes in `queue`. With `deflate` it is compressed.
    pub(crate) fn write(
        &mut self,
        frame: &Frame,
        holder: Holder,
        deflate: Option<(DeflateParams, &mut Deflater)>,
        queue: &mut SendQueue,
    ) {
        let (op_code, bytes) = (op_code(frame), frame.bytes());
        if let Some((params, deflater)) = deflate {
            deflater.encode(params, op_code, bytes, &mut self.buffer);
        } else if bytes.len() < SHARED_BYTES {
            framing::encode(&mut self.buffer, op_code, bytes);
        } else {
            framing::encode_header(&mut self.buffer, op_code, bytes.len());
            self.flush_to(queue);
            queue.push(bytes.clone(), holder);
        }
    }

    /// Writes a ping or pong.
    pub(crate) fn control(&mut self, op_code: OpCode, payload: &[u8]) {
        framing::encode(&mut self.buffer, op_code, payload);
    }

    /// Writes a close message.
    pub(crate) fn close(&mut self, code: u16, reason: &str) {
        framing::encode_close(&mut self.buffer, code, reason);
    }

    /// Writes the answer to a close message. It repeats the code.
    pub(crate) fn answer_close(&mut self, code: Option<u16>) {
        match code {
            Some(code) => self.close(code, ""),
            None => self.control(OpCode::Close, &[]),
        }
    }

    /// Moves all messages into `queue`.
    pub(crate) fn flush_to(&mut self, queue: &mut SendQueue) {
        if !self.buffer.is_empty() {
            queue.push(Bytes::copy_from_slice(&self.buffer), Holder::Connection);
            self.buffer.clear();
        }
    }

    /// Writes as much as the socket takes, and moves the rest into `queue`. Ready when the socket has all bytes.
    pub(crate) fn flush(
        &mut self,
        socket: &mut Socket,
        queue: &mut SendQueue,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if queue.is_empty() && !self.buffer.is_empty() {
            let mut taken = 0;
            while taken < self.buffer.len() {
                match socket.poll_write(cx, &[IoSlice::new(&self.buffer[taken..])]) {
                    Poll::Ready(Ok(count)) => taken += count,
                    Poll::Ready(Err(error)) => {
                        self.buffer.clear();
                        return Poll::Ready(Err(error));
                    }
                    Poll::Pending => break,
                }
            }
            self.buffer.drain(..taken);
        }
        self.flush_to(queue);
        queue.poll_flush(socket, cx)
    }
}
