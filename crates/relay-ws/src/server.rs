//! [`WsServer`]: it answers upgrades, hands the connections to its shards, and closes them when it stops.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use relay_core::{
    Clock, ConfigError, ConnectionId, DocumentId, DocumentLimiter, EventSink, EventSource, MemoryBudget,
    MemoryShare, UserId,
};
use relay_metrics::{LatencyStats, LatencyWindow, Merge};
use relay_tasks::{TaskGroup, TaskName};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::admission::{Admissions, ClientAddress};
use crate::config::WsConfig;
use crate::connection_limiter::ConnectionPermit;
use crate::framing::DeflateParams;
use crate::handshake::{self, Protocol, ValidUpgrade};
use crate::membership_counts::MembershipCounts;
use crate::parts::WsParts;
use crate::rejection::Rejection;
use crate::request::Identity;
use crate::shard::Shard;
use crate::shard_context::ShardDeps;
use crate::shard_queue::{CloseOnDrop, NewConnection, ShardQueue, ShardRequest};
use crate::socket::Upgrade;
use crate::stats::{ConnectionStats, Counters, Member, RoomStats, ShardGauges, ShardStats, WsStats};

/// The task of a shard.
const SHARD: TaskName = TaskName::new("ws.shard");
/// The task that waits for the socket of an upgrade.
const UPGRADE: TaskName = TaskName::new("ws.upgrade");

/// A server of WebSocket connections that speak Phoenix Channels.
///
/// Clones share one server. Dropping the last clone cuts off the connections that are still open.
/// [`WsServer::shutdown`] asks their clients to connect again first.
#[derive(Clone)]
pub struct WsServer {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<WsConfig>,
    clock: Arc<dyn Clock>,
    memory: MemoryBudget,
    admissions: Admissions,
    documents: DocumentLimiter,
    membership_counts: Arc<MembershipCounts>,
    shards: Vec<ShardHandle>,
    /// The number of connections that shards were given. The next one goes to the next shard.
    turn: AtomicUsize,
    /// The counters of connections that have not reached a shard.
    counters: Counters,
    broadcasts: Arc<LatencyWindow>,
    /// The tasks of upgrades that were answered and have no socket yet.
    upgrades: TaskGroup,
    /// The tasks of the shards.
    running: TaskGroup,
    /// Cancelling it ends all tasks at once.
    cut_off: CancellationToken,
    _cut_off_on_drop: DropGuard,
}

/// A shard as the server sees it.
struct ShardHandle {
    queue: Arc<ShardQueue>,
    counters: Arc<Counters>,
    gauges: Arc<ShardGauges>,
}

impl WsServer {
    /// A server whose clients publish to `sink` and get the events of their documents from `source`. It has no presence and
    /// no commands; see [`WsServer::with_parts`].
    ///
    /// # Errors
    /// [`ConfigError`] when a field of `config` is out of bounds.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    pub fn new(
        config: WsConfig,
        sink: Arc<dyn EventSink>,
        source: Arc<dyn EventSource>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        Self::with_parts(config, WsParts::new(sink, source, clock))
    }

    /// A server with these parts.
    ///
    /// # Errors
    /// [`ConfigError`] when a field of `config` is out of bounds.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    pub fn with_parts(config: WsConfig, parts: WsParts) -> Result<Self, ConfigError> {
        config.validate()?;
        let config = Arc::new(config);
        let (membership_counts, broadcasts) =
            (Arc::new(MembershipCounts::default()), Arc::new(LatencyWindow::new()));
        let documents = DocumentLimiter::new(config.max_documents_per_address);
        let (cut_off, running) = (CancellationToken::new(), parts.supervisor.group());
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = config.shards.unwrap_or_else(cores);
        let shards = (0..count).map(|index| {
            let queue = Arc::new(ShardQueue::new());
            let (counters, gauges): (Arc<Counters>, Arc<ShardGauges>) = Default::default();
            let deps = Arc::new(ShardDeps {
                config: Arc::clone(&config),
                parts: parts.clone(),
                membership_counts: Arc::clone(&membership_counts),
                documents: documents.clone(),
                counters: Arc::clone(&counters),
                gauges: Arc::clone(&gauges),
                broadcasts: Arc::clone(&broadcasts),
            });
            let closing = CloseOnDrop(Arc::clone(&queue));
            let serving = (Shard::new(deps, index, Arc::clone(&queue)), cut_off.clone(), closing);
            running.keep_running(SHARD, serving, |(shard, until, _)| {
                Box::pin(async { _ = until.run_until_cancelled(shard.run()).await })
            });
            ShardHandle { queue, counters, gauges }
        });
        let inner = Inner {
            shards: shards.collect(),
            admissions: Admissions::new(&config),
            documents,
            config,
            clock: parts.clock,
            memory: parts.memory,
            membership_counts,
            turn: AtomicUsize::new(0),
            counters: Counters::default(),
            broadcasts,
            upgrades: parts.supervisor.group(),
            running,
            _cut_off_on_drop: cut_off.clone().drop_guard(),
            cut_off,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Answers an upgrade request. The response 101 accepts it, and the connection is then served. Any other response has a
    /// JSON body that names the reason. 400, 403, 405 and 426 stand for a defect of the request, and 503 for a limit that is
    /// reached. 503 has a `Retry-After`. When clients connect faster than [`admission_rate`](WsConfig::admission_rate), the response is
    /// delayed until the client's turn.
    ///
    /// The request needs hyper's upgrade among its extensions, where `hyper` and `axum` put it. Connections are counted per
    /// address if the extensions have a [`ClientAddress`]. What the WebSocket holds counts to the [`MemoryShare`] among them,
    /// for a server that counts the connection already; without one it gets a share of its own.
    ///
    /// Cancel-safe: when the future is dropped, the connection does not count any more.
    pub async fn upgrade<B>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        self.answer(request, Protocol::Phoenix).await
    }

    /// Answers an upgrade request like [`WsServer::upgrade`], for a connection that sends every message back. It serves to
    /// test the network between a client and the server, and the conformance to RFC 6455. Cancel-safe like `upgrade`.
    pub async fn upgrade_to_echo<B>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        self.answer(request, Protocol::Echo).await
    }

    async fn answer<B>(&self, mut request: Request<B>, protocol: Protocol) -> Response<Full<Bytes>> {
        let upgrade = Upgrade::of(&mut request);
        let address = request.extensions().get::<ClientAddress>().map(|address| address.0);
        let memory = request.extensions().get::<MemoryShare>().cloned();
        let memory = memory.unwrap_or_else(|| self.inner.memory.connection(address));
        let checked = handshake::check(&request, protocol, &self.inner.config);
        // The request may be of a type that other threads cannot use, so it must not live across an await.
        drop(request);
        let answered = async { self.admit(checked?, upgrade, address, protocol, memory).await }.await;
        answered.unwrap_or_else(|rejection: Rejection| {
            tracing::debug!(?rejection, "an upgrade is refused");
            self.inner.counters.refused.increment(rejection.reason);
            rejection.response()
        })
    }

    async fn admit(
        &self,
        mut accepted: ValidUpgrade,
        upgrade: Option<Upgrade>,
        address: Option<IpAddr>,
        protocol: Protocol,
        memory: MemoryShare,
    ) -> Result<Response<Full<Bytes>>, Rejection> {
        let inner = &self.inner;
        let upgrade = upgrade
            .ok_or_else(|| Rejection::bad_request("this connection cannot be upgraded; use HTTP/1.1"))?;
        let admitted = inner.admissions.admit(address, inner.clock.monotonic())?;
        if !admitted.wait.is_zero() {
            tokio::time::sleep(admitted.wait).await;
        }
        let connection = ConnectionId::new();
        let user = match accepted.user.take() {
            Some(user) => user,
            None => UserId::new(format!("guest-{connection}"))
                .map_err(|error| Rejection::bad_request(error.to_string()))?,
        };
        let identity = Identity { connection, user };
        let serving = self.serve(upgrade, identity, protocol, accepted.deflate(), admitted.permit, memory);
        let until = inner.cut_off.clone();
        drop(inner.upgrades.spawn(UPGRADE, async move { until.run_until_cancelled_owned(serving).await }));
        Ok(accepted.response())
    }

    /// Waits for the socket and hands it to a shard.
    fn serve(
        &self,
        upgrade: Upgrade,
        identity: Identity,
        protocol: Protocol,
        deflate: Option<DeflateParams>,
        permit: ConnectionPermit,
        memory: MemoryShare,
    ) -> impl Future<Output = ()> + Send + 'static {
        let inner = Arc::clone(&self.inner);
        async move {
            match tokio::time::timeout(inner.config.handshake_timeout, upgrade.socket()).await {
                Ok(Ok(socket)) => {
                    let new_connection =
                        NewConnection { socket, identity, protocol, deflate, permit, memory };
                    let turn = inner.turn.fetch_add(1, Ordering::Relaxed) % inner.shards.len();
                    inner.shards[turn].queue.submit(ShardRequest::Serve(Box::new(new_connection)));
                }
                Ok(Err(error)) => {
                    tracing::debug!(connection = %identity.connection, %error, "the upgrade was not finished");
                    inner.counters.lost.increment();
                }
                Err(_elapsed) => {
                    tracing::debug!(connection = %identity.connection, "the upgrade took too long");
                    inner.counters.lost.increment();
                }
            }
        }
    }

    /// The limiter of the documents that the clients of one address have joined. Other edges count their readers with it.
    pub fn documents(&self) -> &DocumentLimiter {
        &self.inner.documents
    }

    /// The counters of the whole server.
    pub fn stats(&self) -> WsStats {
        let inner = &self.inner;
        let (connections, rooms) = (inner.admissions.open(), inner.membership_counts.documents());
        let mut stats = inner.counters.snapshot(connections as u64, rooms as u64);
        // The gauges of the whole server are set already.
        inner.shards.iter().for_each(|shard| stats.merge(shard.counters.snapshot(0, 0)));
        stats
    }

    /// The latency of broadcasts. It is the time from the wake-up of a room by an event until the last write of the event to a
    /// member's socket or queue. Each batch of events counts once, with the time of its first event. Members that
    /// read at their own pace do not count.
    pub fn broadcast_latency(&self) -> LatencyStats {
        self.inner.broadcasts.stats(self.inner.clock.monotonic())
    }

    /// The counters of each shard.
    pub fn shards(&self) -> Vec<ShardStats> {
        let shards = self.inner.shards.iter().enumerate();
        shards
            .map(|(shard, handle)| ShardStats::new(shard, handle.gauges.snapshot(&handle.counters)))
            .collect()
    }

    /// The documents that at least one connection has joined, in no order.
    pub fn rooms(&self) -> Vec<RoomStats> {
        self.inner.membership_counts.list()
    }

    /// Asks every shard for the connections that have joined `document`. Their order is not defined. Cancel-safe.
    pub async fn members(&self, document: &DocumentId) -> Vec<Member> {
        self.ask(|answer| ShardRequest::Members(document.clone(), answer)).await
    }

    /// Asks every shard for the numbers of the connection `wanted`; `None` asks for all connections. Their order is not
    /// defined. Cancel-safe.
    pub async fn connections(&self, wanted: Option<ConnectionId>) -> Vec<ConnectionStats> {
        self.ask(|answer| ShardRequest::Connections(wanted, answer)).await
    }

    async fn ask<T>(&self, submit: impl Fn(oneshot::Sender<Vec<T>>) -> ShardRequest) -> Vec<T> {
        let mut all = Vec::new();
        for shard in &self.inner.shards {
            let (sender, answer) = oneshot::channel();
            shard.queue.submit(submit(sender));
            // A shard that has ended drops the sender, and has no connections.
            all.extend(answer.await.unwrap_or_default());
        }
        all
    }

    /// Stops the server, and returns when all tasks have ended.
    ///
    /// It refuses new connections and asks the client of every channel to connect again. It closes the connections with 1012,
    /// [`drain_rate`](WsConfig::drain_rate) of them per second, and all within half of `deadline`. Each connection answers
    /// its pushes first. After `deadline` the connections that are still open are cut off. A second call waits for the same
    /// end.
    ///
    /// Not cancel-safe: when the future is dropped, the server goes on stopping, but no deadline cuts connections off.
    pub async fn shutdown(&self, deadline: Duration) {
        let inner = &self.inner;
        inner.admissions.stop();
        inner.upgrades.close();
        inner.running.close();
        let open = u32::try_from(inner.admissions.open()).unwrap_or(u32::MAX);
        let over = Duration::from_secs(open.into()) / inner.config.drain_rate;
        // Times below a tick are not kept, so such a drain closes all connections at once.
        let over = if over < inner.config.tick { Duration::ZERO } else { over.min(deadline / 2) };
        inner.shards.iter().for_each(|shard| shard.queue.submit(ShardRequest::Drain { over }));
        let ending = async {
            inner.upgrades.wait().await;
            inner.shards.iter().for_each(|shard| shard.queue.submit(ShardRequest::End));
            inner.running.wait().await;
        };
        if tokio::time::timeout(deadline, ending).await.is_err() {
            let open = inner.admissions.open();
            tracing::warn!(open, "connections that did not close in time are cut off");
        }
        inner.cut_off.cancel();
        inner.upgrades.wait().await;
        inner.running.wait().await;
    }
}
