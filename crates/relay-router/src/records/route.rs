//! Routes: the queues that the router has, and the targets that each may deliver to.

use std::sync::Arc;

use relay_core::ServiceName;
use serde::{Deserialize, Serialize};

use crate::rules::Strategy;

/// The identity of a route: one rule, one target of a rule, or one target alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RouteKey {
    /// Events for the target that the named rule selects.
    Rule(Arc<str>),
    /// Events for one target of the named rule, which sends everything to each of its targets.
    Each(Arc<str>, ServiceName),
    /// Events for this target whatever the rules say: replays and requeued dead letters.
    Direct(ServiceName),
}

impl RouteKey {
    /// The name of the rule behind the route, if there is one.
    pub(crate) fn rule(&self) -> Option<&Arc<str>> {
        match self {
            Self::Rule(rule) | Self::Each(rule, _) => Some(rule),
            Self::Direct(_) => None,
        }
    }
}

/// A short stand-in for a [`RouteKey`] in the store's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RouteId(pub(crate) u32);

/// The targets that a route may deliver to, and how one of them is selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TargetSet {
    pub(crate) strategy: Strategy,
    pub(crate) targets: Vec<ServiceName>,
    /// Targets that are used while none of `targets` is usable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) fallback: Vec<ServiceName>,
}

impl TargetSet {
    /// A set of one target without fallback.
    pub(crate) fn only(target: ServiceName) -> Self {
        Self { strategy: Strategy::FirstHealthy, targets: vec![target], fallback: Vec::new() }
    }

    /// All names in the set, the fallback last.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.targets.iter().chain(&self.fallback)
    }
}

/// A route as the store keeps it. After a restart its rule may no longer exist.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RouteRecord {
    pub(crate) key: RouteKey,
    #[serde(rename = "plan")]
    pub(crate) targets: TargetSet,
}
