//! Whether a service works: what probes and deliveries say of it, and when it is left alone.
//!
//! What is known of one service is a state machine ([`Health`]) that is told what happens, and when; so is the
//! [`CircuitBreaker`] in front of a target. The [`HealthMonitor`] around them asks the services and keeps the time.

mod breaker;
mod config;
mod probe;
mod state;

pub use self::breaker::BreakerState;
pub(crate) use self::breaker::{CircuitBreaker, Ticket};
pub use self::config::{HealthConfig, HealthConfigError};
pub(crate) use self::probe::{ProbeSource, build_probe};
pub(crate) use self::state::{Health, Thresholds};
