//! [`SendQueue`]: the bytes that a socket has not taken yet.
//!
//! An empty queue holds no memory. The bytes of broadcasts are shared with the queues of all other members.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};

use crate::socket::Socket;

/// The most chunks that are written with one call.
const MAX_CHUNKS: usize = 16;

/// The bytes of one connection that its socket has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl SendQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The number of bytes in the queue.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds `bytes` at the end, without copying them.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        if !bytes.is_empty() {
            self.chunks.push_back(bytes);
        }
    }

    /// Writes as much as the socket takes. Ready when the queue is empty and the socket is flushed.
    pub(crate) fn poll_flush(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_CHUNKS];
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(chunk);
            }
            let slices = &slices[..self.chunks.len().min(MAX_CHUNKS)];
            let mut taken = std::task::ready!(socket.poll_write(cx, slices))?;
            self.bytes -= taken;
            while taken > 0 {
                let Some(first) = self.chunks.front_mut() else { break };
                let step = taken.min(first.len());
                first.advance(step);
                taken -= step;
                if first.is_empty() {
                    self.chunks.pop_front();
                }
            }
        }
        self.chunks = VecDeque::new();
        socket.poll_flush(cx)
    }
}
