//! Accepting connections, and letting them go.
//!
//! Whatever a client does or does not do, a connection's time and memory have a limit: its place is taken or refused
//! when it is accepted ([`doors`]), and the handshake, each request's head and each write have their time-outs.

mod connection;
mod doors;
mod proxy;
mod stall;
mod stats;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::connection::Connection;
use self::doors::{Doors, Entry, Limits, Refusal};
use self::stats::Counters;
pub use self::stats::{HttpStats, RefusedConnections, TimedOut};
use self::tls::Tls;
pub use self::tls::TlsError;
use crate::config::{HttpConfig, TlsConfig};

/// How long accepting pauses when the operating system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Serves connections. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    config: HttpConfig,
    tls: Option<Tls>,
    doors: Doors,
    counters: Counters,
}

impl Server {
    /// A server with these limits, which speaks TLS when there is a certificate.
    pub(crate) async fn new(config: HttpConfig, tls: Option<TlsConfig>) -> Result<Self, TlsError> {
        let tls = match tls {
            Some(tls) => Some(Tls::new(tls).await?),
            None => None,
        };
        let limits = Limits {
            connections: config.max_connections,
            per_address: config.max_connections_per_address.unwrap_or(usize::MAX),
        };
        let inner = Inner { config, tls, doors: Doors::new(limits), counters: Counters::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reads the certificate again. False when there is none to read.
    pub(crate) async fn reload_certificate(&self) -> Result<bool, TlsError> {
        match &self.inner.tls {
            Some(tls) => tls.reload().await.map(|()| true),
            None => Ok(false),
        }
    }

    pub(crate) fn stats(&self) -> HttpStats {
        self.inner.counters.snapshot(self.inner.doors.open())
    }

    /// Serves `router` on `listener` until `closing` is cancelled, then lets every request under way be answered and
    /// returns when the last connection is closed. Dropped before, it closes what is still open.
    ///
    /// A connection that became a WebSocket is no longer counted here.
    pub(crate) async fn serve(self, listener: TcpListener, router: Router, closing: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = closing.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    self.report(ended);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.receive(&mut connections, stream, peer, &router, &closing),
                // The client has gone already.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.inner.counters.accept_failures.increment();
                    tracing::warn!(%error, "a connection could not be accepted; is the limit of open files too low?");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            self.report(ended);
        }
    }

    fn report(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            self.inner.counters.panicked.increment();
            tracing::error!(%error, "a connection ended by a bug in this server");
        }
    }

    /// Lets a connection in, or refuses it.
    fn receive(
        &self,
        connections: &mut JoinSet<()>,
        stream: TcpStream,
        peer: SocketAddr,
        router: &Router,
        closing: &CancellationToken,
    ) {
        let Inner { config, doors, counters, .. } = &*self.inner;
        counters.accepted.increment();
        let peer = peer.ip().to_canonical();
        let counted = (!proxy::is_trusted(&config.trusted_proxies, peer)).then_some(peer);
        let connection = Connection::new(self.clone(), peer);
        match doors.enter(counted) {
            Entry::LetIn(place) => {
                connections.spawn(connection.serve(stream, place, router.clone(), closing.clone()));
            }
            Entry::Refused(place, refusal) => {
                match refusal {
                    Refusal::Full { .. } => counters.full.increment(),
                    Refusal::TooManyFromAddress { .. } => counters.too_many_from_address.increment(),
                }
                connections.spawn(connection.refuse(stream, place, refusal));
            }
            Entry::Ignored => counters.unanswered.increment(),
        }
    }
}
