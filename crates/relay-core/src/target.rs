//! [`Target`]: a backend service that routed events are delivered to. [`HealthProbe`]: the question whether one works.
//!
//! Both stand here, and not beside the router that calls them, so that whoever brings another way to a service (a
//! message broker, a function in the same process) needs nothing but this crate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::event::Event;

/// Events on their way to a target.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Delivery {
    /// What is delivered: at least one event; several are of one document and in its order, unless the target's
    /// ordering is none. An event's id is the same on each delivery of it, which makes it the idempotency key.
    pub events: Vec<Arc<Event>>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// True when somebody asked for these events to be sent again.
    pub is_replay: bool,
}

impl Delivery {
    /// The first attempt to deliver `events`.
    pub fn new(events: Vec<Arc<Event>>) -> Self {
        Self { events, attempt: 1, is_replay: false }
    }

    /// Sets which attempt this is.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Marks the delivery as one that was asked for again.
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
    /// [`DeliveryError`], whose [`FailureKind`] says whether trying again is of use.
    async fn deliver(&self, delivery: Delivery) -> Result<(), DeliveryError>;
}

/// Why a target did not take a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryError {
    /// Whether it is of use to try again.
    pub kind: FailureKind,
    /// The status that the target answered with, where it has such: of HTTP, 100 to 599.
    pub status: Option<u16>,
    /// How long the target wants to be left alone.
    pub retry_after: Option<Duration>,
    /// What happened, for people.
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

    /// Sets how long the target wants to be left alone.
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

/// Whether a failed delivery is of use to be tried again.
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

/// Asks whether a service works.
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

/// Why a service does not count as working.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ProbeFailure {
    /// What was found, for people.
    pub detail: String,
}

impl ProbeFailure {
    /// A failure of which `detail` is known.
    pub fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into() }
    }
}
