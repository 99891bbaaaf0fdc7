//! [`WsParts`]: the parts of Relay that a server works with.

use std::sync::Arc;

use relay_core::{Clock, Commands, EventSink, EventSource, MemoryBudget, Presence};
use relay_tasks::Supervisor;

/// The parts that a [`WsServer`](crate::WsServer) works with.
#[derive(Clone)]
#[non_exhaustive]
pub struct WsParts {
    /// The sink of the events that clients publish.
    pub sink: Arc<dyn EventSink>,
    /// The source of the events of the documents that clients join.
    pub source: Arc<dyn EventSource>,
    /// The presence of participants. With `None`, members do not see each other.
    pub presence: Option<Arc<dyn Presence>>,
    /// The commands that clients may run on documents where they take part in presence. Empty by default.
    pub commands: Arc<Commands>,
    /// The clock for rates, time-outs and latencies.
    pub clock: Arc<dyn Clock>,
    /// The owner of the server's tasks.
    pub supervisor: Supervisor,
    /// The budget of the memory that connections hold.
    pub memory: MemoryBudget,
}

impl WsParts {
    /// The parts of a server without presence and without commands, and with a budget of its own with the default limits.
    pub fn new(sink: Arc<dyn EventSink>, source: Arc<dyn EventSource>, clock: Arc<dyn Clock>) -> Self {
        let (presence, commands, supervisor, memory) = Default::default();
        Self { sink, source, presence, commands, clock, supervisor, memory }
    }
}
