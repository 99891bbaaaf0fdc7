//! The limits of connections. Every queue and every wait of this crate ends at one of these.

use std::time::Duration;

/// Limits and time-outs of a [`WsServer`](crate::WsServer).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WsConfig {
    /// Connections that are open at once. More are refused with 503.
    pub max_connections: usize,
    /// Of them from one address, where addresses are known; `None`: as many as there may be. More are refused with 503.
    pub max_connections_per_address: Option<usize>,
    /// Connections that are let in per second. Who comes too early waits for its turn.
    pub admission_rate: u32,
    /// Connections that may come at once before the rate counts.
    pub admission_burst: u32,
    /// The longest time that a connection waits for its turn; beyond that it is refused with 503.
    pub admission_wait: Duration,
    /// Topics that one connection may have joined at once.
    pub max_topics: usize,
    /// Size of one incoming message in bytes. A larger one closes the connection with 1009. By default a payload of
    /// 1 MiB, the most that a channel takes by default, and 64 KiB for what is around it.
    pub max_frame_bytes: usize,
    /// Pushes of one connection that are not answered yet. With so many the connection reads nothing more until
    /// answers have come and been sent.
    pub max_pending_pushes: usize,
    /// Bytes of the payloads of those pushes. With so many the connection reads nothing more either.
    pub max_pending_push_bytes: usize,
    /// Bytes that are written to a socket together. A socket that takes them slowly is given nothing more until
    /// they are gone, so a connection holds about this much and one message besides.
    pub write_buffer_bytes: usize,
    /// A connection from which no message came for this long is closed with 1001.
    pub stale_after: Duration,
    /// A connection that accepts not one byte of what waits for it for this long is closed with 1013.
    pub write_stall_timeout: Duration,
    /// How long a client may take to answer the closing of its connection.
    pub close_timeout: Duration,
    /// How often the time-outs above are looked at; they are exact to this much.
    pub tick: Duration,
    /// How long an upgrade may take from its answer until the socket is there.
    pub handshake_timeout: Duration,
    /// Shards, each a task that owns a share of the connections. `None`: as many as the machine has cores.
    pub shards: Option<usize>,
    /// Whether `permessage-deflate` (RFC 7692) is agreed to when a client offers it. Without it, and with it, no
    /// connection has compression state of its own: each message is compressed by itself, a broadcast once for all.
    pub compression: bool,
    /// How many connections are closed per second when the server stops, so that not all clients come back at once.
    pub drain_rate: u32,
    /// Which web pages may connect.
    pub origins: OriginPolicy,
}

impl Default for WsConfig {
    /// 10,000 connections, all of which may come from one address (a proxy, or an office), 2,000 of them a second after
    /// the first 2,000, each waiting for 5 s at most; 100 topics; messages of 1 MiB; 256 pending pushes of 1 MiB together; 64 KiB write
    /// buffer; stale after 60 s; stalled after 30 s; 5 s to close; looked at every second; 10 s for an upgrade; a shard for
    /// each core; no compression; 2,000 closed per second when stopping; pages of the same host.
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: None,
            admission_rate: 2_000,
            admission_burst: 2_000,
            admission_wait: Duration::from_secs(5),
            max_topics: 100,
            max_frame_bytes: 1024 * 1024 + 64 * 1024,
            max_pending_pushes: 256,
            max_pending_push_bytes: 1024 * 1024,
            write_buffer_bytes: 64 * 1024,
            stale_after: Duration::from_secs(60),
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
    /// Checks that the server can work with these values.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first value that is zero.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("max_connections", self.max_connections),
            ("max_connections_per_address", self.max_connections_per_address.unwrap_or(1)),
            ("shards", self.shards.unwrap_or(1)),
            ("admission_rate", self.admission_rate as usize),
            ("admission_burst", self.admission_burst as usize),
            ("max_topics", self.max_topics),
            ("max_frame_bytes", self.max_frame_bytes),
            ("max_pending_pushes", self.max_pending_pushes),
            ("max_pending_push_bytes", self.max_pending_push_bytes),
            ("write_buffer_bytes", self.write_buffer_bytes),
            ("drain_rate", self.drain_rate as usize),
        ];
        let spans = [
            ("stale_after", self.stale_after),
            ("write_stall_timeout", self.write_stall_timeout),
            ("close_timeout", self.close_timeout),
            ("tick", self.tick),
            ("handshake_timeout", self.handshake_timeout),
        ];
        let zero_count = counts.iter().find(|(_, value)| *value == 0).map(|(field, _)| *field);
        let zero_span = spans.iter().find(|(_, value)| value.is_zero()).map(|(field, _)| *field);
        match zero_count.or(zero_span) {
            Some(field) => Err(ConfigError { field }),
            None => Ok(()),
        }
    }
}

/// A value of [`WsConfig`] is zero, with which nothing would work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is 0; it must be at least 1")]
pub struct ConfigError {
    /// The field's name.
    pub field: &'static str,
}

/// Which web pages may connect, by the `Origin` that browsers send. Programs send none, and are not asked for one:
/// this protects a browser's user from foreign pages, not the server from clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPolicy {
    /// Pages from the host and port that the request was sent to.
    SameHost,
    /// These origins, for instance `https://app.example.com`, and pages of the same host.
    AnyOf(Vec<String>),
    /// Every page.
    Any,
}

impl OriginPolicy {
    /// Whether a page of `origin` may connect to a server that was called `host`.
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
    fn a_zero_is_refused_by_its_name() {
        assert_eq!(WsConfig::default().validate(), Ok(()));
        let config = WsConfig { max_topics: 0, ..WsConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError { field: "max_topics" }));
        let config = WsConfig { tick: Duration::ZERO, ..WsConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError { field: "tick" }));
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
