//! Counters of accepted connections, and their snapshot.

use relay_metrics::Counter;
use serde::Serialize;

/// A snapshot of the counters of accepted connections. All but `connections_open` only grow while the server lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HttpStats {
    /// Connections that are open now, event streams among them. Those that became WebSockets are not.
    pub connections_open: u64,
    /// Connections that were ever accepted, those that were then refused included.
    pub connections: u64,
    /// Connections that were refused.
    pub refused: RefusedConnections,
    /// Connections that could not be accepted, for instance since the process had too many files open.
    pub accept_failures: u64,
    /// TLS handshakes that failed, without those that took too long.
    pub tls_failures: u64,
    /// Connections that the server closed because the client took too long.
    pub timed_out: TimedOut,
}

/// Connections that were refused, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RefusedConnections {
    /// The limit of open connections was reached.
    pub too_many_connections: u64,
    /// The limit of open connections from one address was reached.
    pub too_many_connections_from_address: u64,
    /// Those of them that were closed without an answer, since many newer ones were being refused.
    pub unanswered: u64,
}

/// Connections that the server closed, by the step that the client did not finish in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TimedOut {
    /// The TLS handshake.
    pub tls: u64,
    /// Sending a request's head.
    pub head: u64,
    /// Reading the answer.
    pub write: u64,
}

/// The live counters, one for each number of [`HttpStats`].
#[derive(Debug, Default)]
pub(super) struct HttpCounters {
    pub(super) connections: Counter,
    pub(super) too_many_connections: Counter,
    pub(super) too_many_connections_from_address: Counter,
    pub(super) unanswered: Counter,
    pub(super) accept_failures: Counter,
    pub(super) tls_failures: Counter,
    pub(super) tls_timeouts: Counter,
    pub(super) head_timeouts: Counter,
    pub(super) write_timeouts: Counter,
}

impl HttpCounters {
    pub(super) fn stats(&self, open: usize) -> HttpStats {
        HttpStats {
            connections_open: open as u64,
            connections: self.connections.get(),
            refused: RefusedConnections {
                too_many_connections: self.too_many_connections.get(),
                too_many_connections_from_address: self.too_many_connections_from_address.get(),
                unanswered: self.unanswered.get(),
            },
            accept_failures: self.accept_failures.get(),
            tls_failures: self.tls_failures.get(),
            timed_out: TimedOut {
                tls: self.tls_timeouts.get(),
                head: self.head_timeouts.get(),
                write: self.write_timeouts.get(),
            },
        }
    }
}
