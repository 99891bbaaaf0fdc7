//! Connections over sockets that a script drives: each takes as many bytes as the test allows.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use relay_ws::WsServer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

use crate::support::upgrade_request;

/// Both ends of a connection.
pub(crate) struct Connected {
    pub(crate) wire: Arc<Mutex<Wire>>,
    pub(crate) client: WebSocket<Buffer>,
}

/// Connects a client, whose socket takes all bytes at first.
pub(crate) async fn connect(ws: &WsServer, path: &str) -> Connected {
    let wire = Arc::new(Mutex::new(Wire { window: usize::MAX, ..Wire::default() }));
    let upgrades = ws.clone();
    let service = service_fn(move |request| {
        let ws = upgrades.clone();
        async move { Ok::<_, std::convert::Infallible>(ws.upgrade(request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(Socket(Arc::clone(&wire))), service)
        .with_upgrades();
    wire.lock().send(upgrade_request(path, "").as_bytes());
    serving.await.unwrap();
    let head = std::mem::take(&mut wire.lock().outgoing);
    assert!(head.starts_with(b"HTTP/1.1 101") && head.ends_with(b"\r\n\r\n"));
    let client = WebSocket::from_raw_socket(Buffer::default(), Role::Client, None);
    Connected { wire, client }
}

impl Connected {
    /// Delivers messages to the server at once.
    pub(crate) fn deliver(&mut self, messages: &[Value]) {
        for message in messages {
            self.client.send(Message::text(message.to_string())).unwrap();
        }
        let bytes = std::mem::take(&mut self.client.get_mut().outgoing);
        self.wire.lock().send(&bytes);
    }

    /// Joins a document, with `reference` as the reference of the join.
    pub(crate) async fn join(&mut self, reference: &str, document: &str) {
        self.deliver(&[json!([reference, reference, format!("document:{document}"), "phx_join", {}])]);
        assert_eq!(self.until_reply(reference).await["status"], "ok");
    }

    /// The whole messages that have arrived.
    pub(crate) fn receive(&mut self) -> Vec<Value> {
        let Self { wire, client } = self;
        client.get_mut().incoming.extend(std::mem::take(&mut wire.lock().outgoing));
        let mut messages = Vec::new();
        loop {
            match client.read() {
                Ok(Message::Text(text)) => messages.push(serde_json::from_str(&text).unwrap()),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return messages,
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Waits for the reply to `reference`, and returns its payload. Earlier messages are skipped.
    pub(crate) async fn until_reply(&mut self, reference: &str) -> Value {
        let waiting = async {
            loop {
                let mut messages = self.receive().into_iter();
                let reply = messages.find(|message| message[1] == reference && message[3] == "phx_reply");
                match reply {
                    Some(reply) => return reply[4].clone(),
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let reply = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        reply.unwrap_or_else(|_| panic!("{reference} is not answered"))
    }
}

/// The bytes in the socket's two directions, as far as the script has let them through.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// The bytes that the server has not read yet.
    pub(crate) incoming: VecDeque<u8>,
    /// The bytes that the server has written.
    pub(crate) outgoing: Vec<u8>,
    /// The number of bytes that the socket takes before it is full.
    pub(crate) window: usize,
    /// The number of writes that found the socket full.
    pub(crate) refused: usize,
    /// The numbers of sockets in the order in which they took bytes. A test may share it among several sockets.
    pub(crate) writes: Arc<Mutex<Vec<usize>>>,
    /// The number of this socket.
    pub(crate) number: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Wire {
    /// Delivers `bytes` to the server.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.incoming.extend(bytes);
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    /// Lets the socket take `bytes` more.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.window = self.window.saturating_add(bytes);
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

/// The server's end of a [`Wire`].
struct Socket(Arc<Mutex<Wire>>);

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        if wire.incoming.is_empty() {
            wire.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = wire.incoming.len().min(buffer.remaining());
        for byte in wire.incoming.drain(..length) {
            buffer.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock();
        if wire.window == 0 {
            wire.writer = Some(cx.waker().clone());
            wire.refused += 1;
            return Poll::Pending;
        }
        let length = bytes.len().min(wire.window);
        wire.window -= length;
        wire.writes.lock().push(wire.number);
        wire.outgoing.extend(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The client's end, whose bytes the test moves between it and the [`Wire`].
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    pub(crate) incoming: VecDeque<u8>,
    pub(crate) outgoing: Vec<u8>,
}

impl Read for Buffer {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.incoming.read(bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
