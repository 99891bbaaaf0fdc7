//! The HTTP server: it accepts connections, serves them and closes them.
//!
//! Every connection has limits of time and memory, whatever its client does. [`accept`] takes or refuses it when it is
//! accepted. The handshake, each request's head and each write have time-outs.

mod accept;
mod connection;
mod context;
mod proxy;
mod stall;
mod stats;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use relay_ws::{ConnectionLimits, LimitReached};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::accept::{AcceptDecision, AcceptPolicy};
use self::connection::HttpConnection;
use self::context::ServerContext;
pub(crate) use self::proxy::ThroughProxy;
use self::stats::HttpCounters;
pub use self::stats::{HttpStats, RefusedConnections, TimedOut};
use self::tls::Tls;
pub use self::tls::TlsError;
use crate::config::{HttpConfig, TlsConfig};

/// The pause before accepting again when the operating system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Server {
    context: Arc<ServerContext>,
}

impl Server {
    /// A server with these limits. It uses TLS when there is a certificate.
    pub(crate) async fn new(config: HttpConfig, tls: Option<TlsConfig>) -> Result<Self, TlsError> {
        let tls = match tls {
            Some(tls) => Some(Tls::new(tls).await?),
            None => None,
        };
        let policy = AcceptPolicy::new(ConnectionLimits {
            total: config.max_connections,
            per_address: config.max_connections_per_address.unwrap_or(usize::MAX),
        });
        let context = ServerContext { config, tls, policy, counters: HttpCounters::default() };
        Ok(Self { context: Arc::new(context) })
    }

    /// Reads the certificate again. Returns false when there is none to read.
    pub(crate) async fn reload_certificate(&self) -> Result<bool, TlsError> {
        match &self.context.tls {
            Some(tls) => tls.reload().await.map(|()| true),
            None => Ok(false),
        }
    }

    pub(crate) fn stats(&self) -> HttpStats {
        self.context.counters.stats(self.context.policy.open())
    }

    /// Serves `router` on `listener` until `closing` is cancelled. Then it finishes every request under way, and returns
    /// when the last connection is closed. Dropped before, it closes the connections that are still open.
    ///
    /// A connection that became a WebSocket is no longer counted here.
    pub(crate) async fn serve(self, listener: TcpListener, router: Router, closing: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = closing.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    self.count_panic(ended);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.accept(&mut connections, stream, peer, &router, &closing),
                // The client has gone already.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.context.counters.accept_failures.increment();
                    tracing::warn!(%error, "a connection could not be accepted; is the limit of open files too low?");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            self.count_panic(ended);
        }
    }

    fn count_panic(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            self.context.counters.panicked.increment();
            tracing::error!(%error, "a connection ended by a bug in this server");
        }
    }

    /// Starts a task that serves the connection or refuses it, or closes the connection at once.
    fn accept(
        &self,
        connections: &mut JoinSet<()>,
        stream: TcpStream,
        peer: SocketAddr,
        router: &Router,
        closing: &CancellationToken,
    ) {
        let ServerContext { config, policy, counters, .. } = &*self.context;
        counters.connections.increment();
        let peer = peer.ip().to_canonical();
        let counted = (!proxy::is_trusted(&config.trusted_proxies, peer)).then_some(peer);
        let connection = HttpConnection::new(Arc::clone(&self.context), peer);
        match policy.decide(counted) {
            AcceptDecision::Serve(permit) => {
                connections.spawn(connection.serve(stream, permit, router.clone(), closing.clone()));
            }
            AcceptDecision::Refuse(permit, reached) => {
                match reached {
                    LimitReached::Total { .. } => counters.too_many_connections.increment(),
                    LimitReached::Address { .. } => counters.too_many_connections_from_address.increment(),
                }
                connections.spawn(connection.refuse(stream, permit, reached));
            }
            AcceptDecision::Close => counters.unanswered.increment(),
        }
    }
}
