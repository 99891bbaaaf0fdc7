//! A connection's socket: what it was before it was upgraded, without the layers that cost memory while it idles.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What reads and writes the bytes.
enum Io {
    /// A socket without anything around it.
    Tcp(TcpStream),
    /// TLS, or whatever else a server puts around its sockets.
    Other(TokioIo<Upgraded>),
}

pub(crate) struct Socket {
    io: Io,
    /// What the client sent with or right after its request, and hyper has read already.
    early: Bytes,
    /// Bytes that came in.
    pub(crate) bytes_in: u64,
    /// Bytes that the socket has taken.
    pub(crate) bytes_out: u64,
}

impl Socket {
    pub(crate) fn new(upgraded: Upgraded) -> Self {
        let (io, early) = match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => (Io::Tcp(parts.io.into_inner()), parts.read_buf),
            Err(upgraded) => (Io::Other(TokioIo::new(upgraded)), Bytes::new()),
        };
        // Empty, it would still keep hyper's buffer of 8 KiB.
        let early = if early.is_empty() { Bytes::new() } else { early };
        Self { io, early, bytes_in: 0, bytes_out: 0 }
    }

    /// Reads what there is into `buffer`; 0 bytes mean that the client sends no more.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.early.is_empty() {
            let length = self.early.len().min(buffer.len());
            self.early.copy_to_slice(&mut buffer[..length]);
            if self.early.is_empty() {
                self.early = Bytes::new();
            }
            self.bytes_in += length as u64;
            return Poll::Ready(Ok(length));
        }
        let mut buffer = ReadBuf::new(buffer);
        ready!(match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_read(cx, &mut buffer),
            Io::Other(io) => Pin::new(io).poll_read(cx, &mut buffer),
        })?;
        let length = buffer.filled().len();
        self.bytes_in += length as u64;
        Poll::Ready(Ok(length))
    }

    /// Writes some of `chunks`. Returns how many bytes were taken.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_write_vectored(cx, chunks),
            Io::Other(io) => Pin::new(io).poll_write_vectored(cx, chunks),
        })?;
        if taken == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.bytes_out += taken as u64;
        Poll::Ready(Ok(taken))
    }

    /// Pushes on what is buffered below, as TLS does.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(_) => Poll::Ready(Ok(())),
            Io::Other(io) => Pin::new(io).poll_flush(cx),
        }
    }

    /// Says that nothing more is sent.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Io::Other(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
