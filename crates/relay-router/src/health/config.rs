//! Leases, and what counts as working.

use std::time::Duration;

/// Times and limits of services and their health.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HealthConfig {
    /// A service that was silent for longer than this is gone. Default 30 s.
    pub lease: Duration,
    /// How often services are told to send a heartbeat. Default 10 s, so that one that is lost does no harm.
    pub heartbeat_every: Duration,
    /// How long a service that is gone is remembered, with all that waits for it. Default 24 hours.
    pub forget_after: Duration,
    /// How long a service that leaves may take for what waits for it. Default 60 s.
    pub drain_timeout: Duration,
    /// How long deliveries are signed with the secret before the last one too. Default 24 hours.
    pub secret_grace: Duration,
    /// The most services that are remembered at once. Default 1,000.
    pub max_services: usize,
    /// How often those times are looked at. Default 500 ms.
    pub tick: Duration,
    /// Failed deliveries in a row after which a service counts as unhealthy, whatever its probe says. Default 10.
    pub eject_after: u32,
    /// For how long the first time; each further time in a row as long again, up to ten times. A service whose probe
    /// succeeds comes back earlier. Default 10 s.
    pub eject_for: Duration,
    /// A service is degraded when at least this share of its deliveries of the last minute failed, 0 to 1, until it is
    /// less than half of that. Default 0.5.
    pub degraded_at: f64,
    /// How many deliveries that must have been. Default 20.
    pub degraded_of: u32,
    /// How soon it is forgiven that a service went up and down: each fall from healthy to unhealthy counts 1, one to or from
    /// degraded one half, what there is halves in this time, and with 3 or more it stays down until there is less than
    /// 1. Default 60 s.
    pub flap_half_life: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            heartbeat_every: Duration::from_secs(10),
            forget_after: Duration::from_secs(24 * 60 * 60),
            drain_timeout: Duration::from_secs(60),
            secret_grace: Duration::from_secs(24 * 60 * 60),
            max_services: 1_000,
            tick: Duration::from_millis(500),
            eject_after: 10,
            eject_for: Duration::from_secs(10),
            degraded_at: 0.5,
            degraded_of: 20,
            flap_half_life: Duration::from_secs(60),
        }
    }
}

/// Why a [`HealthConfig`] is not usable.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HealthConfigError {
    /// A value is zero, with which nothing would work.
    #[error("`{field}` is 0; it must be more")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// A single heartbeat that is lost would end a lease.
    #[error(
        "`heartbeat_every` is {heartbeat_every:?}; it must be at most half of `lease`, which is {lease:?}"
    )]
    HeartbeatTooRare {
        /// How often heartbeats come.
        heartbeat_every: Duration,
        /// How long a lease lasts.
        lease: Duration,
    },
    /// A share is none.
    #[error("`degraded_at` is {0}; it must be more than 0 and at most 1")]
    Share(f64),
}

impl HealthConfig {
    /// # Errors
    /// See [`HealthConfigError`].
    pub(crate) fn validate(&self) -> Result<(), HealthConfigError> {
        let zero = [
            ("lease", self.lease.is_zero()),
            ("heartbeat_every", self.heartbeat_every.is_zero()),
            ("drain_timeout", self.drain_timeout.is_zero()),
            ("max_services", self.max_services == 0),
            ("tick", self.tick.is_zero()),
            ("eject_after", self.eject_after == 0),
            ("eject_for", self.eject_for.is_zero()),
            ("degraded_of", self.degraded_of == 0),
            ("flap_half_life", self.flap_half_life.is_zero()),
        ];
        if let Some((field, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(HealthConfigError::Zero { field });
        }
        if self.heartbeat_every.saturating_mul(2) > self.lease {
            let (heartbeat_every, lease) = (self.heartbeat_every, self.lease);
            return Err(HealthConfigError::HeartbeatTooRare { heartbeat_every, lease });
        }
        if !(self.degraded_at > 0.0 && self.degraded_at <= 1.0) {
            return Err(HealthConfigError::Share(self.degraded_at));
        }
        Ok(())
    }
}
