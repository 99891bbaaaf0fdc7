//! The services that have registered, and how long they are believed to be there.
//!
//! A service registers by itself and gets a lease, which its heartbeats renew; one that is silent for longer is gone,
//! and still remembered for a day, so that what waits for it is there when it comes back. A registration survives the
//! relay's own restart, its lease beginning anew then. Values and rules only: the [`HealthMonitor`] keeps the time.
//!
//! [`HealthMonitor`]: crate::monitor::HealthMonitor

mod service;
mod table;

pub use self::service::{
    Heartbeat, LeaseError, LeaseId, RegisterError, Registered, Registration, ReportedState, ServiceInfo,
    ServiceQuery,
};
pub(crate) use self::service::{ServiceChange, ServiceRecord};
pub(crate) use self::table::{ProbeTarget, Registry};
