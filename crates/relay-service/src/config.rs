//! What a service is made of: the parts' own configurations, and the few values that are the service's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use relay_bus::BusConfig;
use relay_log::LogConfig;
use relay_presence::{LockConfig, PresenceConfig};
use relay_router::RouterConfig;
use relay_ws::WsConfig;

/// How a [`RelayService`](crate::RelayService) runs.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Where HTTP and WebSocket clients are served; port 0 takes any free one. `None` serves this process alone.
    /// Default `127.0.0.1:7400`: there is no authentication yet, so only this machine is let in.
    pub listen: Option<SocketAddr>,
    /// The certificate with which clients are served over TLS. Default `None`: plain, for this machine or behind a
    /// proxy that does TLS.
    pub tls: Option<TlsConfig>,
    /// Where events are kept. Default: a log in `relay-data`.
    pub storage: Storage,
    /// Limits of the channels.
    pub bus: BusConfig,
    /// Limits of WebSocket connections, and which web pages may connect and publish.
    pub ws: WsConfig,
    /// Who is in a document: times and limits.
    pub presence: PresenceConfig,
    /// Times and limits of locks.
    pub locks: LockConfig,
    /// How events reach backend services. Default `None`: they do not. Needs a log.
    pub router: Option<RouterConfig>,
    /// Limits of HTTP requests.
    pub http: HttpConfig,
    /// How long [`RelayService::stop`](crate::RelayService::stop) may take. Default 10 s.
    pub stop_timeout: Duration,
}

impl ServiceConfig {
    /// A service for this process alone, with histories in memory. For tests and for embedding.
    pub fn in_process() -> Self {
        Self { listen: None, storage: Storage::Memory, ..Self::default() }
    }
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400)),
            tls: None,
            storage: Storage::Log(LogConfig::new("relay-data")),
            bus: BusConfig::default(),
            ws: WsConfig::default(),
            presence: PresenceConfig::default(),
            locks: LockConfig::default(),
            router: None,
            http: HttpConfig::default(),
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// Where events are kept.
#[derive(Debug, Clone)]
pub enum Storage {
    /// In memory: gone when the service stops.
    Memory,
    /// In a log on disk.
    Log(LogConfig),
}

/// How TLS is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// A PEM file with the server's certificate first and those that lead from it to a root after it.
    pub cert: PathBuf,
    /// A PEM file with the certificate's private key (PKCS #8, SEC1 or PKCS #1).
    pub key: PathBuf,
    /// How long a connection may take until both sides have agreed on keys.
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

/// By which names clients may call the server, in a request's `Host`. What this keeps out is DNS rebinding: a web page
/// whose name is made to point at this server's address, so that browsers take the two for one site.
///
/// IP addresses and `localhost` are always names of the server: no page can take those. Programs that send no `Host`
/// are let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPolicy {
    /// Any name, except when the server listens on a loopback address, where browsers of this machine reach what
    /// nobody else does. Requests of [trusted proxies](HttpConfig::trusted_proxies) may have any name there too.
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
    /// Of them from one address, trusted proxies excepted; `None`: as many as there may be. More are refused with 503.
    /// Default `None`.
    pub max_connections_per_address: Option<usize>,
    /// Proxies whose `X-Forwarded-For` says where a request comes from. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// By which names clients may call the server. Default [`HostPolicy::Automatic`].
    pub allowed_hosts: HostPolicy,
    /// Size of a request's body in bytes. Default 4 MiB.
    pub max_body_bytes: usize,
    /// Events of one batch. Default 1,000.
    pub max_batch_events: usize,
    /// Events of one page of history. Default 1,000.
    pub max_page_events: usize,
    /// How long a connection may take to send a request's head, and how long it may idle between two. Default 30 s.
    pub header_timeout: Duration,
    /// How long a request's body may take. Default 30 s.
    pub body_timeout: Duration,
    /// A client that takes not one byte of its answer for this long is cut off. Default 30 s.
    pub write_timeout: Duration,
    /// A stream of events on which nothing was sent for this long gets a comment. Default 15 s.
    pub keep_alive: Duration,
    /// Whether there is `/socket/echo`, which sends every WebSocket message back. Default no.
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
    /// The name of the first value that is zero, with which nothing would work.
    pub(crate) fn zero_field(&self) -> Option<&'static str> {
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
        fields.into_iter().find(|(_, zero)| *zero).map(|(field, _)| field)
    }
}
