//! The service: its parts are started in the order in which they need each other, and stopped in the reverse one.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use relay_bus::{Bus, BusParts, Filter, LagPolicy, Subscription};
use relay_core::{
    Clock, Commands, ConnectionId, DocumentId, Draft, DuplicateCommand, EventLog, JoinOptions, Joined,
    LogError, Membership, Presence, PublishAck, StartPosition, SubscribeAck, SubscribeError, SystemClock,
    TokenSource, UserId,
};
use relay_events::PayloadError;
use relay_log::{EmbeddedLog, LogConfig, OpenError, RecoveryReport};
use relay_presence::{FileTokens, LocalPresence, Locks, MemoryTokens, TokenFileError};
use relay_router::{Router, RouterConfig, RouterError, RouterParts};
use relay_ws::{WsParts, WsServer};
use tokio::net::TcpSocket;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::config::{ServiceConfig, Storage};
use crate::http::host::Hosts;
use crate::http::{self, Api};
use crate::participant::Participant;
use crate::server::{Server, TlsError};
use crate::stats::{Gauges, ServiceStats};

/// A running service. See the [crate's documentation](crate) for an example.
///
/// Stop it with [`RelayService::stop`]. Dropped instead, it closes its connections without a word; what was
/// acknowledged is kept all the same.
pub struct RelayService {
    bus: Bus,
    presence: LocalPresence,
    ws: WsServer,
    router: Option<Router>,
    log: Option<EmbeddedLog>,
    recovery: Option<RecoveryReport>,
    gauges: Gauges,
    address: Option<SocketAddr>,
    acceptor: Option<AbortOnDropHandle<()>>,
    closing: DropGuard,
    stop_timeout: Duration,
}

impl fmt::Debug for RelayService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayService").field("address", &self.address).finish_non_exhaustive()
    }
}

/// No event's envelope takes more bytes than this: metadata is the largest part of it, with 35 KiB at most.
const MAX_ENVELOPE_BYTES: usize = 64 * 1024;

/// The file of the fencing tokens in the log's directory.
const TOKENS: &str = "fencing-tokens";

/// How many connections may wait to be accepted; the operating system may allow fewer.
const BACKLOG: u32 = 4096;

/// Why a service does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A value of [`HttpConfig`](crate::HttpConfig) is zero, with which nothing would work.
    #[error("`http.{field}` is 0; it must be at least 1")]
    ZeroHttpLimit {
        /// The field's name.
        field: &'static str,
    },
    /// The log would refuse events that the channels take.
    #[error(
        "`bus.max_payload_bytes` is {payload}, for which `log.max_event_bytes` must be at least {needed}; it is {event}"
    )]
    EventLimit {
        /// The largest payload, in bytes.
        payload: usize,
        /// The largest event that the log takes, in bytes.
        event: u32,
        /// What it would have to take.
        needed: usize,
    },
    /// The WebSocket limits are not usable.
    #[error("ws: {0}")]
    Ws(#[from] relay_ws::ConfigError),
    /// The times or limits of presence are not usable.
    #[error("presence: {0}")]
    Presence(relay_core::ConfigError),
    /// The times or limits of locks are not usable.
    #[error("locks: {0}")]
    Locks(relay_core::ConfigError),
    /// The fencing tokens of locks cannot be kept.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// Two parts of the service have a command of the same name.
    #[error(transparent)]
    Commands(#[from] DuplicateCommand),
    /// The certificate or its key cannot be used.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// Events cannot be routed as they are to be.
    #[error("router: {0}")]
    Router(#[from] RouterError),
    /// Routing is wanted where events are not kept in a log.
    #[error(
        "events are routed from the log, and there is none in memory: leave `router` out, or keep events in a log"
    )]
    RouterWithoutLog,
    /// Opening the log panicked.
    #[error("opening the log ended by a bug: {0}")]
    LogPanicked(tokio::task::JoinError),
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}; is another server running there? Port 0 takes a free one")]
    Listen {
        /// The wanted address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Why a draft did not become an event.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The payload does not fit its kind.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The document's channel did not take it.
    #[error(transparent)]
    Channel(#[from] relay_core::PublishError),
}

/// Why somebody could not join.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The document cannot be followed.
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
    /// The participant is refused.
    #[error(transparent)]
    Refused(#[from] relay_core::JoinError),
}

/// How [`RelayService::stop`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// True when every request was answered and every accepted event written within the time.
    pub complete: bool,
}

impl RelayService {
    /// Starts a service: opens the log, and listens if it is to.
    ///
    /// Must be called in a Tokio runtime, on which the service then lives. Not cancel-safe: dropped half way, the log
    /// may still be open for a moment.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ServiceConfig) -> Result<Self, StartError> {
        config.ws.validate()?;
        config.presence.validate().map_err(StartError::Presence)?;
        config.locks.validate().map_err(StartError::Locks)?;
        if let Some(field) = config.http.zero_field() {
            return Err(StartError::ZeroHttpLimit { field });
        }
        if let Storage::Log(log) = &config.storage {
            let payload = config.bus.max_payload_bytes;
            let needed = payload.saturating_add(MAX_ENVELOPE_BYTES);
            if usize::try_from(log.max_event_bytes).is_ok_and(|max| max < needed) {
                return Err(StartError::EventLimit { payload, event: log.max_event_bytes, needed });
            }
        }
        if config.router.is_some() && matches!(config.storage, Storage::Memory) {
            return Err(StartError::RouterWithoutLog);
        }
        // Before the log is opened, so that a server that cannot serve leaves nothing behind.
        let server = match config.listen {
            None => None,
            Some(wanted) => {
                let bound = bind(wanted).map_err(|source| StartError::Listen { address: wanted, source })?;
                Some((bound, wanted, Server::new(config.http.clone(), config.tls).await?))
            }
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (log, recovery, tokens) = match config.storage {
            Storage::Memory => (None, None, Arc::new(MemoryTokens::new(&*clock)) as Arc<dyn TokenSource>),
            Storage::Log(config) => {
                let (log, recovery, tokens) = open(config, Arc::clone(&clock)).await?;
                (Some(log), Some(recovery), Arc::new(tokens) as Arc<dyn TokenSource>)
            }
        };
        let shared_log = log.clone().map(|log| Arc::new(log) as Arc<dyn EventLog>);
        let locks = Locks::new(config.locks, Arc::clone(&clock), tokens).map_err(StartError::Locks)?;
        let mut parts = BusParts::new(Arc::clone(&clock));
        parts.log = shared_log.clone();
        parts.sequencers = vec![Arc::new(locks.clone())];
        let bus = Bus::with_parts(config.bus, parts);
        let router = start_router(config.router, shared_log, &bus, &clock).await?;
        let presence = LocalPresence::new(config.presence, Arc::new(bus.clone()), locks, Arc::clone(&clock))
            .map_err(StartError::Presence)?;
        let mut commands = Commands::default();
        presence.register_commands(&mut commands)?;
        let origins = config.ws.origins.clone();
        let mut parts = WsParts::new(Arc::new(bus.clone()), Arc::new(bus.clone()), Arc::clone(&clock));
        parts.presence = Some(Arc::new(presence.clone()));
        parts.commands = Arc::new(commands);
        let ws = WsServer::with_parts(config.ws, parts);
        let started = clock.monotonic();
        let http = server.as_ref().map(|(_, _, server)| server.clone());
        let gauges = Gauges {
            bus: bus.clone(),
            presence: presence.clone(),
            http,
            outcomes: Arc::default(),
            ws: ws.clone(),
            router: router.clone(),
            log: log.clone(),
            clock,
            started,
        };
        let closing = CancellationToken::new();
        let (address, acceptor) = match server {
            None => (None, None),
            Some((bound, wanted, server)) => {
                let unusable = |source| StartError::Listen { address: wanted, source };
                let listener = bound.listen(BACKLOG).map_err(unusable)?;
                let address = listener.local_addr().map_err(unusable)?;
                let api = Api {
                    sink: Arc::new(bus.clone()),
                    source: Arc::new(bus.clone()),
                    presence: presence.clone(),
                    router: router.clone(),
                    gauges: gauges.clone(),
                    hosts: Hosts::new(&config.http.allowed_hosts, address),
                    config: config.http,
                    origins,
                    closing: closing.clone(),
                };
                let acceptor = tokio::spawn(server.serve(listener, http::router(api), closing.clone()));
                (Some(address), Some(AbortOnDropHandle::new(acceptor)))
            }
        };
        Ok(Self {
            bus,
            presence,
            ws,
            router,
            log,
            recovery,
            gauges,
            address,
            acceptor,
            closing: closing.drop_guard(),
            stop_timeout: config.stop_timeout,
        })
    }

    /// Where clients are served, with the port that was really taken. `None` when the service does not listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What was found when the log was opened. `None` without a log.
    pub fn recovery(&self) -> Option<&RecoveryReport> {
        self.recovery.as_ref()
    }

    /// The channels, for what goes beyond one document: filters, subscriptions to all documents, handlers.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Who is where: sessions, participants, locks.
    pub fn presence(&self) -> &LocalPresence {
        &self.presence
    }

    /// What takes events to backend services. `None` when it is not configured.
    pub fn router(&self) -> Option<&Router> {
        self.router.as_ref()
    }

    /// Publishes `draft`, after checking that its payload fits its kind.
    ///
    /// Answered when the event is as durable as configured. Dropped before, the event may or may not happen.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, draft: Draft) -> Result<PublishAck, PublishError> {
        publish(&self.bus, draft).await
    }

    /// Subscribes to a document's events. A slow reader is served from history as long as that reaches back.
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
        self.bus.subscribe(document, start, Filter::all(), LagPolicy::Refill).await
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
        let options = JoinOptions { exempt_from_timeout: true, ..JoinOptions::default() };
        let Joined { session, .. } = self.presence.join(&membership, options).await?;
        Ok(Participant::new(self.bus.clone(), self.presence.clone(), membership, session, ack, events))
    }

    /// Reads the certificate and its key again, for connections that are accepted from now on. False when the service
    /// has none.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate that was in use stays in use.
    pub async fn reload_certificate(&self) -> Result<bool, TlsError> {
        match &self.gauges.http {
            Some(server) => server.reload_certificate().await,
            None => Ok(false),
        }
    }

    /// What the service has done so far.
    pub fn stats(&self) -> ServiceStats {
        self.gauges.read()
    }

    /// Stops, in this order: no new connection is accepted; WebSocket clients and event streams are told to come
    /// back; requests under way are answered; sessions and locks end; what was accepted is written; streams end; deliveries
    /// to services under way end; the log is closed. What is not done within [`stop_timeout`](ServiceConfig::stop_timeout) is given up, except closing the log.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the log could not be flushed; what was acknowledged before is kept all the same.
    pub async fn stop(self) -> Result<Stopped, LogError> {
        let deadline = Instant::now() + self.stop_timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        drop(self.closing);
        // Side by side, so that neither's slow clients take the other's time.
        let answered = async {
            match self.acceptor {
                Some(acceptor) => tokio::time::timeout(left(), acceptor).await.is_ok(),
                None => true,
            }
        };
        let ((), answered) = tokio::join!(self.ws.shutdown(left()), answered);
        let told = self.presence.shutdown(left()).await;
        let drained = self.bus.shutdown(left()).await;
        let delivered = match &self.router {
            Some(router) => router.stop(left()).await,
            None => true,
        };
        if let Some(log) = self.log {
            log.close().await?;
        }
        Ok(Stopped { complete: answered && told && drained.complete && delivered })
    }
}

pub(crate) async fn publish(bus: &Bus, draft: Draft) -> Result<PublishAck, PublishError> {
    Ok(bus.publish(relay_events::check(draft)?).await?)
}

/// The router, where one is wanted and there is a log.
async fn start_router(
    config: Option<RouterConfig>,
    log: Option<Arc<dyn EventLog>>,
    bus: &Bus,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Router>, RouterError> {
    let (Some(config), Some(log)) = (config, log) else { return Ok(None) };
    let (sink, clock) = (Arc::new(bus.clone()), Arc::clone(clock));
    let parts = RouterParts { log, sink, clock };
    Router::start(config, parts).await.map(Some)
}

/// Takes an address, at which nobody is listened to yet.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // An address whose last connections are still ending may be taken again.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Opens the log, and beside it, in the directory that the log has locked, the file of the fencing tokens.
async fn open(
    config: LogConfig,
    clock: Arc<dyn Clock>,
) -> Result<(EmbeddedLog, RecoveryReport, FileTokens), StartError> {
    let opening = tokio::task::spawn_blocking(move || {
        let tokens = config.directory.join(TOKENS);
        let (log, recovery) = EmbeddedLog::open(config, Arc::clone(&clock))?;
        Ok((log, recovery, FileTokens::open(tokens, &*clock)?))
    });
    opening.await.map_err(StartError::LogPanicked)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_would_refuse_what_the_channels_take_is_refused_at_start() {
        let directory = tempfile::tempdir().unwrap();
        let log = LogConfig::new(directory.path().join("log"));
        let bus = relay_bus::BusConfig { max_payload_bytes: 4 * 1024 * 1024, ..Default::default() };
        let config = ServiceConfig { storage: Storage::Log(log), bus, ..ServiceConfig::in_process() };
        let refused = RelayService::start(config).await.unwrap_err();
        assert!(matches!(refused, StartError::EventLimit { event: 4_194_304, .. }), "{refused}");
    }
}
