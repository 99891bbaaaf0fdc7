//! The configuration of a router.

use std::path::PathBuf;

use relay_core::ConfigError;

use crate::decisions::DecisionLogConfig;
use crate::health::HealthConfig;
use crate::rules::RuleDocument;
use crate::target::{InProcessTarget, OutboundPolicy};

/// The configuration of a [`Router`](crate::Router).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RouterConfig {
    /// The directory of the router's store and decision files. It is created if missing, and is not the log's
    /// own directory. Not empty.
    pub directory: PathBuf,
    /// The rules, unless other ones were put over the API.
    pub rules: RuleDocument,
    /// The targets in this process.
    pub targets: Vec<InProcessTarget>,
    /// The most events that wait in memory for one route: a rule, or a target with a route of its own. Further
    /// ones wait on disk, and further retried dead letters stay dead letters. Default 10,000. At least 1, for otherwise no
    /// event would be delivered.
    pub max_queued: usize,
    /// The most events that wait for one route in memory and on disk. Further ones are lost, which is counted
    /// and decided. Default 1,000,000. At least 1.
    pub max_waiting: usize,
    /// The bytes that the waiting events of all routes take in memory beside their content. Further ones wait on disk, but 16
    /// of each route. Default 64 MiB. At least 1.
    pub queue_bytes: usize,
    /// The bytes of waiting events that are cached in memory; others are read from the log again. Default 64
    /// MiB. At 0 nothing is cached.
    pub cache_bytes: usize,
    /// The most dead letters that are kept for each target; the oldest are dropped first. Default 10,000. At
    /// least 1, for otherwise a failed event would be lost unseen.
    pub max_dead_letters: usize,
    /// The addresses that may be reached.
    pub outbound: OutboundPolicy,
    /// Leases, probes and health.
    pub health: HealthConfig,
    /// The decision log.
    pub decisions: DecisionLogConfig,
}

impl RouterConfig {
    /// The defaults, with the store in `directory` and the rules for the four services of Relay's examples.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            rules: RuleDocument::default(),
            targets: Vec::new(),
            max_queued: 10_000,
            max_waiting: 1_000_000,
            queue_bytes: 64 * 1024 * 1024,
            cache_bytes: 64 * 1024 * 1024,
            max_dead_letters: 10_000,
            outbound: OutboundPolicy::default(),
            health: HealthConfig::default(),
            decisions: DecisionLogConfig::default(),
        }
    }

    /// Checks the bounds that the fields' documentation names, also those of `outbound`, `health` and `decisions`.
    ///
    /// # Errors
    /// [`ConfigError`], about the first field that breaks its bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.directory.as_os_str().is_empty() {
            return Err(ConfigError::new("directory", "is empty; it must name a directory"));
        }
        let fields = [
            ("max_queued", self.max_queued),
            ("max_waiting", self.max_waiting),
            ("queue_bytes", self.queue_bytes),
            ("max_dead_letters", self.max_dead_letters),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::new(field, "is 0; it must be at least 1"));
        }
        self.outbound.validate().map_err(|error| error.within("outbound"))?;
        self.health.validate().map_err(|error| error.within("health"))?;
        self.decisions.validate().map_err(|error| error.within("decisions"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[track_caller]
    fn check(directory: &str, change: impl FnOnce(&mut RouterConfig), error: &str) {
        let mut config = RouterConfig::new(directory);
        change(&mut config);
        assert_eq!(config.validate().unwrap_err().to_string(), error);
    }

    #[test]
    fn the_first_field_that_is_out_of_bounds_is_named() {
        assert_eq!(RouterConfig::new("router").validate(), Ok(()));
        check("", |_| {}, "`directory` is empty; it must name a directory");
        check("router", |config| config.max_queued = 0, "`max_queued` is 0; it must be at least 1");
        check(
            "router",
            |config| config.outbound.schemes.push("ftp".to_owned()),
            "`outbound.schemes` has `ftp`; each must be `http` or `https`",
        );
        check(
            "router",
            |config| config.outbound.connect_timeout = Duration::ZERO,
            "`outbound.connect_timeout` is 0; it must be more",
        );
        check("router", |config| config.health.eject_after = 0, "`health.eject_after` is 0; it must be more");
        check(
            "router",
            |config| config.decisions.sample = 1.5,
            "`decisions.sample` is 1.5; it must be between 0 and 1",
        );
    }
}
