//! The configuration of a service: the crates' own configurations, and the few values of the service itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use relay_bus::BusConfig;
use relay_core::{ConfigError, MemoryLimits};
use relay_log::LogConfig;
use relay_presence::{LockConfig, PresenceConfig};
use relay_router::{Router, RouterConfig};
use relay_tasks::Supervisor;
use relay_ws::WsConfig;

use crate::error::StartError;
use crate::server::{HEAD_BYTES, Server};
use crate::storage::Storage;

/// The most bytes that an event's envelope takes. Metadata is the largest part of it, with 35 KiB at most.
const MAX_ENVELOPE_BYTES: usize = 64 * 1024;

/// The configuration of a [`RelayService`](crate::RelayService): [`default`](Self::default) or
/// [`in_process`](Self::in_process), with fields that are set afterwards.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServiceConfig {
    /// The address at which HTTP and WebSocket clients are served; port 0 takes any free one. `None` serves this process
    /// alone. Default `127.0.0.1:7400`: there is no authentication yet, so only this machine reaches it.
    pub listen: Option<SocketAddr>,
    /// The certificate with which clients are served over TLS. Default `None`: without TLS, for this machine or behind a
    /// proxy that does TLS.
    pub tls: Option<TlsConfig>,
    /// The storage of events. Default: a log in `relay-data`.
    pub storage: Storage,
    /// Limits in bytes of all that clients and services make the server hold.
    pub memory: MemoryLimits,
    /// Limits of the channels.
    pub bus: BusConfig,
    /// Limits of WebSocket connections, and the web pages that may connect and publish.
    pub ws: WsConfig,
    /// Times and limits of presence.
    pub presence: PresenceConfig,
    /// Times and limits of locks.
    pub locks: LockConfig,
    /// Routing to backend services. Default `None`: events are not routed. Needs a log.
    pub router: Option<RouterConfig>,
    /// Limits of HTTP requests.
    pub http: HttpConfig,
    /// The longest time that [`RelayService::stop`](crate::RelayService::stop) takes. Default 10 s.
    pub stop_timeout: Duration,
    /// The count of the lines that the log of this program has dropped, for [`ServiceStats::drops`](crate::ServiceStats).
    /// Default: a count that stays 0.
    pub dropped_log_lines: DroppedLogLines,
    /// The owner of all tasks of the service. A program that makes tasks of its own hands in their owner. Default: an owner of
    /// the service's tasks alone.
    pub supervisor: Supervisor,
}

/// The count of the lines that the log of a program has dropped. The program counts them, and the service shows the count
/// among its numbers. Clones share one count.
#[derive(Debug, Clone, Default)]
pub struct DroppedLogLines(Arc<AtomicU64>);

impl DroppedLogLines {
    /// Counts further lines.
    pub fn add(&self, lines: u64) {
        self.0.fetch_add(lines, Ordering::Relaxed);
    }

    /// The lines so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl ServiceConfig {
    /// A service for this process alone, with histories in memory. For tests and for embedding.
    pub fn in_process() -> Self {
        Self { listen: None, storage: Storage::Memory, ..Self::default() }
    }

    /// Checks the bounds of every field, of all parts and between them. [`RelayService::start`](crate::RelayService::start)
    /// does this first.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks its rule, by its path from here, for instance `ws.max_topics`.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.memory.validate().map_err(|error| error.within("memory"))?;
        self.validate_connection_memory()?;
        self.http.validate().map_err(|error| error.within("http"))?;
        self.ws.validate().map_err(|error| error.within("ws"))?;
        self.presence.validate().map_err(|error| error.within("presence"))?;
        self.locks.validate().map_err(|error| error.within("locks"))?;
        if let Storage::Embedded(log) = &self.storage {
            log.validate().map_err(|error| error.within("log"))?;
            self.validate_event_size(log)?;
        }
        self.bus.validate().map_err(|error| error.within("bus"))?;
        match (&self.router, &self.storage) {
            (None, _) => Ok(()),
            (Some(_), Storage::Memory) => Err(ConfigError::new(
                "router",
                "is set, and there is no log to route events from; leave it out, or keep events in a log",
            )),
            (Some(router), _) => router.validate().map_err(|error| error.within("router")),
        }
    }

    /// Checks all that [`validate`](Self::validate) does, and the files that the values name: the certificate with its key, and
    /// the rules with the addresses of their targets. It opens no log and no store, and does not listen.
    ///
    /// # Errors
    /// The error with which [`RelayService::start`](crate::RelayService::start) would fail.
    pub async fn check(&self) -> Result<(), StartError> {
        self.validate()?;
        if let (Some(_), Some(tls)) = (self.listen, &self.tls) {
            Server::check_certificate(tls.clone()).await?;
        }
        match &self.router {
            Some(router) => Ok(Router::check(router)?),
            None => Ok(()),
        }
    }

    /// Checks that the memory of a connection takes the largest messages and bodies.
    fn validate_connection_memory(&self) -> Result<(), ConfigError> {
        let max = self.memory.max_connection_bytes;
        // A message may arrive while one waits, one is published, and a reply as large waits for the socket.
        let messages =
            self.ws.max_frame_bytes.saturating_mul(4).saturating_add(self.ws.max_pending_push_bytes);
        // A body, what is decoded from it, and the head before it.
        let bodies = self.http.max_body_bytes.saturating_mul(2).saturating_add(HEAD_BYTES);
        let needs = [
            (messages, "ws.max_frame_bytes", self.ws.max_frame_bytes),
            (bodies, "http.max_body_bytes", self.http.max_body_bytes),
        ];
        match needs.into_iter().find(|(needed, ..)| *needed > max) {
            Some((needed, field, value)) => Err(ConfigError::new(
                "memory.max_connection_bytes",
                format!("is {max}; it must be at least {needed}, since `{field}` is {value}"),
            )),
            None => Ok(()),
        }
    }

    /// Checks that the log takes every event that the channels take.
    fn validate_event_size(&self, log: &LogConfig) -> Result<(), ConfigError> {
        let payload = self.bus.max_payload_bytes;
        let needed = payload.saturating_add(MAX_ENVELOPE_BYTES);
        if usize::try_from(log.max_event_bytes).is_ok_and(|max| max < needed) {
            let rule = format!(
                "is {}; it must be at least {needed}, since `bus.max_payload_bytes` is {payload}",
                log.max_event_bytes
            );
            return Err(ConfigError::new("log.max_event_bytes", rule));
        }
        Ok(())
    }
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400)),
            tls: None,
            storage: Storage::Embedded(LogConfig::new("relay-data")),
            memory: MemoryLimits::default(),
            bus: BusConfig::default(),
            ws: WsConfig::default(),
            presence: PresenceConfig::default(),
            locks: LockConfig::default(),
            router: None,
            http: HttpConfig::default(),
            stop_timeout: Duration::from_secs(10),
            dropped_log_lines: DroppedLogLines::default(),
            supervisor: Supervisor::default(),
        }
    }
}

/// The certificate of a server that uses TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// A PEM file with the server's certificate first, and after it those that lead to a root.
    pub cert: PathBuf,
    /// A PEM file with the certificate's private key (PKCS #8, SEC1 or PKCS #1).
    pub key: PathBuf,
    /// The longest time that a handshake takes.
    pub handshake_timeout: Duration,
}

impl TlsConfig {
    /// The default of [`handshake_timeout`](Self::handshake_timeout).
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

    /// TLS with the certificate and key in these files.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { cert: cert.into(), key: key.into(), handshake_timeout: Self::HANDSHAKE_TIMEOUT }
    }
}

/// The names by which clients may call the server, in a request's `Host`. This prevents DNS rebinding: a web page whose
/// name is made to point at this server's address, so that browsers take the two for one site.
///
/// IP addresses and `localhost` are always allowed: no page can have such a name. Programs that send no `Host` are
/// allowed too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPolicy {
    /// Any name, except when the server listens on a loopback address, which only browsers of this machine reach. Requests
    /// of [trusted proxies](HttpConfig::trusted_proxies) may have any name there too.
    Automatic,
    /// These names besides, for instance `relay.example.com`; without ports.
    AnyOf(Vec<String>),
    /// Any name.
    Any,
}

/// Limits of HTTP requests, and of the connections that they come over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// HTTP connections that are open at once, event streams among them. More are refused with 503. A connection that
    /// becomes a WebSocket is no longer one of them. Default 10,000.
    pub max_connections: usize,
    /// The most of them from one address, trusted proxies excepted. More are refused with 503. Default `None`: three times the
    /// connections that are free, so that one address alone takes three quarters of all.
    pub max_connections_per_address: Option<usize>,
    /// Proxies whose `X-Forwarded-For` is used as the client's address. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// The names by which clients may call the server. Default [`HostPolicy::Automatic`].
    pub allowed_hosts: HostPolicy,
    /// Size of a request's body in bytes. Default 4 MiB.
    pub max_body_bytes: usize,
    /// Events of one batch. Default 1,000.
    pub max_batch_events: usize,
    /// Events of one page of history. Default 1,000.
    pub max_page_events: usize,
    /// The longest time that a connection takes to send a request's head, and that it idles between two requests.
    /// Default 30 s.
    pub header_timeout: Duration,
    /// The longest time that a request's body takes. Default 30 s.
    pub body_timeout: Duration,
    /// The time after which a client that reads nothing of its answer is disconnected. Default 30 s.
    pub write_timeout: Duration,
    /// The time without an event after which a stream of events gets a comment. Default 15 s.
    pub keep_alive: Duration,
    /// True to serve `/socket/echo`, which sends every WebSocket message back. Default false.
    pub echo: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: None,
            trusted_proxies: Vec::new(),
            allowed_hosts: HostPolicy::Automatic,
            max_body_bytes: 4 * 1024 * 1024,
            max_batch_events: 1_000,
            max_page_events: 1_000,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            echo: false,
        }
    }
}

impl HttpConfig {
    /// Checks the bounds of every field: limits and times are at least 1.
    fn validate(&self) -> Result<(), ConfigError> {
        let fields = [
            ("max_connections", self.max_connections == 0),
            ("max_connections_per_address", self.max_connections_per_address == Some(0)),
            ("max_body_bytes", self.max_body_bytes == 0),
            ("max_batch_events", self.max_batch_events == 0),
            ("max_page_events", self.max_page_events == 0),
            ("header_timeout", self.header_timeout.is_zero()),
            ("body_timeout", self.body_timeout.is_zero()),
            ("write_timeout", self.write_timeout.is_zero()),
            ("keep_alive", self.keep_alive.is_zero()),
        ];
        match fields.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((field, _)) => Err(ConfigError::new(field, "is 0; it must be at least 1")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: &ServiceConfig, field: &str, rule: &str) {
        assert_eq!(config.validate(), Err(ConfigError::new(field, rule)));
    }

    #[test]
    fn an_error_names_the_field_by_its_path_and_says_what_to_do() {
        assert_eq!(ServiceConfig::default().validate(), Ok(()));
        let mut config = ServiceConfig::in_process();
        config.http.max_page_events = 0;
        check(&config, "http.max_page_events", "is 0; it must be at least 1");
        let mut config = ServiceConfig::in_process();
        config.bus.cache_events = 0;
        check(&config, "bus.cache_events", "is 0; it must be at least 1");
        let mut config = ServiceConfig::in_process();
        config.ws.max_topics = 0;
        check(&config, "ws.max_topics", "is 0; it must be at least 1");
        let mut config = ServiceConfig::in_process();
        config.presence.max_state_bytes = 0;
        check(&config, "presence.max_state_bytes", "is 0; it must be at least 1");
        let config =
            ServiceConfig { router: Some(RouterConfig::new("router")), ..ServiceConfig::in_process() };
        check(
            &config,
            "router",
            "is set, and there is no log to route events from; leave it out, or keep events in a log",
        );
    }

    #[test]
    fn a_connection_that_could_not_send_the_largest_body_is_refused() {
        let mut config = ServiceConfig::in_process();
        config.memory.max_connection_bytes = 2 * config.http.max_body_bytes;
        check(
            &config,
            "memory.max_connection_bytes",
            "is 8388608; it must be at least 8454144, since `http.max_body_bytes` is 4194304",
        );
    }

    #[test]
    fn a_log_that_would_refuse_what_the_channels_take_is_refused() {
        let mut config = ServiceConfig::default();
        config.bus.max_payload_bytes = 4 * 1024 * 1024;
        check(
            &config,
            "log.max_event_bytes",
            "is 4194304; it must be at least 4259840, since `bus.max_payload_bytes` is 4194304",
        );
    }
}
