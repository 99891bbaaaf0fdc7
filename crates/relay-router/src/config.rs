//! What can be configured of routing.

use std::path::PathBuf;

use crate::decisions::DecisionLogConfig;
use crate::health::HealthConfig;
use crate::router::InProcessTarget;
use crate::rules::RuleDocument;
use crate::target::OutboundPolicy;

/// The configuration of a [`Router`](crate::Router).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RouterConfig {
    /// Where the router keeps what it must not forget. Made if it does not exist; not the log's own directory.
    pub directory: PathBuf,
    /// The rules, unless others came over the API.
    pub rules: RuleDocument,
    /// Targets that are code in this process.
    pub targets: Vec<InProcessTarget>,
    /// How many events wait in one route (a rule, or a target that has an own one) before it is left behind and reads the
    /// log again later; at least 1.
    pub max_queued: usize,
    /// How many bytes of waiting events are kept in memory, so that they need not be read again.
    pub cache_bytes: usize,
    /// How many dead letters are kept for each target; then the oldest make room. At least 1.
    pub max_dead_letters: usize,
    /// What may be reached.
    pub outbound: OutboundPolicy,
    /// Leases, probes and what counts as healthy.
    pub health: HealthConfig,
    /// The decision log.
    pub decisions: DecisionLogConfig,
}

impl RouterConfig {
    /// The defaults, kept in `directory`: the rules for the four services that Relay's examples have; 10,000 events wait
    /// in each route, 64 MiB of them in memory; 10,000 dead letters of each target.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            rules: RuleDocument::default(),
            targets: Vec::new(),
            max_queued: 10_000,
            cache_bytes: 64 * 1024 * 1024,
            max_dead_letters: 10_000,
            outbound: OutboundPolicy::default(),
            health: HealthConfig::default(),
            decisions: DecisionLogConfig::default(),
        }
    }

    /// The name of a limit that is zero, with which nothing would work.
    pub(crate) fn zero_field(&self) -> Option<&'static str> {
        let fields = [("max_queued", self.max_queued), ("max_dead_letters", self.max_dead_letters)];
        fields.into_iter().find(|(_, value)| *value == 0).map(|(name, _)| name)
    }
}
