//! The parts of the router that its operations share.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::{LogError, Offset, ServiceName, Target};
use tokio::sync::watch;

use crate::delivery::LOG_RETRY;
use crate::delivery::deps::Deps;
use crate::delivery::engine::Engine;
use crate::dispatch::{RoutingCursor, hold_log};
use crate::store::WriteBatch;
use crate::target::{HttpTarget, HttpTargetConfig, Outbound, OutboundError};

/// The parts of the router that its operations share.
pub(super) struct RouterContext {
    pub(super) engine: Engine,
    pub(super) cursor: RoutingCursor,
    /// The last offset of the log that is known.
    pub(super) head: watch::Sender<Offset>,
    pub(super) outbound: Outbound,
    /// Held during a change of rules, targets, registrations or dead letters, so that there is one at a time.
    pub(super) config_lock: Arc<tokio::sync::Mutex<()>>,
    /// The targets that are not registered services.
    pub(super) static_targets: Mutex<BTreeMap<ServiceName, Origin>>,
}

/// The origin of a target that is not a registered service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The rule document.
    Rules,
    /// This process.
    Attached,
}

impl RouterContext {
    pub(super) fn deps(&self) -> &Deps {
        self.engine.deps()
    }

    /// Begins to route at the end of the log, if nothing is routed yet.
    ///
    /// If the log does not answer, its end is where the router last knew it to be. A new target then gets events of a
    /// moment earlier, and misses none.
    pub(super) async fn begin_routing(&self, batch: &mut WriteBatch) {
        let known = *self.head.borrow();
        let end = self.deps().log.last_offset().await.map_or(known, |last| last.max(known));
        self.cursor.begin(end, batch);
        hold_log(&self.engine, &self.cursor);
    }

    pub(super) fn http_target(&self, config: HttpTargetConfig) -> Result<Arc<dyn Target>, OutboundError> {
        let clock = Arc::clone(&self.deps().clock);
        Ok(Arc::new(HttpTarget::new(config, self.outbound.clone(), clock)?))
    }

    /// Keeps `head` up to date until the router stops or the log is closed.
    pub(super) async fn follow_log(&self) {
        let stopping = self.engine.stopping();
        let mut last = *self.head.borrow();
        while let Some(outcome) = stopping.run_until_cancelled(self.deps().log.wait_past(last)).await {
            match outcome {
                Ok(through) => {
                    last = through;
                    self.head.send_replace(through);
                }
                Err(LogError::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, "the log does not tell its last offset; retrying");
                    stopping.run_until_cancelled(tokio::time::sleep(LOG_RETRY)).await;
                }
            }
        }
    }
}
