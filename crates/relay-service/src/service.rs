//! [`RelayService`]: it starts its parts in the order in which they need each other, and stops them in the reverse order.

#[cfg(test)]
mod failure_tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use relay_bus::{Bus, BusParts, Filter, LagPolicy, Subscription};
use relay_core::{
    Clock, Commands, ConnectionId, DocumentId, Draft, EventLog, JoinOptions, Joined, LogError, Membership,
    MemoryBudget, Presence, PublishAck, StartPosition, SubscribeAck, SubscribeError, SystemClock, UserId,
};
use relay_log::RecoveryReport;
use relay_presence::{LocalPresence, Locks};
use relay_router::{CausesKey, Router, RouterConfig, RouterError, RouterParts, VerifiedSink};
use relay_tasks::Supervisor;
use relay_ws::{WsParts, WsServer};
use tokio::net::TcpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::components::Components;
use crate::config::ServiceConfig;
use crate::error::{JoinError, PublishError, StartError};
use crate::http::{self, Api, Hosts};
use crate::participant::Participant;
use crate::publish::publish;
use crate::server::{Server, ServingTasks, TlsError};
use crate::stats::ServiceStats;
use crate::storage::OpenStorage;

/// The connections that wait to be accepted at most; the operating system may allow fewer.
const BACKLOG: u32 = 4096;

/// A running service. See the [crate's documentation](crate) for an example.
///
/// Stop it with [`RelayService::stop`]. Dropping it instead closes its connections without notice; every acknowledged
/// event is kept all the same.
pub struct RelayService {
    components: Components,
    recovery: Option<RecoveryReport>,
    address: Option<SocketAddr>,
    serving: Option<ServingTasks>,
    closing: DropGuard,
    stop_timeout: Duration,
}

impl fmt::Debug for RelayService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayService").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The outcome of [`RelayService::stop`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopped {
    /// True when every request was answered and every accepted event written within the time.
    pub complete: bool,
    /// The steps that were given up, in their order; none when `complete`.
    pub given_up: Vec<StopStep>,
}

/// A step of [`RelayService::stop`]. Its text form completes "the stop gave up …".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopStep {
    /// Clients that do not read their answers keep this step from its end.
    AnswerRequests,
    /// Sessions and locks end. What is not told by an event, the next server tells.
    EndSessions,
    /// Accepted events are written.
    WriteEvents,
    /// Deliveries to services end. The next server makes them again.
    EndDeliveries,
    /// The log is closed. The next server recovers it.
    CloseLog,
}

impl fmt::Display for StopStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AnswerRequests => "answering requests over HTTP",
            Self::EndSessions => "ending sessions and locks",
            Self::WriteEvents => "writing accepted events",
            Self::EndDeliveries => "ending deliveries to services",
            Self::CloseLog => "closing the log",
        })
    }
}

impl RelayService {
    /// Starts a service: opens the log, and listens if the configuration has an address.
    ///
    /// Must be called in a Tokio runtime, on which the service then lives. Not cancel-safe: dropped half way, the log
    /// may still be open for a moment.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ServiceConfig) -> Result<Self, StartError> {
        config.validate()?;
        let memory = MemoryBudget::new(config.memory);
        // Before the log is opened, so that a server that cannot serve leaves nothing behind.
        let server = match config.listen {
            None => None,
            Some(wanted) => {
                let bound = bind(wanted).map_err(|source| StartError::Listen { address: wanted, source })?;
                let server = Server::new(config.http.clone(), config.tls, memory.clone()).await?;
                Some((bound, wanted, server))
            }
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let supervisor = config.supervisor;
        let opening = config.storage.open(&clock, &supervisor, config.router.is_some());
        let OpenStorage { log, tokens, recovery, checkpoint } = opening.await?;
        let locks = Locks::with_memory(config.locks, Arc::clone(&clock), tokens, &memory)
            .map_err(|error| error.within("locks"))?;
        let mut parts = BusParts::new(Arc::clone(&clock));
        parts.memory = memory.clone();
        parts.log.clone_from(&log);
        parts.supervisor = supervisor.clone();
        parts.sequencers = vec![Arc::new(locks.clone())];
        let places_per_address = (config.bus.max_channels / 4).max(1);
        let bus = Bus::with_parts(config.bus, parts).map_err(|error| error.within("bus"))?;
        let router = start_router(config.router, log.clone(), &bus, &clock, &supervisor).await?;
        let verified_sink = VerifiedSink::new(Arc::new(bus.clone()), causes_key(router.as_ref()));
        let mut presence = config.presence;
        presence.reserved_state_fields = relay_ws::codec::RESERVED_STATE_FIELDS;
        let presence = LocalPresence::supervised(
            presence,
            Arc::new(bus.clone()),
            locks,
            Arc::clone(&clock),
            &supervisor,
            &memory,
        )
        .map_err(|error| error.within("presence"))?;
        // Before anybody can join or publish.
        if let (Some(log), Some(checkpoint)) = (&log, checkpoint) {
            let was_stopped = recovery.as_ref().is_some_and(|report| report.clean_shutdown);
            if let Err(error) = presence.end_leftovers(Arc::clone(log), checkpoint, was_stopped).await {
                tracing::error!(%error, "sessions and locks that the last server left open stay open in the log");
            }
        }
        let mut commands = Commands::default();
        presence.register_commands(&mut commands)?;
        let origins = config.ws.origins.clone();
        let mut parts = WsParts::new(Arc::new(bus.clone()), Arc::new(bus.clone()), Arc::clone(&clock));
        parts.presence = Some(Arc::new(presence.clone()));
        parts.commands = Arc::new(commands);
        parts.supervisor = supervisor.clone();
        parts.memory = memory.clone();
        let mut ws = config.ws;
        ws.max_documents_per_address.get_or_insert(places_per_address);
        let ws = WsServer::with_parts(ws, parts).map_err(|error| error.within("ws"))?;
        let components = Components {
            bus,
            verified_sink,
            presence,
            http: server.as_ref().map(|(_, _, server)| server.clone()),
            outcomes: Arc::default(),
            ws,
            router,
            log,
            memory,
            started: clock.monotonic(),
            clock,
            dropped_log_lines: config.dropped_log_lines,
            supervisor: supervisor.clone(),
        };
        let closing = CancellationToken::new();
        let (address, serving) = match server {
            None => (None, None),
            Some((bound, wanted, server)) => {
                let unusable = |source| StartError::Listen { address: wanted, source };
                let listener = bound.listen(BACKLOG).map_err(unusable)?;
                let address = listener.local_addr().map_err(unusable)?;
                let hosts = Hosts::new(&config.http.allowed_hosts, address);
                let api = Api::new(components.clone(), config.http, origins, hosts, closing.clone());
                let serving = server.serve(listener, http::router(api), closing.clone(), supervisor.group());
                (Some(address), Some(serving))
            }
        };
        Ok(Self {
            components,
            recovery,
            address,
            serving,
            closing: closing.drop_guard(),
            stop_timeout: config.stop_timeout,
        })
    }

    /// The address at which clients are served, with the port that the system gave. `None` when the service does not
    /// listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The report of opening the log on disk. `None` with other storage.
    pub fn recovery(&self) -> Option<&RecoveryReport> {
        self.recovery.as_ref()
    }

    /// The channels, for filters, handlers, and subscriptions to all documents.
    pub fn bus(&self) -> &Bus {
        &self.components.bus
    }

    /// Presence: sessions, participants, locks.
    pub fn presence(&self) -> &LocalPresence {
        &self.components.presence
    }

    /// The router, which delivers events to backend services. `None` when it is not configured.
    pub fn router(&self) -> Option<&Router> {
        self.components.router.as_ref()
    }

    /// Publishes `draft`, after checking that its payload fits its kind. A service's metadata `relay.causes` is that of a
    /// delivery, as over HTTP.
    ///
    /// Returns when the event is as durable as configured. Dropped before, the event may or may not happen.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, draft: Draft) -> Result<PublishAck, PublishError> {
        publish(&self.components.verified_sink, draft).await
    }

    /// Subscribes to a document's events. A slow reader is served from history as long as that reaches back. From its first
    /// read on it is one of the readers that [set the pace](relay_core::EventStream::stand_for) of the document's publishers.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub async fn subscribe(
        &self,
        document: &DocumentId,
        start: StartPosition,
    ) -> Result<(SubscribeAck, Subscription), SubscribeError> {
        self.components.bus.subscribe(document, start, Filter::all(), LagPolicy::Refill).await
    }

    /// Lets `user` take part in `document` from within this process, as a WebSocket client does from outside.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(
        &self,
        document: DocumentId,
        user: UserId,
        start: StartPosition,
    ) -> Result<Participant, JoinError> {
        let (ack, events) = self.subscribe(&document, start).await?;
        let membership = Membership { document, user, connection: ConnectionId::new() };
        let mut options = JoinOptions::default();
        options.exempt_from_timeout = true;
        let Components { bus, presence, .. } = &self.components;
        let Joined { session, .. } = presence.join(&membership, options).await?;
        Ok(Participant::new(bus.clone(), presence.clone(), membership, session, ack, events))
    }

    /// Reads the certificate and its key again, for connections that are accepted from now on. Returns false when the
    /// service has none.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate that was in use stays in use.
    pub async fn reload_certificate(&self) -> Result<bool, TlsError> {
        match &self.components.http {
            Some(server) => server.reload_certificate().await,
            None => Ok(false),
        }
    }

    /// The counters and gauges of all parts.
    pub fn stats(&self) -> ServiceStats {
        self.components.stats()
    }

    /// Stops the service, in this order:
    ///
    /// 1. No new connection is accepted. WebSocket clients and event streams are asked to come back later, and requests
    ///    under way are answered.
    /// 2. Sessions and locks end.
    /// 3. Accepted events are written, and streams end.
    /// 4. Deliveries to services that are under way end.
    /// 5. The log is closed.
    ///
    /// Steps that are not done within [`stop_timeout`](ServiceConfig::stop_timeout) are given up, each with a warning in the
    /// program's log. Each of 2 to 5 has a twentieth of the time at least. The closing of a store that is given up goes on in the
    /// background.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the log could not be flushed; every event acknowledged before is kept all the same.
    pub async fn stop(self) -> Result<Stopped, LogError> {
        let Components { bus, presence, ws, router, log, clock, .. } = self.components;
        let deadline = clock.monotonic() + self.stop_timeout;
        // What slow clients take is not lacking for the steps after them.
        let least = self.stop_timeout / 20;
        let left = || deadline.since(clock.monotonic()).saturating_sub(5 * least).max(least);
        drop(self.closing);
        // Side by side, so that slow clients of the one do not take the time of the other.
        let http = async {
            match self.serving {
                Some(serving) => serving.end(left()).await,
                None => true,
            }
        };
        let ((), http_drained) = tokio::join!(ws.shutdown(left()), http);
        let presence_drained = presence.shutdown(left()).await;
        let bus_drained = bus.shutdown(left()).await.complete;
        let router_drained = match &router {
            // It closes its store at last.
            Some(router) => tokio::time::timeout(left() + least, router.stop(left())).await.unwrap_or(false),
            None => true,
        };
        let log_closed = match log {
            Some(log) => {
                let time = deadline.since(clock.monotonic());
                tokio::time::timeout(time, log.close())
                    .await
                    .map_or(Ok(false), |closed| closed.map(|()| true))?
            }
            None => true,
        };
        let steps = [
            (StopStep::AnswerRequests, http_drained),
            (StopStep::EndSessions, presence_drained),
            (StopStep::WriteEvents, bus_drained),
            (StopStep::EndDeliveries, router_drained),
            (StopStep::CloseLog, log_closed),
        ];
        let given_up: Vec<_> =
            steps.into_iter().filter(|(_, is_done)| !is_done).map(|(step, _)| step).collect();
        for step in &given_up {
            tracing::warn!(%step, "a step of the stop is given up; every acknowledged event is kept");
        }
        Ok(Stopped { complete: given_up.is_empty(), given_up })
    }
}

/// Starts the router, where one is configured and there is a log.
async fn start_router(
    config: Option<RouterConfig>,
    log: Option<Arc<dyn EventLog>>,
    bus: &Bus,
    clock: &Arc<dyn Clock>,
    supervisor: &Supervisor,
) -> Result<Option<Router>, RouterError> {
    let (Some(config), Some(log)) = (config, log) else { return Ok(None) };
    let (sink, clock) = (Arc::new(bus.clone()), Arc::clone(clock));
    let mut parts = RouterParts::new(log, sink, clock);
    parts.supervisor = supervisor.clone();
    Router::start(config, parts).await.map(Some)
}

/// The key of the causes that services may publish. Without a router nothing is delivered, so no chain has the signature of its
/// key.
fn causes_key(router: Option<&Router>) -> CausesKey {
    router.map_or_else(|| CausesKey::new(&rand::random()), Router::causes_key)
}

/// Binds a socket to an address. Clients cannot connect to it yet.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // An address whose last connections are still ending may be taken again.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_configuration_that_breaks_a_rule_is_refused_at_start() {
        let directory = tempfile::tempdir().unwrap();
        let log = relay_log::LogConfig::new(directory.path().join("log"));
        let mut bus = relay_bus::BusConfig::default();
        bus.max_payload_bytes = 4 * 1024 * 1024;
        let storage = crate::Storage::Embedded(log);
        let config = ServiceConfig { storage, bus, ..ServiceConfig::in_process() };
        let refused = RelayService::start(config).await.unwrap_err();
        let StartError::Config(error) = &refused else { panic!("{refused}") };
        assert_eq!(error.field, "log.max_event_bytes");
        assert!(error.rule.contains("4194304"), "{refused}");
    }
}
