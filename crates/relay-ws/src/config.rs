//! The limits and times of connections, with the defaults that suit one server, and the web pages that may connect.

use std::time::Duration;

use relay_core::ConfigError;

/// The limits and times of a [`WsServer`](crate::WsServer).
///
/// A configuration starts from its default, and fields are set on it. [`WsServer::new`](crate::WsServer::new) checks the
/// bounds that the fields state.
///
/// ```
/// use relay_ws::WsConfig;
///
/// let mut config = WsConfig::default();
/// config.max_connections = 500;
/// assert_eq!(config.validate(), Ok(()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WsConfig {
    /// The most connections that are open at once; 10,000 by default. At least 1. More are refused with 503.
    pub max_connections: usize,
    /// The most connections that are open at once from one address. At least 1. `None`, the default, limits each address to
    /// three times the connections that are free: one address alone takes three quarters of all, since all clients may
    /// come from one proxy or office. More are refused with 503. It counts the connections whose address is
    /// [known](crate::ClientAddress).
    pub max_connections_per_address: Option<usize>,
    /// The connections per second that are admitted; 2,000 by default. At least 1. A connection that comes earlier waits
    /// for its turn.
    pub admission_rate: u32,
    /// The connections that may come at once before the rate counts; 2,000 by default. At least 1, for with 0 no
    /// connection would ever have its turn.
    pub admission_burst: u32,
    /// The longest time that a connection waits for its turn; 5 seconds by default. A connection that would wait longer is
    /// refused with 503. With 0 no connection waits.
    pub admission_wait: Duration,
    /// The most topics that one connection has joined at once; 100 by default. At least 1.
    pub max_topics: usize,
    /// The most documents that the clients of one address have joined at once; `None`, the default, sets no limit. At least 1.
    /// A further join is refused with `too_many_documents`. It counts the connections whose address is
    /// [known](crate::ClientAddress).
    pub max_documents_per_address: Option<usize>,
    /// The largest incoming message in bytes. A larger one is refused with `too_large` and discarded as it arrives. One that is
    /// sixteen times as large, or names no `ref`, closes the connection with 1009. The default is the largest
    /// payload that a channel takes by default, 1 MiB, and 64 KiB for the fields around it. At least 1.
    pub max_frame_bytes: usize,
    /// The most requests of one connection that are not answered yet; 256 by default. At least 1, for with 0 nothing would
    /// be read. With so many, the connection reads nothing more until replies have been sent.
    pub max_pending_pushes: usize,
    /// The most bytes of those requests, with metadata and arguments; 1 MiB by default. At least 1. The connection goes on
    /// reading while it is below this limit, so one request may go past it.
    pub max_pending_push_bytes: usize,
    /// The most bytes that are written to a socket together; 64 KiB by default. At least 1. A socket that is full gets
    /// nothing more until its bytes are gone. So a connection holds about this much, and one message besides.
    pub write_buffer_bytes: usize,
    /// The time without a message from the client after which a connection is closed with 1001; 60 seconds by default.
    /// More than 0. Clients of Phoenix send a heartbeat every 30 seconds.
    pub stale_after: Duration,
    /// The longest time that a message takes from its first byte to its last; 30 seconds by default. More than 0. A slower
    /// one closes the connection with 1008. It does not pass while the connection reads nothing.
    pub message_timeout: Duration,
    /// The time after which a connection is closed with 1013 while bytes wait for its socket and the socket takes none; 30
    /// seconds by default. More than 0.
    pub write_stall_timeout: Duration,
    /// The longest time that a client takes to answer the closing of its connection; 5 seconds by default. More than 0.
    pub close_timeout: Duration,
    /// The interval between two looks at the times above, which are exact to this much; 1 second by default. At least 1
    /// millisecond, for each look costs every shard a wake-up.
    pub tick: Duration,
    /// The longest time between the answer to an upgrade and its socket; 10 seconds by default. More than 0.
    pub handshake_timeout: Duration,
    /// The number of shards. Each is a task that owns a share of the connections. `None`, the default, makes one for each
    /// core. At least 1.
    pub shards: Option<usize>,
    /// True to agree to `permessage-deflate` (RFC 7692) when a client offers it; false by default, since it costs time on
    /// the processor. A connection has no compression state of its own: each message is compressed by itself, and a
    /// broadcast once for all.
    pub compression: bool,
    /// The most connections per second that are closed when the server stops; 2,000 by default. At least 1. It spreads the
    /// returns of their clients.
    pub drain_rate: u32,
    /// The web pages that may connect; those of the same host by default.
    pub origins: OriginPolicy,
}

impl Default for WsConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: None,
            admission_rate: 2_000,
            admission_burst: 2_000,
            admission_wait: Duration::from_secs(5),
            max_topics: 100,
            max_documents_per_address: None,
            max_frame_bytes: 1024 * 1024 + 64 * 1024,
            max_pending_pushes: 256,
            max_pending_push_bytes: 1024 * 1024,
            write_buffer_bytes: 64 * 1024,
            stale_after: Duration::from_secs(60),
            message_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            tick: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(10),
            shards: None,
            compression: false,
            drain_rate: 2_000,
            origins: OriginPolicy::SameHost,
        }
    }
}

impl WsConfig {
    /// Checks every field against its bounds. [`WsServer::new`](crate::WsServer::new) does this first.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least_1 = "is 0; it must be at least 1";
        let more_than_0 = "is 0; it must be more than 0";
        let at_least_1_ms = "is too short; it must be at least 1 ms";
        let checks = [
            ("max_connections", self.max_connections == 0, at_least_1),
            ("max_connections_per_address", self.max_connections_per_address == Some(0), at_least_1),
            ("admission_rate", self.admission_rate == 0, at_least_1),
            ("admission_burst", self.admission_burst == 0, at_least_1),
            ("max_topics", self.max_topics == 0, at_least_1),
            ("max_documents_per_address", self.max_documents_per_address == Some(0), at_least_1),
            ("max_frame_bytes", self.max_frame_bytes == 0, at_least_1),
            ("max_pending_pushes", self.max_pending_pushes == 0, at_least_1),
            ("max_pending_push_bytes", self.max_pending_push_bytes == 0, at_least_1),
            ("write_buffer_bytes", self.write_buffer_bytes == 0, at_least_1),
            ("stale_after", self.stale_after.is_zero(), more_than_0),
            ("message_timeout", self.message_timeout.is_zero(), more_than_0),
            ("write_stall_timeout", self.write_stall_timeout.is_zero(), more_than_0),
            ("close_timeout", self.close_timeout.is_zero(), more_than_0),
            ("tick", self.tick < Duration::from_millis(1), at_least_1_ms),
            ("handshake_timeout", self.handshake_timeout.is_zero(), more_than_0),
            ("shards", self.shards == Some(0), at_least_1),
            ("drain_rate", self.drain_rate == 0, at_least_1),
        ];
        match checks.into_iter().find(|(_, is_broken, _)| *is_broken) {
            Some((field, _, rule)) => Err(ConfigError::new(field, rule)),
            None => Ok(()),
        }
    }
}

/// The web pages that may connect, by the `Origin` that browsers send. Programs send none, and need none: the policy
/// protects a browser's user from foreign pages, not the server from clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPolicy {
    /// Pages from the host and port that the request was sent to.
    SameHost,
    /// These origins, for instance `https://app.example.com`, and pages of the same host. Upper and lower case are the
    /// same.
    AnyOf(Vec<String>),
    /// Every page.
    Any,
}

impl OriginPolicy {
    /// Returns true when a page of `origin` may connect to a server that its request calls `host`, which includes the port.
    pub fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let same_host = || {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            matches!((authority, host), (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host))
        };
        match self {
            Self::Any => true,
            Self::SameHost => same_host(),
            Self::AnyOf(list) => list.iter().any(|one| one.eq_ignore_ascii_case(origin)) || same_host(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_bounds_is_refused_by_its_name() {
        assert_eq!(WsConfig::default().validate(), Ok(()));
        let config = WsConfig { max_topics: 0, ..WsConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError::new("max_topics", "is 0; it must be at least 1")));
        let config = WsConfig { shards: Some(0), ..WsConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError::new("shards", "is 0; it must be at least 1")));
        let config = WsConfig { stale_after: Duration::ZERO, ..WsConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError::new("stale_after", "is 0; it must be more than 0")));
        for tick in [Duration::ZERO, Duration::from_micros(999)] {
            let error = WsConfig { tick, ..WsConfig::default() }.validate();
            assert_eq!(error, Err(ConfigError::new("tick", "is too short; it must be at least 1 ms")));
        }
    }

    #[test]
    fn a_page_of_the_same_host_may_connect_and_another_may_not() {
        let policy = OriginPolicy::SameHost;
        assert!(policy.allows("http://Example.com:7400", Some("example.com:7400")));
        assert!(!policy.allows("http://example.com:7401", Some("example.com:7400")));
        assert!(!policy.allows("http://evil.example", Some("example.com")));
        assert!(!policy.allows("null", Some("example.com")));
        assert!(!policy.allows("http://example.com", None));
    }

    #[test]
    fn a_listed_page_may_connect_besides_those_of_the_same_host() {
        let policy = OriginPolicy::AnyOf(vec!["https://app.example".to_owned()]);
        assert!(policy.allows("https://app.example", Some("relay.example")));
        assert!(policy.allows("https://relay.example", Some("relay.example")));
        assert!(!policy.allows("https://evil.example", Some("relay.example")));
        assert!(OriginPolicy::Any.allows("null", None));
    }
}
