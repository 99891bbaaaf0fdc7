//! The health of services: the state machine of one service, the circuit breaker, and the probes.
//!
//! `Health` and `CircuitBreaker` are plain state machines: each call hands them an event and the time.
//! The `HealthMonitor` runs the probes and keeps the time.

mod breaker;
mod config;
mod probe;
mod state;

pub use self::breaker::BreakerState;
pub(crate) use self::breaker::{BreakerTicket, CircuitBreaker};
pub use self::config::HealthConfig;
pub(crate) use self::probe::{ProbeSource, build_probe};
pub(crate) use self::state::{Health, Thresholds};
