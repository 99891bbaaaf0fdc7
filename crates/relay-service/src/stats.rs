//! What a service has done and is doing, in numbers.

use std::sync::Arc;
use std::time::Duration;

use relay_bus::{Bus, BusStats};
use relay_core::{Clock, DocumentId, EventLog, LogError};
use relay_ws::{WsServer, WsStats};
use serde::Serialize;

/// A snapshot of the numbers of all parts. They are read one after the other, not at one instant.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceStats {
    /// Seconds since the service started.
    pub uptime_seconds: f64,
    /// Channels: publishing, subscriptions, replay.
    pub bus: BusStats,
    /// WebSocket connections.
    pub ws: WsStats,
}

/// Where the numbers come from.
#[derive(Clone)]
pub(crate) struct Gauges {
    pub(crate) bus: Bus,
    pub(crate) ws: WsServer,
    pub(crate) log: Option<Arc<dyn EventLog>>,
    pub(crate) clock: Arc<dyn Clock>,
    /// By the clock's monotonic time.
    pub(crate) started: Duration,
}

impl Gauges {
    pub(crate) fn read(&self) -> ServiceStats {
        ServiceStats {
            uptime_seconds: self.clock.monotonic().saturating_sub(self.started).as_secs_f64(),
            bus: self.bus.stats(),
            ws: self.ws.stats(),
        }
    }

    /// Why the log takes nothing, if that is so. A log that failed says so to every question.
    pub(crate) async fn log_error(&self) -> Option<LogError> {
        let log = self.log.as_ref()?;
        let any = DocumentId::new("health").ok()?;
        log.head(&any).await.err()
    }
}
