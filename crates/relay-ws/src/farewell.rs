//! The end of a connection: saying why, and waiting for the other side's goodbye, but not for ever.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Sink, StreamExt};
use relay_core::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::close::CloseReason;
use crate::registry::Alarm;

/// A socket that has only to be closed.
pub(crate) struct Farewell<'a, S> {
    pub(crate) socket: &'a mut WebSocketStream<S>,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) alarm: &'a Alarm,
    /// How long the other side may take.
    pub(crate) patience: Duration,
}

/// How to wait for the other side's goodbye.
#[derive(Debug, Clone, Copy)]
enum Goodbye {
    /// It still speaks WebSocket: read until its close message.
    Read,
    /// It may be in the middle of something that cannot be read: throw away what comes until it ends. Closing at
    /// once would make the operating system throw away our close message instead.
    Discard,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Farewell<'_, S> {
    /// Says why, and waits for the answer.
    pub(crate) async fn close(mut self, reason: CloseReason) {
        let message = Message::Close(Some(reason.frame()));
        if Pin::new(&mut *self.socket).start_send(message).is_ok() {
            let goodbye = if reason.breaks_framing() { Goodbye::Discard } else { Goodbye::Read };
            self.finish(goodbye).await;
        }
    }

    /// Sends the answer to the client's close, which the WebSocket has made.
    pub(crate) async fn answer_close(mut self) {
        self.finish(Goodbye::Read).await;
    }

    async fn finish(&mut self, goodbye: Goodbye) {
        let give_up_at = self.clock.monotonic().saturating_add(self.patience);
        poll_fn(|cx| {
            self.alarm.register(cx.waker());
            self.alarm.set(give_up_at);
            if self.clock.monotonic() >= give_up_at {
                return Poll::Ready(());
            }
            self.poll_finish(goodbye, cx)
        })
        .await;
    }

    fn poll_finish(&mut self, goodbye: Goodbye, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(Pin::new(&mut self.socket).poll_flush(cx)).is_err() {
            return Poll::Ready(());
        }
        match goodbye {
            Goodbye::Read => loop {
                if !matches!(ready!(self.socket.poll_next_unpin(cx)), Some(Ok(_))) {
                    return Poll::Ready(());
                }
            },
            Goodbye::Discard => {
                let socket = self.socket.get_mut();
                if ready!(Pin::new(&mut *socket).poll_shutdown(cx)).is_err() {
                    return Poll::Ready(());
                }
                let mut scratch = [0; 1024];
                loop {
                    let mut buffer = ReadBuf::new(&mut scratch);
                    let read = ready!(Pin::new(&mut *socket).poll_read(cx, &mut buffer));
                    if read.is_err() || buffer.filled().is_empty() {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }
}
