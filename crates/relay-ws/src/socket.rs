//! [`Socket`]: the socket of a connection, without the layers of HTTP that cost memory while it idles.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::Request;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The transport of a connection's bytes.
pub enum Transport {
    /// A plain TCP socket.
    Tcp(TcpStream),
    /// A layer around a socket, for instance TLS.
    Other(Box<dyn ByteStream>),
}

/// A stream of bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// The function that removes the layers that a server has put around its sockets for HTTP alone, such as time-outs: an
/// extension of the request. It returns the transport, and the bytes that were read from it already. A value of a type that
/// it does not know it returns as an error.
///
/// The default takes a `TokioIo<TcpStream>` apart. A connection of any other type is used with all its layers.
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

/// The upgrade of a request's connection to a socket.
pub(crate) struct Upgrade {
    on: OnUpgrade,
    unwrap: TransportUnwrapper,
}

impl Upgrade {
    /// Takes the upgrade out of a request. Returns `None` when its connection cannot be upgraded.
    pub(crate) fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let on = request.extensions_mut().remove::<OnUpgrade>()?;
        Some(Self { on, unwrap: request.extensions().get().copied().unwrap_or_default() })
    }

    /// Waits until the request was answered, and returns the socket.
    pub(crate) async fn socket(self) -> hyper::Result<Socket> {
        self.on.await.map(|upgraded| Socket::new(upgraded, self.unwrap))
    }
}

/// The socket of a connection.
pub(crate) struct Socket {
    io: Transport,
    /// The bytes that hyper has read past the request.
    read_ahead: Bytes,
    /// The number of bytes that were read.
    pub(crate) bytes_in: u64,
    /// The number of bytes that the socket has taken.
    pub(crate) bytes_out: u64,
}

impl Socket {
    fn new(upgraded: Upgraded, unwrap: TransportUnwrapper) -> Self {
        let (io, read_ahead) = (unwrap.0)(upgraded)
            .unwrap_or_else(|upgraded| (Transport::Other(Box::new(TokioIo::new(upgraded))), Bytes::new()));
        // An empty slice would keep hyper's buffer of 8 KiB.
        let read_ahead = if read_ahead.is_empty() { Bytes::new() } else { read_ahead };
        Self { io, read_ahead, bytes_in: 0, bytes_out: 0 }
    }

    /// Reads available bytes into `buffer` and returns their number. 0 means that the client sends no more.
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

    /// Writes `chunks` and returns the number of bytes that the socket took, at least 1.
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

    /// Flushes the bytes that a layer such as TLS has buffered.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Transport::Tcp(_) => Poll::Ready(Ok(())),
            Transport::Other(io) => Pin::new(io).poll_flush(cx),
        }
    }

    /// Shuts down the writing side: no more bytes are sent.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Transport::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Transport::Other(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
