//! Targets that are code in this process.

use std::fmt;
use std::sync::Arc;

use relay_core::{HealthProbe, ServiceName, Target};

use crate::rules::{Capability, TargetPolicy};

/// A target in this process, with its capabilities, policy and probe.
#[derive(Clone)]
pub struct InProcessTarget {
    pub(crate) name: ServiceName,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) policy: TargetPolicy,
    pub(crate) probe: Option<Arc<dyn HealthProbe>>,
}

impl fmt::Debug for InProcessTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessTarget").field("name", &self.name).finish_non_exhaustive()
    }
}

impl InProcessTarget {
    /// A target that rules refer to as `name`. Its deliveries alone determine its health.
    pub fn new(name: ServiceName, target: Arc<dyn Target>) -> Self {
        Self { name, target, capabilities: Vec::new(), policy: TargetPolicy::default(), probe: None }
    }

    /// Sets the capabilities.
    pub fn capabilities(mut self, capabilities: Vec<Capability>) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Sets the limits, order and retries of deliveries.
    pub fn policy(mut self, policy: TargetPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the probe of its health.
    pub fn probe(mut self, probe: Arc<dyn HealthProbe>) -> Self {
        self.probe = Some(probe);
        self
    }
}
