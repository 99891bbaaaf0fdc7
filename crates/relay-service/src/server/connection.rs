//! One accepted connection, from TLS to its last answer.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CONNECTION, RETRY_AFTER};
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_ws::{ClientAddress, Transport, TransportUnwrapper};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::doors::{Place, Refusal};
use super::stall::{StallLimit, Stalled};
use super::tls::HandshakeError;
use super::{Inner, Server, proxy};
use crate::http::Problem;
use crate::http::host::ThroughProxy;

/// How many bytes of a request's head, and of an answer, a connection buffers.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a connection may take to be told that it is refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Those who are refused are told to come back after at most so many seconds, each after another time.
const RETRY_WITHIN_SECONDS: u64 = 10;

pub(super) struct Connection {
    server: Server,
    /// Who is at the other end: the client, or a proxy.
    peer: IpAddr,
}

impl Connection {
    pub(super) fn new(server: Server, peer: IpAddr) -> Self {
        Self { server, peer }
    }

    /// Answers its requests until it ends or, once `closing` is cancelled, has no request under way.
    pub(super) async fn serve(
        self,
        stream: TcpStream,
        place: Place,
        router: Router,
        closing: CancellationToken,
    ) {
        let answer = |mut request: Request<Incoming>| {
            let proxies = &self.inner().config.trusted_proxies;
            let client = proxy::client_address(proxies, self.peer, request.headers());
            let extensions = request.extensions_mut();
            extensions.insert(ClientAddress(client));
            if proxy::is_trusted(proxies, self.peer) {
                extensions.insert(ThroughProxy);
            }
            extensions.insert(TransportUnwrapper(unwrap));
            router.clone().oneshot(request.map(Body::new))
        };
        self.converse(stream, answer, &closing).await;
        drop(place);
    }

    /// Answers one request with 503.
    pub(super) async fn refuse(self, stream: TcpStream, place: Place, refusal: Refusal) {
        let answer = |_: Request<Incoming>| std::future::ready(Ok(refusal_response(refusal)));
        let never = CancellationToken::new();
        let told = self.converse(stream, answer, &never);
        if tokio::time::timeout(REFUSAL_TIMEOUT, told).await.is_err() {
            tracing::debug!(peer = %self.peer, "a connection was too slow to be told that it is refused");
        }
        drop(place);
    }

    fn inner(&self) -> &Inner {
        &self.server.inner
    }

    /// Speaks HTTP, over TLS if there is a certificate.
    async fn converse<F: Future<Output = Result<Response, Infallible>> + Send>(
        &self,
        stream: TcpStream,
        answer: impl Fn(Request<Incoming>) -> F + Send,
        closing: &CancellationToken,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(peer = %self.peer, %error, "a connection was gone before it was served");
            return;
        }
        let Inner { tls, counters, .. } = self.inner();
        let Some(tls) = tls else {
            return self.answer_requests(stream, answer, closing).await;
        };
        let agreed = tokio::select! {
            () = closing.cancelled() => return,
            agreed = tls.handshake(stream) => agreed,
        };
        match agreed {
            Ok(stream) => self.answer_requests(stream, answer, closing).await,
            Err(error) => {
                match error {
                    HandshakeError::TimedOut(_) => counters.tls_timeouts.increment(),
                    HandshakeError::Failed(_) => counters.tls_failures.increment(),
                }
                tracing::debug!(peer = %self.peer, %error, "connection ended");
            }
        }
    }

    async fn answer_requests<F: Future<Output = Result<Response, Infallible>> + Send>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        answer: impl Fn(Request<Incoming>) -> F + Send,
        closing: &CancellationToken,
    ) {
        let Inner { config, counters, .. } = self.inner();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(StallLimit::new(stream, config.write_timeout)), service_fn(answer))
            .with_upgrades();
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        let Err(error) = ended else { return };
        if error.is_timeout() {
            counters.head_timeouts.increment();
        } else if has_stalled(&error) {
            counters.write_timeouts.increment();
        }
        tracing::debug!(peer = %self.peer, %error, "connection ended");
    }
}

/// Takes off what is there for HTTP alone: WebSocket connections have time-outs of their own.
fn unwrap(upgraded: Upgraded) -> Result<(Transport, Bytes), Upgraded> {
    let upgraded = match upgraded.downcast::<TokioIo<StallLimit<TcpStream>>>() {
        Ok(parts) => return Ok((Transport::Tcp(parts.io.into_inner().into_inner()), parts.read_buf)),
        Err(other) => other,
    };
    let parts = upgraded.downcast::<TokioIo<StallLimit<TlsStream<TcpStream>>>>()?;
    Ok((Transport::Other(Box::new(parts.io.into_inner().into_inner())), parts.read_buf))
}

fn has_stalled(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.and_then(io::Error::get_ref).is_some_and(<dyn StdError + Send + Sync>::is::<Stalled>)
}

fn refusal_response(refusal: Refusal) -> Response {
    let (reason, message) = match refusal {
        Refusal::Full { max } => (
            "too_many_connections",
            format!("{max} connections are open, the most that are allowed; try again later"),
        ),
        Refusal::TooManyFromAddress { max, address } => (
            "too_many_connections_from_address",
            format!("{max} connections from {address} are open, the most that are allowed; close one first"),
        ),
    };
    let mut response = Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason, message).into_response();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    // Spread, so that those who are refused together do not come back together.
    headers.insert(RETRY_AFTER, HeaderValue::from(rand::random_range(1..=RETRY_WITHIN_SECONDS)));
    response
}
