//! The HTTP server: it accepts connections, serves them and closes them.
//!
//! Every connection has limits of time and memory, whatever its client does. [`accept`] takes or refuses it when it is
//! accepted. The handshake, each request's head and each write have time-outs. A head that arrives in part
//! counts to the memory.

mod accept;
mod connection;
mod context;
mod heads;
mod memory;
mod proxy;
mod stats;
mod stream;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use relay_core::MemoryBudget;
use relay_tasks::{TaskGroup, TaskName};
use relay_ws::{ConnectionLimits, LimitReached};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::accept::{AcceptDecision, AcceptPolicy};
pub(crate) use self::connection::HEAD_BYTES;
use self::connection::HttpConnection;
use self::context::ServerContext;
pub(crate) use self::proxy::ThroughProxy;
use self::stats::HttpCounters;
pub use self::stats::{HttpStats, RefusedConnections, TimedOut};
use self::tls::Tls;
pub use self::tls::TlsError;
use crate::config::{HttpConfig, TlsConfig};

/// The task that accepts connections.
const ACCEPTOR: TaskName = TaskName::new("http.acceptor");
/// The task of one connection.
const CONNECTION: TaskName = TaskName::new("http.connection");

/// The pause before accepting again when the operating system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Server {
    context: Arc<ServerContext>,
}

impl Server {
    /// A server with these limits. It uses TLS when there is a certificate.
    pub(crate) async fn new(
        config: HttpConfig,
        tls: Option<TlsConfig>,
        memory: MemoryBudget,
    ) -> Result<Self, TlsError> {
        let tls = match tls {
            Some(tls) => Some(Tls::new(tls).await?),
            None => None,
        };
        let policy = AcceptPolicy::new(ConnectionLimits {
            total: config.max_connections,
            per_address: config.max_connections_per_address,
        });
        let context = ServerContext { config, tls, policy, counters: HttpCounters::default(), memory };
        Ok(Self { context: Arc::new(context) })
    }

    /// Reads a certificate as a server with it does.
    pub(crate) async fn check_certificate(tls: TlsConfig) -> Result<(), TlsError> {
        Tls::new(tls).await.map(drop)
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

    /// Serves `router` on `listener` until `closing` is cancelled. Then each connection finishes its request under way. The
    /// tasks are those of `tasks`.
    ///
    /// A connection that became a WebSocket is no longer counted here.
    pub(crate) fn serve(
        self,
        listener: TcpListener,
        router: Router,
        closing: CancellationToken,
        tasks: TaskGroup,
    ) -> ServingTasks {
        let cut_off = CancellationToken::new();
        let acceptor = Acceptor {
            server: self,
            listener,
            router,
            closing,
            tasks: tasks.clone(),
            cut_off: cut_off.clone(),
        };
        tasks.keep_running(ACCEPTOR, acceptor, |acceptor| Box::pin(acceptor.run()));
        ServingTasks { tasks, cut_off: cut_off.drop_guard() }
    }
}

/// The tasks of a server that serves. Dropped, it closes the connections that are still open.
pub(crate) struct ServingTasks {
    tasks: TaskGroup,
    cut_off: DropGuard,
}

impl ServingTasks {
    /// Waits until the last connection is closed, at most for `timeout`. Returns true when all connections ended by themselves.
    pub(crate) async fn end(self, timeout: Duration) -> bool {
        self.tasks.close();
        let ended = tokio::time::timeout(timeout, self.tasks.wait()).await.is_ok();
        drop(self.cut_off);
        self.tasks.wait().await;
        ended
    }
}

/// The task that accepts connections.
struct Acceptor {
    server: Server,
    listener: TcpListener,
    router: Router,
    closing: CancellationToken,
    tasks: TaskGroup,
    /// Ends all tasks at once.
    cut_off: CancellationToken,
}

impl Acceptor {
    async fn run(&mut self) {
        let ServerContext { counters, .. } = &*self.server.context;
        loop {
            let accepted = tokio::select! {
                () = self.closing.cancelled() => return,
                () = self.cut_off.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.accept(stream, peer),
                // The client has gone already.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Clients can make it fail for as long as they like. It is counted, and the first one is a warning.
                    if counters.accept_failures.increment_first() {
                        tracing::warn!(%error, "a connection could not be accepted; is the limit of open files too low?");
                    } else {
                        tracing::debug!(%error, "a connection could not be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts a task that serves the connection or refuses it, or closes the connection at once.
    fn accept(&self, stream: TcpStream, peer: SocketAddr) {
        let context = &self.server.context;
        let ServerContext { config, policy, counters, .. } = &**context;
        counters.connections.increment();
        let peer = peer.ip().to_canonical();
        let connection = HttpConnection::new(Arc::clone(context), peer);
        match policy.decide(proxy::limited_peer(&config.trusted_proxies, peer)) {
            AcceptDecision::Serve(permit) => {
                self.spawn(connection.serve(stream, permit, self.router.clone(), self.closing.clone()));
            }
            AcceptDecision::Refuse(permit, reached) => {
                match reached {
                    LimitReached::Total { .. } => counters.too_many_connections.increment(),
                    LimitReached::Address { .. } => counters.too_many_connections_from_address.increment(),
                }
                self.spawn(connection.refuse(stream, permit, reached));
            }
        }
    }

    fn spawn(&self, serving: impl Future<Output = ()> + Send + 'static) {
        let cut_off = self.cut_off.clone();
        let serving = async move { _ = cut_off.run_until_cancelled_owned(serving).await };
        drop(self.tasks.spawn(CONNECTION, serving));
    }
}
