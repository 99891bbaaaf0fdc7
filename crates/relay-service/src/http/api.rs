//! [`Api`]: the state that all HTTP handlers share.

use std::sync::Arc;

use relay_bus::Bus;
use relay_core::{EventSink, EventSource, MemoryBudget, MemoryLimits};
use relay_presence::LocalPresence;
use relay_router::Router;
use relay_tasks::TaskFailure;
use relay_ws::{OriginPolicy, WsServer};
use tokio_util::sync::CancellationToken;

use super::host::Hosts;
use crate::components::Components;
use crate::config::HttpConfig;
use crate::outcomes::RequestOutcomes;
use crate::stats::ServiceStats;

/// The memory of answers with the server's own numbers while that of clients is used up: 16 MiB, of which an address has at most
/// a quarter. So clients that read none of them leave some to an operator.
pub(super) fn numbers_reserve() -> MemoryBudget {
    let mut limits = MemoryLimits::default();
    limits.max_bytes = 16 * 1024 * 1024;
    limits.max_address_bytes = limits.max_bytes / 4;
    limits.max_connection_bytes = limits.max_address_bytes;
    MemoryBudget::new(limits)
}

/// The state that all HTTP handlers share.
///
/// Handlers publish and read events through [`EventSink`] and [`EventSource`]. Presence, locks, routing and WebSocket
/// connections they reach through the handles of their crates.
#[derive(Clone)]
pub(crate) struct Api {
    /// The sink for drafts of clients and services.
    pub(super) sink: Arc<dyn EventSink>,
    pub(super) source: Arc<dyn EventSource>,
    pub(super) config: HttpConfig,
    pub(super) origins: OriginPolicy,
    pub(super) hosts: Hosts,
    /// Cancelled when the server begins to stop.
    pub(super) closing: CancellationToken,
    /// The memory of answers with the server's own numbers while that of clients is used up.
    pub(super) numbers_reserve: MemoryBudget,
    components: Components,
}

impl Api {
    pub(crate) fn new(
        components: Components,
        config: HttpConfig,
        origins: OriginPolicy,
        hosts: Hosts,
        closing: CancellationToken,
    ) -> Self {
        let (sink, source) = (Arc::new(components.verified_sink.clone()), Arc::new(components.bus.clone()));
        let numbers_reserve = numbers_reserve();
        Self { sink, source, config, origins, hosts, closing, numbers_reserve, components }
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.components.bus
    }

    pub(super) fn presence(&self) -> &LocalPresence {
        &self.components.presence
    }

    pub(super) fn ws(&self) -> &WsServer {
        &self.components.ws
    }

    /// The router. `None` when events are not routed.
    pub(super) fn router(&self) -> Option<&Router> {
        self.components.router.as_ref()
    }

    /// The first task that is to run and does not.
    pub(super) fn task_failure(&self) -> Option<TaskFailure> {
        self.components.supervisor.failures().into_iter().next()
    }

    pub(super) fn memory(&self) -> &MemoryBudget {
        &self.components.memory
    }

    pub(super) fn outcomes(&self) -> &RequestOutcomes {
        &self.components.outcomes
    }

    pub(super) fn stats(&self) -> ServiceStats {
        self.components.stats()
    }

    /// The error of a log that takes no events.
    pub(super) async fn log_error(&self) -> Option<relay_core::LogError> {
        self.components.log_error().await
    }
}
