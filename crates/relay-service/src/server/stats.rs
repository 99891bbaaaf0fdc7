//! What has happened to connections before and beside their requests, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

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
    /// TLS handshakes that failed, those that took too long not included.
    pub tls_failures: u64,
    /// Connections that were given up because the client took too long.
    pub timed_out: TimedOut,
    /// Connections that ended because of a bug in this server.
    pub panicked: u64,
}

/// Connections that were refused, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RefusedConnections {
    /// As many were open as may be.
    pub too_many_connections: u64,
    /// As many were open from one address as may be.
    pub too_many_connections_from_address: u64,
    /// Refused for one of those reasons, but without an answer, since many were being refused at that moment.
    pub unanswered: u64,
}

/// Connections that were given up, by what the client did not do in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TimedOut {
    /// Agree on TLS.
    pub tls: u64,
    /// Send a request's head, or anything at all.
    pub head: u64,
    /// Take its answer.
    pub write: u64,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the numbers are counted in.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted: Counter,
    pub(crate) full: Counter,
    pub(crate) too_many_from_address: Counter,
    pub(crate) unanswered: Counter,
    pub(crate) accept_failures: Counter,
    pub(crate) tls_failures: Counter,
    pub(crate) tls_timeouts: Counter,
    pub(crate) head_timeouts: Counter,
    pub(crate) write_timeouts: Counter,
    pub(crate) panicked: Counter,
}

impl Counters {
    pub(crate) fn snapshot(&self, open: usize) -> HttpStats {
        HttpStats {
            connections_open: open as u64,
            connections: self.accepted.get(),
            refused: RefusedConnections {
                too_many_connections: self.full.get(),
                too_many_connections_from_address: self.too_many_from_address.get(),
                unanswered: self.unanswered.get(),
            },
            accept_failures: self.accept_failures.get(),
            tls_failures: self.tls_failures.get(),
            timed_out: TimedOut {
                tls: self.tls_timeouts.get(),
                head: self.head_timeouts.get(),
                write: self.write_timeouts.get(),
            },
            panicked: self.panicked.get(),
        }
    }
}
