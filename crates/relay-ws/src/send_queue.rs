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
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// The bytes of the chunks that belong to this connection alone.
    owned: usize,
}

/// The holder of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The connection alone. The bytes count to its share of memory.
    Connection,
    /// Several connections. The bytes are accounted for where they were made.
    Shared,
}

#[derive(Debug)]
struct Chunk {
    rest: Bytes,
    /// The bytes that count to the connection until the chunk is written.
    owned: usize,
}

impl SendQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The number of bytes in the queue.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of bytes that the connection alone holds.
    pub(crate) fn owned_bytes(&self) -> usize {
        self.owned
    }

    /// Adds `bytes` at the end, without copying them.
    pub(crate) fn push(&mut self, bytes: Bytes, holder: Holder) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        let owned = if holder == Holder::Connection { bytes.len() } else { 0 };
        self.owned += owned;
        self.chunks.push_back(Chunk { rest: bytes, owned });
    }

    /// Writes as much as the socket takes. Ready when the queue is empty and the socket is flushed.
    pub(crate) fn poll_flush(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_CHUNKS];
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(&chunk.rest);
            }
            let slices = &slices[..self.chunks.len().min(MAX_CHUNKS)];
            let mut taken = std::task::ready!(socket.poll_write(cx, slices))?;
            self.bytes -= taken;
            while taken > 0 {
                let Some(first) = self.chunks.front_mut() else { break };
                let step = taken.min(first.rest.len());
                first.rest.advance(step);
                taken -= step;
                if first.rest.is_empty() {
                    self.owned -= first.owned;
                    self.chunks.pop_front();
                }
            }
        }
        self.chunks = VecDeque::new();
        socket.poll_flush(cx)
    }
}
