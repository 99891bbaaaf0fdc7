//! A connection's socket: what it was before it was upgraded, without the layers that cost memory while it idles.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::Request;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What reads and writes the bytes.
pub enum Transport {
    /// A socket without anything around it.
    Tcp(TcpStream),
    /// TLS, or whatever else a server puts around its sockets.
    Other(Box<dyn ByteStream>),
}

/// Bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// How to take off what a server has put around its sockets for HTTP alone, such as time-outs: a request's extension.
/// The function gives the transport and the bytes that were read from it already, or back what it does not know.
///
/// Without this, a `TokioIo<TcpStream>` is taken apart, and everything else is used as it is.
#[derive(Clone, Copy)]
pub struct TransportUnwrapper(pub fn(Upgraded) -> Result<(Transport, Bytes), Upgraded>);

impl Default for TransportUnwrapper {
    fn default() -> Self {
        Self(|upgraded| {
            let parts = upgraded.downcast::<TokioIo<TcpStream>>()?;
            Ok((Transport::Tcp(parts.io.into_inner()), parts.read_buf))
        })
    }
}

/// A request that may become a socket.
pub(crate) struct Upgrade {
    on: OnUpgrade,
    unwrap: TransportUnwrapper,
}

impl Upgrade {
    /// `None` when the server cannot upgrade the request's connection.
    pub(crate) fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let on = request.extensions_mut().remove::<OnUpgrade>()?;
        Some(Self { on, unwrap: request.extensions().get().copied().unwrap_or_default() })
    }

    /// The socket, once the request has been answered.
    pub(crate) async fn socket(self) -> hyper::Result<Socket> {
        self.on.await.map(|upgraded| Socket::new(upgraded, self.unwrap))
    }
}

pub(crate) struct Socket {
    io: Transport,
    /// What the client sent with or right after its request, and hyper has read already.
    read_ahead: Bytes,
    /// Bytes that came in.
    pub(crate) bytes_in: u64,
    /// Bytes that the socket has taken.
    pub(crate) bytes_out: u64,
}

impl Socket {
    fn new(upgraded: Upgraded, unwrap: TransportUnwrapper) -> Self {
        let (io, read_ahead) = (unwrap.0)(upgraded)
            .unwrap_or_else(|upgraded| (Transport::Other(Box::new(TokioIo::new(upgraded))), Bytes::new()));
        // Empty, it would still keep hyper's buffer of 8 KiB.
        let read_ahead = if read_ahead.is_empty() { Bytes::new() } else { read_ahead };
        Self { io, read_ahead, bytes_in: 0, bytes_out: 0 }
    }

    /// Reads what there is into `buffer`; 0 bytes mean that the client sends no more.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.read_ahead.is_empty() {
            let length = self.read_ahead.len().min(buffer.len());
            self.read_ahead.copy_to_slice(&mut buffer[..length]);
            if self.read_ahead.is_empty() {
                self.read_ahead = Bytes::new();
            }
            self.bytes_in += length as u64;
            return Poll::Ready(Ok(length));
        }
        let mut buffer = ReadBuf::new(buffer);
        ready!(match &mut self.io {
            Transport::Tcp(io) => Pin::new(io).poll_read(cx, &mut buffer),
            Transport::Other(io) => Pin::new(io).poll_read(cx, &mut buffer),
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
            Transport::Tcp(io) => Pin::new(io).poll_write_vectored(cx, chunks),
            Transport::Other(io) => Pin::new(io).poll_write_vectored(cx, chunks),
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
            Transport::Tcp(_) => Poll::Ready(Ok(())),
            Transport::Other(io) => Pin::new(io).poll_flush(cx),
        }
    }

    /// Says that nothing more is sent.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Transport::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Transport::Other(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
