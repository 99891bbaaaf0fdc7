//! The routing table: the rules in force and the targets that they lead to, as one immutable value.
//!
//! Routing an event is a pure function of the table. So a page of the log is routed without any lock, and a dry run
//! asks a table of its own. A change of rules or targets makes a new table; two handles to the same table prove that
//! nothing changed in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use relay_core::{Event, ServiceName};

use crate::decisions::Outcome;
use crate::loop_detection;
use crate::records::{RouteKey, TargetSet, publisher_of};
use crate::rules::{Capability, Rule, RuleSet, Strategy, TargetRef};

/// The targets that exist, with their capabilities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TargetDirectory(BTreeMap<ServiceName, Vec<Capability>>);

impl FromIterator<(ServiceName, Vec<Capability>)> for TargetDirectory {
    fn from_iter<I: IntoIterator<Item = (ServiceName, Vec<Capability>)>>(targets: I) -> Self {
        Self(targets.into_iter().collect())
    }
}

impl TargetDirectory {
    /// The targets that `wanted` refers to, each once, in the order of the references; those of a capability by name.
    fn resolve(&self, wanted: &[TargetRef]) -> Vec<ServiceName> {
        let mut names: Vec<ServiceName> = Vec::with_capacity(wanted.len());
        for one in wanted {
            match one {
                TargetRef::Name(name) if self.0.contains_key(name) => names.push(name.clone()),
                TargetRef::Name(_) => {}
                TargetRef::Capability(capability) => {
                    let able = self.0.iter().filter(|(_, capabilities)| capabilities.contains(capability));
                    names.extend(able.map(|(name, _)| name.clone()));
                }
            }
        }
        let mut seen = HashSet::with_capacity(names.len());
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

/// The rules in force and the targets of each.
#[derive(Debug)]
pub(crate) struct RoutingTable {
    version: u64,
    rules: Arc<RuleSet>,
    directory: TargetDirectory,
    /// The targets of each rule, by its name.
    targets: HashMap<Arc<str>, Arc<TargetSet>>,
}

/// The decisions of the rules about one event.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// The rules that match.
    pub(crate) matched: Vec<Arc<str>>,
    /// The rules whose condition failed, which counts as not matching.
    pub(crate) condition_errors: Vec<Arc<str>>,
    /// The routes that get the event.
    pub(crate) routes: Vec<RoutedTo>,
    /// The matching rules that send the event nowhere. When no rule matches there is one without a rule.
    pub(crate) drops: Vec<RoutingDrop>,
}

/// A route that gets an event.
#[derive(Debug, Clone)]
pub(crate) struct RoutedTo {
    pub(crate) key: RouteKey,
    /// The targets of the route's rule.
    of_rule: Arc<TargetSet>,
}

/// A decision that sends an event nowhere.
#[derive(Debug, Clone)]
pub(crate) struct RoutingDrop {
    pub(crate) rule: Option<Arc<str>>,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<String>,
}

impl RoutedTo {
    /// The targets of the route.
    pub(crate) fn target_set(&self) -> TargetSet {
        target_set(&self.key, &self.of_rule)
    }
}

fn target_set(key: &RouteKey, of_rule: &TargetSet) -> TargetSet {
    match key {
        RouteKey::Rule(_) => of_rule.clone(),
        RouteKey::Each(_, target) => {
            TargetSet { fallback: of_rule.fallback.clone(), ..TargetSet::only(target.clone()) }
        }
        RouteKey::Direct(target) => TargetSet::only(target.clone()),
    }
}

impl RoutingTable {
    pub(crate) fn new(version: u64, rules: Arc<RuleSet>, directory: TargetDirectory) -> Self {
        let targets = rules.rules().iter().map(|rule| {
            let set = TargetSet {
                strategy: rule.strategy,
                targets: directory.resolve(&rule.targets),
                fallback: directory.resolve(&rule.fallback),
            };
            (Arc::clone(&rule.name), Arc::new(set))
        });
        let targets = targets.collect();
        Self { version, rules, directory, targets }
    }

    /// A table of other rules and the same targets.
    pub(crate) fn with_rules(&self, version: u64, rules: Arc<RuleSet>) -> Self {
        Self::new(version, rules, self.directory.clone())
    }

    /// A table of the same rules and other targets.
    pub(crate) fn with_targets(&self, directory: TargetDirectory) -> Self {
        Self::new(self.version, Arc::clone(&self.rules), directory)
    }

    /// The version of the rules.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    pub(crate) fn directory(&self) -> &TargetDirectory {
        &self.directory
    }

    /// The targets of a route; none if its rule is not in force.
    pub(crate) fn target_set(&self, key: &RouteKey) -> Option<TargetSet> {
        match key {
            RouteKey::Direct(target) => Some(TargetSet::only(target.clone())),
            RouteKey::Rule(rule) | RouteKey::Each(rule, _) => Some(target_set(key, self.targets.get(rule)?)),
        }
    }

    /// Returns true if the targets of a route may come back after all of them are gone: the route's rule exists, and names
    /// the target where the route has but one.
    pub(crate) fn awaits_targets(&self, key: &RouteKey) -> bool {
        let names = |rule: &Rule, target: &ServiceName| {
            let mut wanted = rule.targets.iter().chain(&rule.fallback);
            wanted.any(|one| matches!(one, TargetRef::Name(name) if name == target))
        };
        match key {
            RouteKey::Rule(rule) => self.targets.contains_key(rule),
            RouteKey::Each(rule, target) => self.rules.rule(rule).is_some_and(|rule| names(rule, target)),
            RouteKey::Direct(target) => self.rules.rules().iter().any(|rule| names(rule, target)),
        }
    }

    /// Returns true if some rule names the target.
    pub(crate) fn names(&self, target: &ServiceName) -> bool {
        self.targets.values().any(|set| set.names().any(|name| name == target))
    }

    /// The first rule that sends `event` to `target`, perhaps as a fallback. As in routing, no rule closes a loop, and none
    /// sends an event back to its publisher.
    pub(crate) fn rule_to(&self, event: &Event, target: &ServiceName) -> Option<Arc<str>> {
        if publisher_of(event) == Some(target) {
            return None;
        }
        let leads_there = |rule: &Rule| {
            let targets = self.targets.get(&rule.name);
            targets.is_some_and(|set| set.names().any(|name| name == target))
                && loop_detection::extend_chain(event, &rule.name).is_ok()
        };
        self.rules
            .matches(event)
            .into_iter()
            .find(|rule| leads_there(rule))
            .map(|rule| Arc::clone(&rule.name))
    }

    /// Counts the failed conditions of an event that was routed.
    pub(crate) fn count_condition_errors(&self, routed: &Routed) {
        for name in &routed.condition_errors {
            self.rules.rule(name).into_iter().for_each(Rule::count_condition_error);
        }
    }

    /// Routes `event`. Counts and changes nothing.
    ///
    /// Skips draining services, and the service that published the event.
    pub(crate) fn route(&self, event: &Event, is_draining: impl Fn(&ServiceName) -> bool) -> Routed {
        let mut routed = Routed::default();
        if event.is_lost() {
            // Nobody knows what it was, so it matches no rule. The dispatcher decides that it is lost.
            return routed;
        }
        let publisher = publisher_of(event);
        let matches = self.rules.evaluate(event);
        routed.condition_errors = matches.failed().iter().map(|rule| Arc::clone(&rule.name)).collect();
        for rule in matches {
            let name = Arc::clone(&rule.name);
            let dropped = |outcome, reason| RoutingDrop { rule: Some(Arc::clone(&name)), outcome, reason };
            routed.matched.push(Arc::clone(&name));
            if let Err(error) = loop_detection::extend_chain(event, &name) {
                routed.drops.push(dropped(Outcome::Cycle, Some(error.to_string())));
                continue;
            }
            let Some(of_rule) = self.targets.get(&name) else {
                routed.drops.push(dropped(Outcome::NoTarget, None));
                continue;
            };
            let is_open = |target: &&ServiceName| !is_draining(target);
            let open: Vec<_> = of_rule.targets.iter().filter(is_open).collect();
            let has_open_fallback = of_rule.fallback.iter().any(|target| is_open(&target));
            let is_other = |target: &ServiceName| Some(target) != publisher;
            let mut targets = open.iter().copied().filter(|target| is_other(target)).peekable();
            let has_fallback = of_rule.fallback.iter().any(|target| is_open(&target) && is_other(target));
            match (targets.peek().is_none(), has_fallback) {
                (true, false) => routed.drops.push(match publisher {
                    Some(publisher) if !open.is_empty() || has_open_fallback => {
                        let reason =
                            format!("`{publisher}` published it; no event goes back to its publisher");
                        dropped(Outcome::Cycle, Some(reason))
                    }
                    _ => dropped(Outcome::NoTarget, None),
                }),
                (false, _) if rule.strategy == Strategy::All => {
                    routed.routes.extend(targets.map(|target| RoutedTo {
                        key: RouteKey::Each(Arc::clone(&name), target.clone()),
                        of_rule: Arc::clone(of_rule),
                    }));
                }
                _ => {
                    let key = RouteKey::Rule(Arc::clone(&name));
                    routed.routes.push(RoutedTo { key, of_rule: Arc::clone(of_rule) });
                }
            }
        }
        if routed.matched.is_empty() {
            routed.drops.push(RoutingDrop { rule: None, outcome: Outcome::NoMatch, reason: None });
        }
        routed
    }
}
