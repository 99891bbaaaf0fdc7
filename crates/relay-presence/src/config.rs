//! The configuration of presence.

use std::time::Duration;

use relay_core::ConfigError;

/// The configuration of a [`LocalPresence`](crate::LocalPresence), with defaults that suit one server.
/// [`PresenceConfig::validate`] checks the bounds that the fields state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresenceConfig {
    /// The time within which a lost connection can come back unnoticed; 5 seconds by default. A user's locks outlast its last
    /// connection by as much. With 0 a lost connection is removed at once.
    pub grace: Duration,
    /// The silence after which a member is removed, unless its edge notices the end of its connection itself
    /// ([`JoinOptions::exempt_from_timeout`](relay_core::JoinOptions::exempt_from_timeout)); 60 seconds by default. More than
    /// 0, for otherwise no member would survive a tick.
    pub stale_after: Duration,
    /// The time without any activity after which a session is idle; 5 minutes by default. More than 0, for otherwise no
    /// session would be active.
    pub idle_after: Duration,
    /// The largest state of one participant, in bytes of JSON; 4 KiB by default. At least 1, and at most
    /// `max_document_bytes_per_address`. Each member of a document gets
    /// the states of all others.
    pub max_state_bytes: usize,
    /// The most bytes of one document's presence; 64 MiB by default. At least 1. The states of its participants take at most a
    /// quarter of it: a further one is refused as overloaded. The rest is for departed participants and for encoded rosters.
    /// Where those take too much, because members do not read them, further members wait for theirs.
    pub max_document_bytes: usize,
    /// The most bytes of one document's states that the clients of one address set; `None`, the default, sets an eighth of
    /// `max_document_bytes`, which is half of what its states take at most. At least 1. A further one is refused as overloaded.
    /// It counts the clients whose address is [known](relay_core::MemoryShare::address).
    pub max_document_bytes_per_address: Option<usize>,
    /// The names of state fields that clients cannot set, because an edge adds them to the states that it shows; none by
    /// default.
    pub reserved_state_fields: &'static [&'static str],
    /// The interval between changes that readers see; 50 milliseconds by default. Changes within it become visible together.
    /// More than 0: while many users join, each of them would otherwise cost a message to all members. Beyond 500 connections
    /// to a document the interval is longer, by 0.1 milliseconds for each.
    pub flush_interval: Duration,
    /// The most events of one document's session and users that wait to be published; 10,000 by default. At least 1, for
    /// otherwise no user could join. With so many, further joins are refused as overloaded.
    pub max_waiting_events: usize,
    /// The interval between sweeps, of locks too; 1 second by default. The times above and those of locks are exact to this interval. More than 0; below 1
    /// millisecond it counts as 1 millisecond.
    pub tick: Duration,
    /// The interval between [checkpoints](crate::LocalPresence::end_leftovers) of what is open; 10 seconds by default. After a
    /// crash the events of about this time are read again. More than 0, for without a pause the disk would be busy with it.
    pub checkpoint_interval: Duration,
}

impl Default for PresenceConfig {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5),
            stale_after: Duration::from_secs(60),
            idle_after: Duration::from_secs(5 * 60),
            max_state_bytes: 4 * 1024,
            max_document_bytes: 64 * 1024 * 1024,
            max_document_bytes_per_address: None,
            reserved_state_fields: &[],
            flush_interval: Duration::from_millis(50),
            max_waiting_events: 10_000,
            tick: Duration::from_secs(1),
            checkpoint_interval: Duration::from_secs(10),
        }
    }
}

impl PresenceConfig {
    /// The most bytes of one document's states that the clients of one address set.
    pub(crate) fn state_bytes_per_address(&self) -> usize {
        self.max_document_bytes_per_address.unwrap_or(self.max_document_bytes.div_ceil(8))
    }

    /// Checks every field against its bounds. [`LocalPresence::new`](crate::LocalPresence::new) does this first.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least_1 = "is 0; it must be at least 1";
        let more_than_0 = "is 0; it must be more than 0";
        let checks = [
            ("stale_after", self.stale_after.is_zero(), more_than_0),
            ("idle_after", self.idle_after.is_zero(), more_than_0),
            ("max_state_bytes", self.max_state_bytes == 0, at_least_1),
            ("max_document_bytes", self.max_document_bytes == 0, at_least_1),
            ("max_document_bytes_per_address", self.state_bytes_per_address() == 0, at_least_1),
            ("flush_interval", self.flush_interval.is_zero(), more_than_0),
            ("max_waiting_events", self.max_waiting_events == 0, at_least_1),
            ("tick", self.tick.is_zero(), more_than_0),
            ("checkpoint_interval", self.checkpoint_interval.is_zero(), more_than_0),
        ];
        if let Some((field, _, rule)) = checks.into_iter().find(|(_, is_broken, _)| *is_broken) {
            return Err(ConfigError::new(field, rule));
        }
        let of_address = ("max_document_bytes_per_address", self.state_bytes_per_address());
        let pairs = [
            (("max_state_bytes", self.max_state_bytes), of_address),
            (of_address, ("max_document_bytes", self.max_document_bytes)),
        ];
        match pairs.into_iter().find(|((_, inner), (_, outer))| inner > outer) {
            Some((inner, outer)) => Err(ConfigError::exceeds(inner, outer)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_that_is_out_of_bounds_is_named() {
        let zero = PresenceConfig { grace: Duration::ZERO, ..PresenceConfig::default() };
        assert_eq!(zero.validate(), Ok(()));
        let broken = PresenceConfig { max_state_bytes: 0, tick: Duration::ZERO, ..PresenceConfig::default() };
        let error = broken.validate().unwrap_err();
        assert_eq!(error.to_string(), "`max_state_bytes` is 0; it must be at least 1");
        let config = PresenceConfig { max_document_bytes: 1_000, ..PresenceConfig::default() };
        let error = config.validate().unwrap_err().within("presence").within("a").to_string();
        let bound = "`a.presence.max_document_bytes_per_address`, which is 125";
        assert_eq!(error, format!("`a.presence.max_state_bytes` is 4096; it must be at most {bound}"));
    }
}
