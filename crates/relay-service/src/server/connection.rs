//! [`HttpConnection`]: one accepted connection, from the TLS handshake to its last answer.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use bytes::Bytes;
use http::header::{CONNECTION, RETRY_AFTER};
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_events::ErrorBody;
use relay_ws::{ClientAddress, ConnectionPermit, LimitReached, Transport, TransportUnwrapper};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::accept::RefusalPermit;
use super::context::ServerContext;
use super::heads::HeadMemory;
use super::memory::ConnectionMemory;
use super::proxy::{self, ThroughProxy};
use super::stream::{HttpStream, Stalled};
use super::tls::HandshakeError;
use crate::http::{LIVE, live};

/// The bytes of a request's head, and of an answer, that a connection buffers at most.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;
/// The time that the answer to a refused connection may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest `Retry-After` of a refused connection. Each gets another time up to it.
const RETRY_WITHIN_SECONDS: u64 = 10;

pub(super) struct HttpConnection {
    context: Arc<ServerContext>,
    /// The address at the other end: the client's, or a proxy's.
    peer: IpAddr,
}

impl HttpConnection {
    pub(super) fn new(context: Arc<ServerContext>, peer: IpAddr) -> Self {
        Self { context, peer }
    }

    /// Answers its requests until it ends or, once `closing` is cancelled, has no request under way.
    pub(super) async fn serve(
        self,
        stream: TcpStream,
        permit: ConnectionPermit,
        router: Router,
        closing: CancellationToken,
    ) {
        let memory = self.memory();
        let answer = |mut request: Request<Incoming>| {
            let proxies = &self.context.config.trusted_proxies;
            let client = proxy::client_address(proxies, self.peer, request.headers());
            let client = proxy::limited_address(client);
            let extensions = request.extensions_mut();
            extensions.insert(ClientAddress(client));
            extensions.insert(memory.of_client(client));
            if proxy::is_trusted(proxies, self.peer) {
                extensions.insert(ThroughProxy);
            }
            extensions.insert(TransportUnwrapper(unwrap));
            router.clone().oneshot(request.map(Body::new))
        };
        self.serve_http(stream, &memory, answer, &closing).await;
        drop(permit);
    }

    /// Answers one request with 503, or that the process lives if the request asks for that.
    pub(super) async fn refuse(self, stream: TcpStream, permit: RefusalPermit, reached: LimitReached) {
        let answer = move |request: Request<Incoming>| async move {
            let mut response = match request.uri().path() {
                LIVE => live().await.into_response(),
                _ => refusal_response(reached),
            };
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            Ok(response)
        };
        let (memory, never) = (self.memory(), CancellationToken::new());
        let served = tokio::time::timeout(REFUSAL_TIMEOUT, self.serve_http(stream, &memory, answer, &never));
        match permit.revoked.run_until_cancelled(served).await {
            Some(Ok(())) => {}
            Some(Err(_)) => {
                tracing::debug!(peer = %self.peer, "a connection was too slow to read that it is refused");
            }
            None => self.context.counters.unanswered.increment(),
        }
    }

    /// The memory of the connection. Behind a proxy, the head itself tells the client's address.
    fn memory(&self) -> ConnectionMemory {
        let ServerContext { config, memory, .. } = &*self.context;
        ConnectionMemory::new(memory.clone(), proxy::limited_peer(&config.trusted_proxies, self.peer))
    }

    /// Serves HTTP on the connection, over TLS if there is a certificate.
    async fn serve_http<F: Future<Output = Result<Response, Infallible>> + Send>(
        &self,
        stream: TcpStream,
        memory: &ConnectionMemory,
        answer: impl Fn(Request<Incoming>) -> F + Send,
        closing: &CancellationToken,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(peer = %self.peer, %error, "a connection was gone before it was served");
            return;
        }
        let ServerContext { tls, counters, .. } = &*self.context;
        let Some(tls) = tls else {
            return self.answer_requests(stream, memory, answer, closing).await;
        };
        let handshake = tokio::select! {
            () = closing.cancelled() => return,
            handshake = tls.handshake(stream) => handshake,
        };
        match handshake {
            Ok(stream) => self.answer_requests(stream, memory, answer, closing).await,
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
        memory: &ConnectionMemory,
        answer: impl Fn(Request<Incoming>) -> F + Send,
        closing: &CancellationToken,
    ) {
        let ServerContext { config, counters, .. } = &*self.context;
        let heads = HeadMemory::new(memory.own().clone());
        let stream = HttpStream::new(stream, config.write_timeout, heads.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(reserved) = heads.begin_answer() {
                request.extensions_mut().insert(Arc::new(reserved));
            }
            let (answered, heads) = (answer(request), heads.clone());
            async move {
                let response = answered.await;
                heads.end_answer();
                response
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
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

/// Returns the socket without the limits of HTTP: WebSocket connections have limits of their own.
fn unwrap(upgraded: Upgraded) -> Result<(Transport, Bytes), Upgraded> {
    let upgraded = match upgraded.downcast::<TokioIo<HttpStream<TcpStream>>>() {
        Ok(parts) => return Ok((Transport::Tcp(parts.io.into_inner().into_inner()), parts.read_buf)),
        Err(other) => other,
    };
    let parts = upgraded.downcast::<TokioIo<HttpStream<TlsStream<TcpStream>>>>()?;
    Ok((Transport::Other(Box::new(parts.io.into_inner().into_inner())), parts.read_buf))
}

fn has_stalled(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.and_then(io::Error::get_ref).is_some_and(<dyn StdError + Send + Sync>::is::<Stalled>)
}

fn refusal_response(reached: LimitReached) -> Response {
    let body = ErrorBody::new(reached.reason()).message(reached.to_string());
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    let headers = response.headers_mut();
    // Spread over time, so that clients that are refused together do not come back together.
    headers.insert(RETRY_AFTER, HeaderValue::from(rand::random_range(1..=RETRY_WITHIN_SECONDS)));
    response
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use relay_core::{MemoryBudget, MemoryPurpose, MemoryShare};
    use relay_ws::ConnectionLimits;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::HttpConfig;
    use crate::server::accept::{AcceptDecision, AcceptPolicy};
    use crate::server::stats::HttpCounters;

    #[tokio::test]
    async fn the_requests_of_a_connection_have_the_share_in_which_their_heads_count() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let policy = AcceptPolicy::new(ConnectionLimits { total: 1, per_address: None });
        let AcceptDecision::Serve(permit) = policy.decide(None) else { panic!("not served") };
        let memory = MemoryBudget::default();
        let context = ServerContext {
            config: HttpConfig::default(),
            tls: None,
            policy,
            counters: HttpCounters::default(),
            memory: memory.clone(),
        };
        // The handler keeps a reservation of 1 byte for each request.
        let kept = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let handler = async move |request: axum::extract::Request| {
            let share = request.extensions().get::<MemoryShare>().unwrap();
            let used = share.used();
            kept.lock().push(share.charge(MemoryPurpose::Requests, 1));
            used.to_string()
        };
        let router = Router::new().route("/", post(handler));
        let connection = HttpConnection::new(Arc::new(context), peer.ip());
        let serving = connection.serve(stream, permit, router, CancellationToken::new());
        let asking = async {
            let mut answers = String::new();
            for (number, connection) in ["keep-alive", "close"].into_iter().enumerate() {
                let begun = format!("POST / HTTP/1.1\r\nhost: localhost\r\nx-long: {}", "x".repeat(10_000));
                client.write_all(begun.as_bytes()).await.unwrap();
                while memory.total().used() < 12 * 1024 + number {
                    tokio::task::yield_now().await;
                }
                let end = format!("\r\nconnection: {connection}\r\ncontent-length: 0\r\n\r\n");
                client.write_all(end.as_bytes()).await.unwrap();
                while !answers.ends_with(&(12 * 1024 + number).to_string()) {
                    let mut answer = [0; 1024];
                    let read = client.read(&mut answer).await.unwrap();
                    assert!(read > 0, "{answers}");
                    answers += std::str::from_utf8(&answer[..read]).unwrap();
                }
            }
        };
        tokio::join!(serving, asking);
    }
}
