//! [`WsServer`]: takes upgrades, runs a task for each connection, and ends them all when it is told to.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use relay_core::{Clock, DocumentId, EventSink, EventSource, UserId};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::WsConfig;
use crate::connection::{Connection, Shared};
use crate::handshake::{self, Rejection};
use crate::registry::{Admission, NotAdmitted, Registry};
use crate::request::Identity;
use crate::rooms::{Member, RoomStats, Rooms};
use crate::stats::{Counters, WsStats};

/// The server side of WebSocket connections that speak Phoenix Channels. Cloning is cheap; all clones are one
/// server. When the last is dropped, connections that are still open are cut off; [`WsServer::shutdown`] is the
/// polite way.
#[derive(Clone)]
pub struct WsServer {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Shared,
    connections: TaskTracker,
    ticker: TaskTracker,
    /// Cancelled, everything ends at once.
    cut_off: CancellationToken,
    _cut_off_on_drop: DropGuard,
}

impl WsServer {
    /// A server whose clients publish to `sink` and get their documents' events from `source`. Time-outs are
    /// reckoned by `clock`.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    pub fn new(
        config: WsConfig,
        sink: Arc<dyn EventSink>,
        source: Arc<dyn EventSource>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let cut_off = CancellationToken::new();
        let shared = Shared {
            registry: Arc::new(Registry::new(config.max_connections)),
            config: Arc::new(config),
            sink,
            source,
            clock,
            rooms: Arc::new(Rooms::default()),
            counters: Arc::new(Counters::default()),
        };
        let ticker = TaskTracker::new();
        let ticking = tick(shared.config.tick, Arc::clone(&shared.registry), Arc::clone(&shared.clock));
        let until = cut_off.clone();
        ticker.spawn(async move { until.run_until_cancelled(ticking).await });
        ticker.close();
        let inner = Inner {
            shared,
            connections: TaskTracker::new(),
            ticker,
            _cut_off_on_drop: cut_off.clone().drop_guard(),
            cut_off,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Answers a request to `/socket/websocket`: with 101, and then serves the connection in a task of its own, or
    /// with an error whose JSON body says what is wrong: 400, 403, 405 or 426 for the request, 503 when there is no
    /// room for it. Needs hyper's upgrade in the request's extensions, where `hyper` and `axum` put it.
    pub fn upgrade<B>(&self, mut request: Request<B>) -> Response<Full<Bytes>> {
        match self.try_upgrade(&mut request) {
            Ok(response) => response,
            Err(rejection) => {
                tracing::debug!(?rejection, "an upgrade is refused");
                self.inner.shared.counters.refused.increment(rejection.reason);
                rejection.response()
            }
        }
    }

    fn try_upgrade<B>(&self, request: &mut Request<B>) -> Result<Response<Full<Bytes>>, Rejection> {
        let shared = &self.inner.shared;
        let mut accepted = handshake::check(request, &shared.config.origins)?;
        let upgrade = request
            .extensions_mut()
            .remove::<OnUpgrade>()
            .ok_or_else(|| Rejection::bad_request("this connection cannot be upgraded; use HTTP/1.1"))?;
        let admission = shared.registry.admit().map_err(|refused| match refused {
            NotAdmitted::Full { max } => Rejection::too_many_connections(max),
            NotAdmitted::Stopping => Rejection::closed(),
        })?;
        let user = match accepted.user.take() {
            Some(user) => user,
            None => UserId::new(format!("guest-{}", admission.connection))
                .map_err(|error| Rejection::bad_request(error.to_string()))?,
        };
        let identity = Identity { connection: admission.connection, user };
        shared.counters.connections.increment();
        let serving = serve(upgrade, shared.clone(), admission, identity);
        let until = self.inner.cut_off.clone();
        self.inner.connections.spawn(async move { until.run_until_cancelled(serving).await });
        Ok(accepted.response())
    }

    /// What has happened so far.
    pub fn stats(&self) -> WsStats {
        let shared = &self.inner.shared;
        shared.counters.snapshot(shared.registry.open_connections(), shared.rooms.count())
    }

    /// The documents that somebody has joined, in no order.
    pub fn rooms(&self) -> Vec<RoomStats> {
        self.inner.shared.rooms.list()
    }

    /// Who has joined `document`, in no order.
    pub fn members(&self, document: &DocumentId) -> Vec<Member> {
        self.inner.shared.rooms.members(document)
    }

    /// Stops: refuses new connections, answers what was pushed, tells every channel to reconnect, and closes every
    /// connection with 1012. Connections that are not over after `deadline` are cut off. Returns when all tasks
    /// have ended. Called again, it waits for the same.
    ///
    /// Not cancel-safe in this sense: dropped, the deadline is forgotten, and the connections end in their own time.
    pub async fn shutdown(&self, deadline: Duration) {
        self.inner.shared.registry.stop();
        self.inner.connections.close();
        if tokio::time::timeout(deadline, self.inner.connections.wait()).await.is_err() {
            let open = self.inner.connections.len();
            tracing::warn!(open, "connections that did not close in time are cut off");
        }
        self.inner.cut_off.cancel();
        self.inner.connections.wait().await;
        self.inner.ticker.wait().await;
    }
}

async fn serve(upgrade: OnUpgrade, shared: Shared, admission: Admission, identity: Identity) {
    let counters = Arc::clone(&shared.counters);
    let (connection, alarm) = (identity.connection, Arc::clone(&admission.alarm));
    let serving = async move {
        match upgrade.await {
            Ok(io) => Connection::new(TokioIo::new(io), shared, alarm, identity).await.run().await,
            Err(error) => {
                tracing::debug!(%connection, %error, "the upgrade was not finished");
                shared.counters.lost.increment();
            }
        }
    };
    if AssertUnwindSafe(serving).catch_unwind().await.is_err() {
        tracing::error!(%connection, "a connection ended by a panic, which is a bug; the others go on");
        counters.panicked.increment();
    }
    drop(admission);
}

/// Wakes connections whose time has come, for ever.
async fn tick(every: Duration, registry: Arc<Registry>, clock: Arc<dyn Clock>) {
    let mut interval = tokio::time::interval(every.max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        registry.tick(clock.monotonic());
    }
}
