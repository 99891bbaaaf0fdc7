//! Routes events to backend services: which of them gets what, in order, surviving crashes, with a record of why.

pub mod decisions;
pub mod health;
pub mod metrics;
pub mod registry;
pub mod rules;
pub mod target;
