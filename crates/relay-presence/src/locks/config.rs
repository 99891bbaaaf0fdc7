//! The configuration of locks.

use std::time::Duration;

use relay_core::ConfigError;

use super::error::LockError;

/// The shortest lease. The wire protocols count leases in milliseconds.
const MIN_TTL: Duration = Duration::from_millis(1);

/// The configuration of [`Locks`](crate::Locks), with defaults that suit one server. [`LockConfig::validate`] checks the
/// bounds that the fields state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockConfig {
    /// The length of a lease for which the request names none; 30 seconds by default. At least 1 millisecond, and at most
    /// `max_ttl`.
    pub default_ttl: Duration,
    /// The longest lease that can be asked for; 10 minutes by default. It bounds the time for which a client that hangs
    /// keeps others out.
    pub max_ttl: Duration,
    /// The longest time for which a request may wait for its lock; 60 seconds by default. With 0 no request waits.
    pub max_wait: Duration,
    /// The most locks of one document; 1,000 by default. At least 1.
    pub max_locks: usize,
    /// The most locks of one document, and requests for them, that the clients of one address have at once; `None`, the
    /// default, sets half of `max_locks` or of `max_waiters`, whichever is less. At least 1. It counts the clients whose
    /// address is [known](relay_core::MemoryShare::address).
    pub max_locks_per_address: Option<usize>,
    /// The most requests that wait in one document; 1,000 by default. At least 1: each request waits until its grant is
    /// decided.
    pub max_waiters: usize,
    /// The most documents that have locks or requests that wait; 100,000 by default. At least 1.
    pub max_documents: usize,
    /// The most documents in which the clients of one address have locks or requests that wait; `None`, the default, sets a
    /// quarter of `max_documents`. At least 1. It counts the clients whose address is
    /// [known](relay_core::MemoryShare::address).
    pub max_documents_per_address: Option<usize>,
    /// The most changes of one document's locks that wait to be published; 1,000 by default. At least 1. With so many,
    /// nothing more is acquired or renewed there, and locks still end.
    pub max_unpublished: usize,
}

impl Default for LockConfig {
    fn default() -> Self {
        Self {
            default_ttl: Duration::from_secs(30),
            max_ttl: Duration::from_secs(10 * 60),
            max_wait: Duration::from_secs(60),
            max_locks: 1_000,
            max_locks_per_address: None,
            max_waiters: 1_000,
            max_documents: 100_000,
            max_documents_per_address: None,
            max_unpublished: 1_000,
        }
    }
}

impl LockConfig {
    /// Checks every field against its bounds. [`Locks::new`](crate::Locks::new) does this first.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { default_ttl, max_ttl, .. } = self;
        if *default_ttl < MIN_TTL {
            let rule = format!("is {default_ttl:?}; it must be at least {MIN_TTL:?}");
            return Err(ConfigError::new("default_ttl", rule));
        }
        let counts = [
            ("max_locks", self.max_locks),
            ("max_waiters", self.max_waiters),
            ("max_locks_per_address", self.locks_per_address()),
            ("max_documents", self.max_documents),
            ("max_documents_per_address", self.documents_per_address()),
            ("max_unpublished", self.max_unpublished),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::new(field, "is 0; it must be at least 1"));
        }
        let of_address = self.locks_per_address();
        if of_address > self.max_locks {
            let max = ("max_locks", self.max_locks);
            return Err(ConfigError::exceeds(("max_locks_per_address", of_address), max));
        }
        if default_ttl > max_ttl {
            let text = |ttl: &Duration| format!("{ttl:?}");
            return Err(ConfigError::exceeds(("default_ttl", text(default_ttl)), ("max_ttl", text(max_ttl))));
        }
        Ok(())
    }

    /// The most documents in which the clients of one address have locks.
    pub(super) fn documents_per_address(&self) -> usize {
        self.max_documents_per_address.unwrap_or(self.max_documents.div_ceil(4))
    }

    /// The most locks of one document that the clients of one address have.
    pub(super) fn locks_per_address(&self) -> usize {
        self.max_locks_per_address.unwrap_or(self.max_locks.min(self.max_waiters).div_ceil(2))
    }

    /// The length of a lease for which `ttl` is asked.
    pub(super) fn ttl(&self, ttl: Option<Duration>) -> Result<Duration, LockError> {
        let max = self.max_ttl;
        let ttl = ttl.unwrap_or(self.default_ttl);
        if ttl < MIN_TTL || ttl > max {
            return Err(LockError::InvalidTtl { ttl, max });
        }
        Ok(ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: &LockConfig, error: &str) {
        assert_eq!(config.validate().unwrap_err().to_string(), error);
    }

    #[test]
    fn the_first_field_that_is_out_of_bounds_is_named() {
        let config = LockConfig::default();
        assert_eq!(LockConfig { max_wait: Duration::ZERO, ..config.clone() }.validate(), Ok(()));
        let seconds = Duration::from_secs;
        check(&LockConfig { max_waiters: 0, ..config.clone() }, "`max_waiters` is 0; it must be at least 1");
        let broken = LockConfig { max_locks_per_address: Some(1_001), ..config.clone() };
        check(&broken, "`max_locks_per_address` is 1001; it must be at most `max_locks`, which is 1000");
        let broken = LockConfig { default_ttl: Duration::ZERO, ..config.clone() };
        check(&broken, "`default_ttl` is 0ns; it must be at least 1ms");
        let broken = LockConfig { default_ttl: seconds(11), max_ttl: seconds(10), ..config };
        check(&broken, "`default_ttl` is 11s; it must be at most `max_ttl`, which is 10s");
    }
}
