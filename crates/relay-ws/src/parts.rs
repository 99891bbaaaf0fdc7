//! [`WsParts`]: the parts of Relay that a server works with.

use std::sync::Arc;

use relay_core::{Clock, Commands, EventSink, EventSource, Presence};

/// The parts that a [`WsServer`](crate::WsServer) works with.
#[derive(Clone)]
#[non_exhaustive]
pub struct WsParts {
    /// The sink of the events that clients publish.
    pub sink: Arc<dyn EventSink>,
    /// The source of the events of the documents that clients join.
    pub source: Arc<dyn EventSource>,
    /// The keeper of participants. With `None`, members are not told of each other.
    pub presence: Option<Arc<dyn Presence>>,
    /// The commands of participants, for members that take part in presence.
    pub commands: Arc<Commands>,
    /// The source of time, for time-outs.
    pub clock: Arc<dyn Clock>,
}

impl WsParts {
    /// Parts without presence and without commands.
    pub fn new(sink: Arc<dyn EventSink>, source: Arc<dyn EventSource>, clock: Arc<dyn Clock>) -> Self {
        Self { sink, source, presence: None, commands: Arc::default(), clock }
    }
}
