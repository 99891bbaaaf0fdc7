//! The limits and times of presence, with the defaults that suit one server.

use std::time::Duration;

/// Limits and times of a [`LocalPresence`](crate::LocalPresence).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceConfig {
    /// How long a connection that was lost may take to come back before anybody is told. Default 5 s.
    pub grace: Duration,
    /// A connection from which no sign of life came for this long is gone. Default 60 s.
    pub stale_after: Duration,
    /// A session in which nobody has done anything for this long is idle. Default 5 min.
    pub idle_after: Duration,
    /// The largest state of one participant, in bytes of JSON. Default 4 KiB.
    pub max_state_bytes: usize,
    /// How often changes become visible while there are many: those within this time are told together. Default 50 ms.
    pub flush_interval: Duration,
    /// Events of one document about who comes and goes that wait to be published. With so many, nobody more is let in.
    /// Default 10,000.
    pub max_waiting_events: usize,
    /// How often the times above are looked at; they are exact to this much. Default 1 s.
    pub tick: Duration,
}

impl Default for PresenceConfig {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5),
            stale_after: Duration::from_secs(60),
            idle_after: Duration::from_secs(5 * 60),
            max_state_bytes: 4 * 1024,
            flush_interval: Duration::from_millis(50),
            max_waiting_events: 10_000,
            tick: Duration::from_secs(1),
        }
    }
}

impl PresenceConfig {
    /// Checks that presence can work with these values. The grace time may be zero: then nobody is waited for.
    ///
    /// # Errors
    /// [`PresenceConfigError`] naming the first value that is zero.
    pub fn validate(&self) -> Result<(), PresenceConfigError> {
        let at_least_one = [
            ("stale_after", self.stale_after.is_zero()),
            ("idle_after", self.idle_after.is_zero()),
            ("max_state_bytes", self.max_state_bytes == 0),
            ("flush_interval", self.flush_interval.is_zero()),
            ("max_waiting_events", self.max_waiting_events == 0),
            ("tick", self.tick.is_zero()),
        ];
        match at_least_one.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((field, _)) => Err(PresenceConfigError { field }),
            None => Ok(()),
        }
    }
}

/// A value of [`PresenceConfig`] is zero, with which nothing would work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is 0; it must be at least 1")]
pub struct PresenceConfigError {
    /// The field's name.
    pub field: &'static str,
}
