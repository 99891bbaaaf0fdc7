//! What a shard writes with: one buffer and one compressor, lent to each connection in its turn.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use crate::codec::Frame;
use crate::frame_batch::op_code;
use crate::framing::{self, DeflateParams, Deflater, OpCode};
use crate::send_queue::SendQueue;
use crate::socket::Socket;
use bytes::Bytes;

/// A message of at least so many bytes is not copied to be written: its bytes are shared.
const SHARED_BYTES: usize = 16 * 1024;

#[derive(Default)]
pub(crate) struct FrameWriter {
    buffer: Vec<u8>,
    deflater: Deflater,
}

impl FrameWriter {
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The compressor.
    pub(crate) fn deflater(&mut self) -> &mut Deflater {
        &mut self.deflater
    }

    /// Writes a message behind what `output` has. It is all there after [`FrameWriter::flush`] or [`FrameWriter::put_into`].
    pub(crate) fn write(
        &mut self,
        frame: &Frame,
        deflate: Option<DeflateParams>,
        send_queue: &mut SendQueue,
    ) {
        let (op_code, bytes) = (op_code(frame), frame.bytes());
        if let Some(params) = deflate {
            self.deflater.encode(params, op_code, bytes, &mut self.buffer);
        } else if bytes.len() < SHARED_BYTES {
            framing::encode(&mut self.buffer, op_code, bytes);
        } else {
            framing::encode_header(&mut self.buffer, op_code, bytes.len());
            self.flush_to(send_queue);
            send_queue.push(bytes.clone());
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

    /// Writes the answer to a close message, which has the same code.
    pub(crate) fn answer_close(&mut self, code: Option<u16>) {
        match code {
            Some(code) => self.close(code, ""),
            None => self.control(OpCode::Close, &[]),
        }
    }

    /// Forgets what was not flushed.
    pub(crate) fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Moves what was written into `output`.
    pub(crate) fn flush_to(&mut self, send_queue: &mut SendQueue) {
        if !self.buffer.is_empty() {
            send_queue.push(Bytes::copy_from_slice(&self.buffer));
            self.buffer.clear();
        }
    }

    /// Writes as much as the socket takes; what it does not take is in `output` then. Ready when that is empty.
    pub(crate) fn flush(
        &mut self,
        socket: &mut Socket,
        send_queue: &mut SendQueue,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if send_queue.is_empty() && !self.buffer.is_empty() {
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
        self.flush_to(send_queue);
        send_queue.poll_flush(socket, cx)
    }
}
