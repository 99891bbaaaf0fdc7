//! The configuration of leases, probes and health.

use std::time::Duration;

use relay_core::ConfigError;

/// The times and limits of services and their health.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HealthConfig {
    /// A service without a heartbeat for longer than this is gone. Default 30 s. More than 0 and at least
    /// twice `heartbeat_every`, so that one lost heartbeat does not end a lease.
    pub lease: Duration,
    /// The interval at which services are told to send heartbeats. Default 10 s. More than 0, for otherwise they
    /// would send them without a pause.
    pub heartbeat_every: Duration,
    /// The time for which a service that is gone is remembered, with its waiting events. Default 24 hours. At
    /// 0 it is forgotten at the next tick.
    pub forget_after: Duration,
    /// The time that a draining service has for its waiting events. Default 60 s. More than 0, for otherwise
    /// none of them would be delivered.
    pub drain_timeout: Duration,
    /// The time for which deliveries are also signed with the previous secret after a rotation. Default 24
    /// hours. At 0 the previous secret is dropped at once.
    pub secret_grace: Duration,
    /// The most services and targets that are remembered at once. Default 1,000. At least 1, for otherwise no
    /// service could register.
    pub max_services: usize,
    /// The most services that are remembered at once of those that register from one address. Beyond it, the one of them that
    /// is gone for longest is forgotten. Default `None`: a quarter of `max_services`. At least 1. It counts the services whose
    /// address the edge knows.
    pub max_services_per_address: Option<usize>,
    /// The interval at which leases and ejections are checked. Default 500 ms. More than 0, for otherwise the
    /// check would never pause.
    pub tick: Duration,
    /// The failed deliveries in a row that eject a service: it counts as unhealthy, whatever its probe says.
    /// Default 10. At least 1, for a service without failures is not ejected.
    pub eject_after: u32,
    /// The length of a first ejection. Each further one in a row lasts as long again, up to ten times; a
    /// successful probe ends it early. Default 10 s. More than 0, for otherwise it would end as it begins.
    pub eject_for: Duration,
    /// The share of failed deliveries in the last minute at which a service counts as degraded. It recovers
    /// below half of the share. Default 0.5. More than 0 and at most 1: with 0 every service would be degraded.
    pub degraded_at: f64,
    /// The fewest deliveries in the last minute for `degraded_at` to apply. Default 20. At least 1, for no
    /// deliveries have no share.
    pub degraded_of: u32,
    /// The half-life of the penalty for flapping. A fall from healthy to unhealthy adds 1, a fall to or from
    /// degraded adds one half. From 3 on the service is kept down until the penalty is below 1. Default 60 s.
    /// More than 0, for otherwise there would be no penalty.
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
            max_services_per_address: None,
            tick: Duration::from_millis(500),
            eject_after: 10,
            eject_for: Duration::from_secs(10),
            degraded_at: 0.5,
            degraded_of: 20,
            flap_half_life: Duration::from_secs(60),
        }
    }
}

impl HealthConfig {
    /// The most services of one address.
    pub(crate) fn services_per_address(&self) -> usize {
        self.max_services_per_address.unwrap_or(self.max_services.div_ceil(4))
    }

    /// Checks the bounds that the fields' documentation names.
    ///
    /// # Errors
    /// [`ConfigError`], about the first field that breaks its bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let zero = [
            ("lease", self.lease.is_zero()),
            ("heartbeat_every", self.heartbeat_every.is_zero()),
            ("drain_timeout", self.drain_timeout.is_zero()),
            ("max_services", self.max_services == 0),
            ("max_services_per_address", self.services_per_address() == 0),
            ("tick", self.tick.is_zero()),
            ("eject_after", self.eject_after == 0),
            ("eject_for", self.eject_for.is_zero()),
            ("degraded_of", self.degraded_of == 0),
            ("flap_half_life", self.flap_half_life.is_zero()),
        ];
        if let Some((field, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ConfigError::new(field, "is 0; it must be more"));
        }
        if self.heartbeat_every.saturating_mul(2) > self.lease {
            let rule = format!(
                "is {:?}; it must be at most half of `lease`, which is {:?}",
                self.heartbeat_every, self.lease
            );
            return Err(ConfigError::new("heartbeat_every", rule));
        }
        if !(self.degraded_at > 0.0 && self.degraded_at <= 1.0) {
            let rule = format!("is {}; it must be more than 0 and at most 1", self.degraded_at);
            return Err(ConfigError::new("degraded_at", rule));
        }
        Ok(())
    }
}
