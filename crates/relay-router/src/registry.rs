//! The registry of services and their leases.
//!
//! A service registers itself and gets a lease, which its heartbeats renew. Without heartbeats it is gone,
//! but stays remembered for a day, so that its waiting events are there when it returns. A registration
//! survives a restart of the server; its lease then begins anew. This module holds values and rules only; the
//! `HealthMonitor` keeps the time.

mod service;
mod table;

pub use self::service::{
    Heartbeat, InvalidLeaseId, LeaseError, LeaseId, RegisterError, Registered, Registration, ReportedState,
    ServiceInfo, ServiceQuery,
};
pub(crate) use self::service::{ServiceChange, ServiceRecord};
pub(crate) use self::table::{ProbeTarget, Registry};
