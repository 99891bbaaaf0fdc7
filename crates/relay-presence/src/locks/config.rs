//! The limits of locks, with the defaults that suit one server.

use std::time::Duration;

use super::error::LockError;

/// The limits of [`Locks`](crate::Locks).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockConfig {
    /// How long a lease lasts that is acquired or renewed without a time of its own. Default 30 s.
    pub default_ttl: Duration,
    /// The longest lease that can be asked for. Default 10 min.
    pub max_ttl: Duration,
    /// The longest that a request may wait for its lock. Default 60 s.
    pub max_wait: Duration,
    /// Locks in one document at once. Default 1,000.
    pub max_locks: usize,
    /// Requests that wait in one document at once. Default 1,000.
    pub max_waiters: usize,
    /// Documents that have locks or waiting requests at once. Default 100,000.
    pub max_documents: usize,
    /// Changes of one document that wait to be published. With so many, nothing more is acquired or renewed there; locks
    /// end all the same. Default 1,000.
    pub max_unpublished: usize,
}

impl Default for LockConfig {
    fn default() -> Self {
        Self {
            default_ttl: Duration::from_secs(30),
            max_ttl: Duration::from_secs(10 * 60),
            max_wait: Duration::from_secs(60),
            max_locks: 1_000,
            max_waiters: 1_000,
            max_documents: 100_000,
            max_unpublished: 1_000,
        }
    }
}

/// A limit that locks cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockConfigError {
    /// The value may not be zero.
    #[error("`{field}` is 0; it must be at least 1")]
    Zero {
        /// The field of [`LockConfig`].
        field: &'static str,
    },
    /// The default lease is longer than the longest.
    #[error(
        "`default_ttl` is {} ms and `max_ttl` {} ms; the default may not be longer", default_ttl.as_millis(), max_ttl.as_millis()
    )]
    DefaultAboveMax {
        /// The default.
        default_ttl: Duration,
        /// The longest.
        max_ttl: Duration,
    },
}

impl LockConfig {
    /// Checks that locks can work with these values. `max_wait` may be zero: then nobody waits.
    ///
    /// # Errors
    /// [`LockConfigError`] for the first value that is wrong.
    pub fn validate(&self) -> Result<(), LockConfigError> {
        let at_least_one = [
            ("default_ttl", self.default_ttl.is_zero()),
            ("max_locks", self.max_locks == 0),
            ("max_waiters", self.max_waiters == 0),
            ("max_documents", self.max_documents == 0),
            ("max_unpublished", self.max_unpublished == 0),
        ];
        if let Some((field, _)) = at_least_one.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(LockConfigError::Zero { field });
        }
        if self.default_ttl > self.max_ttl {
            let Self { default_ttl, max_ttl, .. } = *self;
            return Err(LockConfigError::DefaultAboveMax { default_ttl, max_ttl });
        }
        Ok(())
    }

    /// The length of a lease for which `ttl` is asked.
    pub(super) fn ttl(&self, ttl: Option<Duration>) -> Result<Duration, LockError> {
        let max = self.max_ttl;
        let ttl = ttl.unwrap_or(self.default_ttl);
        if ttl < Duration::from_millis(1) || ttl > max {
            return Err(LockError::InvalidTtl { ttl, max });
        }
        Ok(ttl)
    }
}
