//! The addresses that the router may call. A registration names an address, so each address is checked.
//!
//! A URL's scheme, host and literal address are checked when it comes in and at each redirect. A name's addresses are
//! checked after it was resolved, and the connection goes to exactly those. This prevents DNS rebinding.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use relay_core::ConfigError;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::addresses::{is_special, plain};
use super::answer::causes_of;
use super::client::HttpClient;

/// The addresses that the router may call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboundPolicy {
    /// The allowed schemes. Default `http` and `https`, since within a cluster the network is often the protection. Each
    /// is one of these two, for no other is spoken.
    pub schemes: Vec<String>,
    /// The allowed hosts, as they are written in a URL. Default any.
    pub hosts: Vec<HostPattern>,
    /// The networks outside the public internet that are allowed: this machine (`127.0.0.0/8`, `::1/128`), private
    /// networks, and those for special purposes. Default none.
    pub allow_networks: Vec<IpNet>,
    /// The time limit for opening a connection. Default 5 s. More than 0, for otherwise none would open.
    pub connect_timeout: Duration,
}

impl Default for OutboundPolicy {
    fn default() -> Self {
        Self {
            schemes: vec!["http".to_owned(), "https".to_owned()],
            hosts: vec![HostPattern::Any],
            allow_networks: Vec::new(),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl OutboundPolicy {
    /// Checks the bounds that the fields' documentation names.
    ///
    /// # Errors
    /// [`ConfigError`], about the first field that breaks its bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(other) = self.schemes.iter().find(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
            let rule = format!("has `{other}`; each must be `http` or `https`");
            return Err(ConfigError::new("schemes", rule));
        }
        if self.connect_timeout.is_zero() {
            return Err(ConfigError::new("connect_timeout", "is 0; it must be more"));
        }
        Ok(())
    }
}

/// A pattern of host names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostPattern {
    /// Every host.
    Any,
    /// This host.
    Exactly(String),
    /// Every host below this domain.
    Below(String),
}

impl HostPattern {
    /// Reads `*`, `name.example` or `*.example`.
    pub fn new(text: &str) -> Option<Self> {
        let is_host = |host: &str| !host.is_empty() && !host.contains(['*', '/', '@', ' ']);
        match text.strip_prefix("*.") {
            _ if text == "*" => Some(Self::Any),
            Some(domain) if is_host(domain) => Some(Self::Below(domain.to_ascii_lowercase())),
            None if is_host(text) => Some(Self::Exactly(text.to_ascii_lowercase())),
            _ => None,
        }
    }

    fn matches(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        match self {
            Self::Any => true,
            Self::Exactly(name) => host.eq_ignore_ascii_case(name),
            Self::Below(domain) => host
                .len()
                .checked_sub(domain.len() + 1)
                .and_then(|at| host.get(at..))
                .is_some_and(|end| end.starts_with('.') && end[1..].eq_ignore_ascii_case(domain)),
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exactly(name) => f.write_str(name),
            Self::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// A reason why an address is not called.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OutboundError {
    /// The text is not a URL with a host.
    #[error("`{url}` is not a usable URL: {detail}")]
    Malformed {
        /// The first characters of the text.
        url: String,
        /// The mistake.
        detail: String,
    },
    /// The scheme is not allowed.
    #[error("scheme `{scheme}` is not allowed; `router.allow_schemes` has {allowed:?}")]
    Scheme {
        /// The scheme.
        scheme: String,
        /// The allowed schemes.
        allowed: Vec<String>,
    },
    /// The host is not allowed.
    #[error("host `{host}` is not allowed by `router.allow_hosts`")]
    Host {
        /// The host.
        host: String,
    },
    /// The address is not on the public internet.
    #[error(
        "`{host}` is at {address}, which is not on the public internet; `router.allow_networks` can allow it, for instance with `{address}/{}`", if address.is_ipv4() { 32 } else { 128 }
    )]
    Address {
        /// The host.
        host: String,
        /// The host's address.
        address: IpAddr,
    },
    /// The name has no address.
    #[error("`{host}` cannot be resolved: {detail}")]
    Unresolved {
        /// The host.
        host: String,
        /// The reason.
        detail: String,
    },
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made: {detail}")]
    Client {
        /// The reason.
        detail: String,
    },
    /// A signing secret is not valid.
    #[error(transparent)]
    Secret(#[from] super::signature::InvalidSecret),
}

/// Calls allowed addresses. Clones share their connections.
#[derive(Clone)]
pub(crate) struct Outbound {
    policy: Arc<OutboundPolicy>,
    client: HttpClient,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Outbound {
    /// A client for the addresses that `policy` allows.
    ///
    /// # Errors
    /// [`OutboundError::Client`].
    pub(crate) fn new(policy: OutboundPolicy) -> Result<Self, OutboundError> {
        let failed = |error: &dyn Error| OutboundError::Client { detail: causes_of(error) };
        let policy = Arc::new(policy);
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        // The machine's own roots are trusted too, private ones for instance.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = HttpClient::new(Arc::clone(&policy), tls);
        Ok(Self { policy, client })
    }

    /// Parses and checks a URL, without resolving its host's name.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub(crate) fn check_url(&self, url: &str) -> Result<Url, OutboundError> {
        let malformed =
            |detail: String| OutboundError::Malformed { url: url.chars().take(128).collect(), detail };
        let parsed = Url::parse(url).map_err(|error| malformed(error.to_string()))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(malformed("it must not contain a user or a password".to_owned()));
        }
        self.policy.check(&parsed)?;
        Ok(parsed)
    }

    /// Resolves a URL to the allowed addresses of its host, with the port.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub(crate) async fn addresses_of(&self, url: &str) -> Result<Vec<SocketAddr>, OutboundError> {
        let url = self.check_url(url)?;
        let malformed =
            |detail: &str| OutboundError::Malformed { url: url.to_string(), detail: detail.to_owned() };
        let port = url.port_or_known_default().ok_or_else(|| malformed("it has no port"))?;
        let host = url.host_str().ok_or_else(|| malformed("it has no host"))?;
        // IPv6 addresses stand in brackets in a URL.
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) => Ok(vec![SocketAddr::new(address, port)]),
            Err(_) => self.policy.resolve(host, port).await,
        }
    }

    /// The HTTP client, which checks each address that it connects to.
    pub(crate) fn client(&self) -> &HttpClient {
        &self.client
    }
}

impl OutboundPolicy {
    pub(super) fn check(&self, url: &Url) -> Result<(), OutboundError> {
        let scheme = url.scheme();
        if !self.schemes.iter().any(|allowed| allowed == scheme) {
            return Err(OutboundError::Scheme { scheme: scheme.to_owned(), allowed: self.schemes.clone() });
        }
        let Some(host) = url.host_str() else {
            return Err(OutboundError::Malformed {
                url: url.to_string(),
                detail: "it has no host".to_owned(),
            });
        };
        if !self.hosts.iter().any(|pattern| pattern.matches(host)) {
            return Err(OutboundError::Host { host: host.to_owned() });
        }
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) if !self.allows(address) => {
                Err(OutboundError::Address { host: host.to_owned(), address })
            }
            _ => Ok(()),
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        let meant = plain(address);
        !is_special(address)
            || self
                .allow_networks
                .iter()
                .any(|network| network.contains(&address) || network.contains(&meant))
    }

    /// Resolves a name to its allowed addresses, at least one.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, OutboundError> {
        let unresolved = |detail: String| OutboundError::Unresolved { host: host.to_owned(), detail };
        let found =
            tokio::net::lookup_host((host, port)).await.map_err(|error| unresolved(error.to_string()))?;
        let (allowed, refused): (Vec<_>, Vec<_>) = found.partition(|address| self.allows(address.ip()));
        match (allowed.is_empty(), refused.first()) {
            (false, _) => Ok(allowed),
            (true, Some(refused)) => {
                Err(OutboundError::Address { host: host.to_owned(), address: refused.ip() })
            }
            (true, None) => Err(unresolved("it has no address".to_owned())),
        }
    }
}
