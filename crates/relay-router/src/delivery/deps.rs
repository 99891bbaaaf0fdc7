//! The parts of the router that deliveries use.

use std::sync::Arc;

use relay_core::{Clock, EventLog};

use super::dropped_offsets::DroppedOffsets;
use super::loss_report::LossReport;
use crate::decisions::DecisionLog;
use crate::loop_detection::CausesKey;
use crate::metrics::RouterMetrics;
use crate::monitor::HealthMonitor;
use crate::store::Store;

/// The parts of the router that deliveries use.
pub(crate) struct Deps {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) monitor: HealthMonitor,
    pub(crate) decisions: DecisionLog,
    pub(crate) metrics: Arc<RouterMetrics>,
    pub(crate) losses: LossReport,
    pub(crate) dropped: DroppedOffsets,
    pub(crate) causes_key: CausesKey,
}
