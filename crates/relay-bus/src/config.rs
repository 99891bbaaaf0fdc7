//! What a bus may hold and how long it waits, with the defaults that suit one server.

use std::time::Duration;

use relay_core::{ReadLimit, Retention};

/// The limits of a [`Bus`](crate::Bus).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusConfig {
    /// The largest payload that is taken, in bytes. Default 1 MiB.
    pub max_payload_bytes: usize,
    /// How many documents may be open at once, in use or cached. Default 100,000.
    pub max_channels: usize,
    /// How many bytes of durable events may wait for the log in each document; an event counts at least 1 KiB of
    /// them. Default 4 MiB, and always at least one largest payload.
    pub max_pending_bytes: usize,
    /// How long a publisher waits for room before it is told [`Overloaded`](relay_core::PublishError::Overloaded).
    /// Default 5 s.
    pub publish_timeout: Duration,
    /// With a log: how many of each document's latest events are kept in memory, where live readers and those
    /// shortly away find them. Default 1,000.
    pub cache_events: usize,
    /// With a log: how many bytes of them, roughly. Default 16 MiB.
    pub cache_bytes: usize,
    /// With a log: how many of the latest events are read when a document is opened. A resent event is recognised
    /// as a duplicate if its first sending is among the events in memory, so at least this far back. Default 256.
    pub preload_events: usize,
    /// With a log: how much of it one reader that is behind reads at a time, which is what each such reader takes of
    /// memory. Default 128 events, 128 KiB.
    pub replay_page: ReadLimit,
    /// How much of each document's history is served. Without a log, memory holds all of it; with one, give the log the
    /// same retention. Default 10,000 events.
    pub retention: Retention,
    /// How many different ephemeral events (by kind, actor and key) each document holds for slow readers; the
    /// longest unchanged goes first. Default 1,000.
    pub max_ephemeral_keys: usize,
    /// With a log: how long a document that nobody uses stays in memory, counted from the first sweep that finds it
    /// unused. Default 60 s.
    pub idle_after: Duration,
    /// How often idle documents and outdated events are looked for. Default 10 s.
    pub sweep_interval: Duration,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            max_payload_bytes: 1024 * 1024,
            max_channels: 100_000,
            max_pending_bytes: 4 * 1024 * 1024,
            publish_timeout: Duration::from_secs(5),
            cache_events: 1_000,
            cache_bytes: 16 * 1024 * 1024,
            preload_events: 256,
            replay_page: ReadLimit { events: 128, bytes: 128 * 1024 },
            retention: Retention::default(),
            max_ephemeral_keys: 1_000,
            idle_after: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(10),
        }
    }
}
