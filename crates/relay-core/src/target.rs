//! [`Target`]: a backend service that routed events are delivered to. [`HealthProbe`]: a check that a service works.
//!
//! Both are here, and not beside the router that calls them, so that another way to a service (a message broker, a
//! function in the same process) needs nothing but this crate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::event::Event;

/// Events on their way to a target.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Delivery {
    /// The events: at least one; several are of one document and in its order, unless the target's
    /// ordering is none. An event's id is the same on each delivery of it, which makes it the idempotency key.
    pub events: Vec<Arc<Event>>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// True when the events are sent again on request.
    pub is_replay: bool,
}

impl Delivery {
    /// The first attempt to deliver `events`.
    pub fn new(events: Vec<Arc<Event>>) -> Self {
        Self { events, attempt: 1, is_replay: false }
    }

    /// Sets the number of the attempt.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Marks the delivery as a replay.
    pub fn replay(mut self) -> Self {
        self.is_replay = true;
        self
    }
}

/// Takes events on behalf of a backend service.
#[async_trait]
pub trait Target: Send + Sync + 'static {
    /// Delivers all of `delivery`, or fails as a whole: after an error each of its events counts as not delivered.
    ///
    /// Called for several documents at once; for one document again only after the call before has returned, unless
    /// the target's ordering is none. The same event may come again, with the same id: after a crash, after a
    /// time-out, or because an answer was lost.
    ///
    /// # Cancellation
    /// Dropped when the target's time-out is over. The events then count as not delivered, whatever became of them.
    ///
    /// # Errors
    /// [`DeliveryError`], whose [`FailureKind`] says if another attempt is of use.
    async fn deliver(&self, delivery: Delivery) -> Result<(), DeliveryError>;
}

/// A failed delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryError {
    /// The kind of failure, which says if another attempt is of use.
    pub kind: FailureKind,
    /// The status that the target answered with, where it has such: of HTTP, 100 to 599.
    pub status: Option<u16>,
    /// The time for which the target wants to be left alone.
    pub retry_after: Option<Duration>,
    /// The cause, for people.
    pub detail: String,
}

impl DeliveryError {
    /// An error without a status.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        Self { kind, status: None, retry_after: None, detail: detail.into() }
    }

    /// Sets the status that the target answered with.
    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Sets the time for which the target wants to be left alone.
    pub fn retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }
}

impl fmt::Display for DeliveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "status {status}: {}", self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

impl std::error::Error for DeliveryError {}

/// The kind of a failed delivery, which says if another attempt is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// It may work later: a lost connection, an overloaded or broken service.
    Retry,
    /// These events will never be taken; others may be.
    Reject,
    /// The target wants nothing any more.
    Gone,
}

/// Checks that a service works.
#[async_trait]
pub trait HealthProbe: Send + Sync + 'static {
    /// Returns when the service has shown that it works.
    ///
    /// Called for one service again only after the call before has returned. Dropped when the probe's time-out is over,
    /// which counts as a failure.
    ///
    /// # Errors
    /// [`ProbeFailure`], when it does not work.
    async fn check(&self) -> Result<(), ProbeFailure>;
}

/// A failed health check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
#[non_exhaustive]
pub struct ProbeFailure {
    /// The cause, for people.
    pub detail: String,
}

impl ProbeFailure {
    /// A failure of which `detail` is known.
    pub fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into() }
    }
}
