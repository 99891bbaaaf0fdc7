//! [`HttpStream`]: the stream of an HTTP connection, with its limits of time and memory.
//!
//! A write fails when it makes no progress for a time. The timer exists only while a write waits, so an idle connection has
//! none. A read fails when there is no memory for the head that it continues.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::heads::HeadMemory;

/// The most bytes of a read. hyper has a buffer of 8 KiB for each connection, and makes it larger for a connection that fills
/// it with one read.
const READ_BYTES: u64 = 8 * 1024 - 1;

/// A stream whose writes may wait for a limited time, and whose reads count to the memory of heads.
pub(super) struct HttpStream<S> {
    stream: S,
    heads: HeadMemory,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// The error of a write that waited for too long.
#[derive(Debug)]
pub(super) struct Stalled {
    limit: Duration,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client read nothing for {:?}", self.limit)
    }
}

impl std::error::Error for Stalled {}

impl<S> HttpStream<S> {
    pub(super) fn new(stream: S, limit: Duration, heads: HeadMemory) -> Self {
        Self { stream, heads, limit, waiting: None }
    }

    /// Returns the stream without the limits.
    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        waiting.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, Stalled { limit })))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HttpStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, heads, .. } = &mut *self;
        heads.reserve().map_err(io::Error::other)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut stream.take(READ_BYTES)).poll_read(cx, buffer);
        heads.add(buffer.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HttpStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.limited(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        chunks: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, chunks);
        self.limited(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.limited(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.limited(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use relay_core::{MemoryBudget, MemoryLimits, MemoryPurpose};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_a_little_each_time_is_waited_for_and_one_that_takes_nothing_is_not() {
        let (server, mut client) = tokio::io::duplex(4);
        let mut server =
            HttpStream::new(server, LIMIT, HeadMemory::new(MemoryBudget::default().connection(None)));
        let slow = tokio::spawn(async move {
            let mut got = [0; 1];
            for _ in 0..12 {
                tokio::time::sleep(Duration::from_secs(29)).await;
                client.read_exact(&mut got).await.unwrap();
            }
            client
        });
        server.write_all(&[7; 16]).await.unwrap();
        let _client = slow.await.unwrap();

        let written = tokio::time::timeout(Duration::from_secs(60), server.write_all(&[7; 16])).await;
        let error = written.unwrap().unwrap_err();
        let cause = error.get_ref().unwrap();
        assert!(cause.is::<Stalled>(), "{cause}");
    }

    #[tokio::test]
    async fn reads_are_small_and_fail_when_there_is_no_memory_for_what_was_read_before() {
        let mut limits = MemoryLimits::default();
        (limits.max_address_bytes, limits.max_connection_bytes) = (8 * 1024, 8 * 1024);
        let budget = MemoryBudget::new(limits);
        let (server, mut client) = tokio::io::duplex(64 * 1024);
        let mut server = HttpStream::new(server, LIMIT, HeadMemory::new(budget.connection(None)));
        client.write_all(&vec![7; 64 * 1024]).await.unwrap();
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..2 {
            assert_eq!(server.read(&mut buffer).await.unwrap(), 8 * 1024 - 1);
        }
        assert_eq!(budget.held(MemoryPurpose::Heads), 8 * 1024);
        let refused = server.read(&mut buffer).await.unwrap_err();
        assert!(refused.to_string().contains("the memory for this connection has a limit"), "{refused}");
        drop(server);
        assert_eq!(budget.total().used(), 0);
    }
}
