//! The table of all services and targets, with the health of each.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use relay_core::{HealthProbe, Monotonic, Now, ServiceName, Timestamp};
use relay_events::ServiceState;

use super::service::{
    Heartbeat, LeaseError, LeaseId, RegisterError, Registered, Registration, ReportedState, ServiceChange,
    ServiceInfo, ServiceQuery, ServiceRecord,
};
use crate::health::{Health, HealthConfig, ProbeSource, Thresholds};
use crate::rules::{Capability, ProbeCheck, ProbeSpec, TargetSpec};

/// The table of services.
pub(crate) struct Registry {
    config: HealthConfig,
    entries: HashMap<ServiceName, ServiceEntry>,
    /// The changes since the last [`Registry::take_changes`].
    changes: Vec<ServiceChange>,
    /// Counts the entries ever made, so that a probe task of a replaced entry is recognised.
    generation: u64,
}

struct ServiceEntry {
    health: Health,
    origin: ServiceOrigin,
    /// The probe; `None` for a service that is not probed.
    probe: Option<ProbeSource>,
    /// The number of this entry, which distinguishes it from earlier ones of the same name.
    generation: u64,
}

enum ServiceOrigin {
    Registered(Box<ServiceLease>),
    Configured(Box<TargetSpec>),
    Attached(Vec<Capability>),
}

struct ServiceLease {
    record: ServiceRecord,
    last_heartbeat: Timestamp,
    /// The moment of the last renewal.
    renewed_at: Monotonic,
    phase: LeasePhase,
}

#[derive(PartialEq, Eq)]
enum LeasePhase {
    Held,
    /// The service drains, until this moment at the latest.
    Draining(Monotonic),
    /// The service is gone since this moment.
    Gone(Monotonic),
}

/// A service to be probed.
pub(crate) struct ProbeTarget {
    pub(crate) name: ServiceName,
    pub(crate) generation: u64,
    pub(crate) source: ProbeSource,
}

impl Registry {
    pub(crate) fn new(config: HealthConfig) -> Self {
        Self { config, entries: HashMap::new(), changes: Vec::new(), generation: 0 }
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Takes the changes since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<ServiceChange> {
        std::mem::take(&mut self.changes)
    }

    pub(crate) fn state(&self, name: &ServiceName) -> ServiceState {
        self.entries.get(name).map_or(ServiceState::Unknown, |entry| entry.health.state())
    }

    /// Registers a service that asks from `address`, or replaces its registration; an earlier lease is lost.
    pub(crate) fn register(
        &mut self,
        name: ServiceName,
        registration: Registration,
        address: Option<IpAddr>,
        now: Now,
    ) -> Result<Registered, RegisterError> {
        registration.validate()?;
        if self.lease(&name).is_none() && self.entries.contains_key(&name) {
            return Err(RegisterError::NameTaken { service: name });
        }
        let longest_gone = address.map(|address| self.place_of(&name, address)).transpose()?.flatten();
        let others = self.entries.len() - usize::from(longest_gone.is_some());
        if self.lease(&name).is_none() && others >= self.config.max_services {
            let (count, max) = (others + 1, self.config.max_services);
            return Err(RegisterError::TooMany { what: "services", count, max });
        }
        if let Some(longest_gone) = longest_gone {
            self.entries.remove(&longest_gone);
        }
        let before = self.lease(&name);
        let is_new = before.is_none_or(|lease| matches!(lease.phase, LeasePhase::Gone(_)));
        let (secret, old_secret) = match before {
            Some(lease) => (lease.record.secret.clone(), lease.record.old_secret.clone()),
            None => (new_secret(), None),
        };
        let lease = LeaseId::random();
        let record = ServiceRecord {
            name: name.clone(),
            registration,
            registered_at: now.wall,
            address,
            lease,
            secret,
            old_secret,
        };
        // The known health stays if neither the address nor the probe changed.
        let is_same = before.is_some_and(|before| {
            !matches!(before.phase, LeasePhase::Gone(_) | LeasePhase::Draining(_))
                && before.record.registration.url == record.registration.url
                && before.record.registration.probe == record.registration.probe
        });
        let secret = record.secret.clone();
        if is_same {
            if let Some(lease) = self.lease_mut(&name) {
                lease.record = record;
                lease.renewed_at = now.monotonic;
                lease.last_heartbeat = now.wall;
            }
        } else {
            self.insert_registered(record, now);
        }
        let Some(service) = self.service(&name) else {
            return Err(LeaseError::Unknown { service: name }.into());
        };
        let (ttl, heartbeat_every) = (self.config.lease, self.config.heartbeat_every);
        Ok(Registered { service, lease, ttl, heartbeat_every, secret, is_new })
    }

    /// Checks that `address` has a place for the service `name`. Where it has none, returns the one of its services that is gone
    /// for longest, which is to be forgotten.
    fn place_of(&self, name: &ServiceName, address: IpAddr) -> Result<Option<ServiceName>, RegisterError> {
        let max = self.config.services_per_address();
        let leases = self.entries.iter().filter_map(|(other, entry)| match &entry.origin {
            ServiceOrigin::Registered(lease) if other != name => Some((other, lease)),
            _ => None,
        });
        let of_address = leases.filter(|(_, lease)| lease.record.address == Some(address));
        if of_address.clone().count() < max {
            return Ok(None);
        }
        let gone = of_address.filter_map(|(other, lease)| match lease.phase {
            LeasePhase::Gone(since) => Some((since, other.clone())),
            LeasePhase::Held | LeasePhase::Draining(_) => None,
        });
        let (_, longest_gone) = gone.min().ok_or(RegisterError::TooManyFromAddress { max, address })?;
        Ok(Some(longest_gone))
    }

    /// Restores a registration from before a restart; its lease begins now.
    pub(crate) fn restore(&mut self, record: ServiceRecord, now: Now) {
        self.insert_registered(record, now);
    }

    fn insert_registered(&mut self, record: ServiceRecord, now: Now) {
        let name = record.name.clone();
        let Registration { probe, url, .. } = &record.registration;
        let source =
            (probe.check != ProbeCheck::Heartbeat).then(|| ProbeSource::Spec(probe.clone(), url.clone()));
        let thresholds = Thresholds { rise: probe.rise, fall: probe.fall };
        let origin = ServiceOrigin::Registered(Box::new(ServiceLease {
            record,
            last_heartbeat: now.wall,
            renewed_at: now.monotonic,
            phase: LeasePhase::Held,
        }));
        self.insert(name, origin, source, thresholds, now);
    }

    fn insert(
        &mut self,
        name: ServiceName,
        origin: ServiceOrigin,
        probe: Option<ProbeSource>,
        thresholds: Thresholds,
        now: Now,
    ) {
        self.generation += 1;
        let health = Health::new(thresholds, now.wall);
        let was_known = self.entries.get(&name).map(|entry| entry.health.state());
        let entry = ServiceEntry { health, origin, probe, generation: self.generation };
        self.entries.insert(name.clone(), entry);
        if was_known != Some(ServiceState::Unknown) {
            self.changes.push(ServiceChange { service: name, state: ServiceState::Unknown, reason: None });
        }
    }

    /// Replaces the targets of the previous rule document by `targets`.
    pub(crate) fn configure(&mut self, targets: &[TargetSpec], now: Now) {
        let is_named = |name: &ServiceName| targets.iter().any(|target| target.name == *name);
        let dropped = self.entries.extract_if(|name, entry| {
            matches!(entry.origin, ServiceOrigin::Configured(_)) && !is_named(name)
        });
        self.changes.extend(dropped.map(|(service, _)| ServiceChange {
            service,
            state: ServiceState::Gone,
            reason: Some("the rules no longer name it".to_owned()),
        }));
        for target in targets {
            let is_same = self.entries.get(&target.name).is_some_and(
                |entry| matches!(&entry.origin, ServiceOrigin::Configured(old) if old.url == target.url && old.probe == target.probe),
            );
            let origin = ServiceOrigin::Configured(Box::new(target.clone()));
            if let (true, Some(entry)) = (is_same, self.entries.get_mut(&target.name)) {
                entry.origin = origin;
                continue;
            }
            let probe = target.probe.clone().filter(|probe| probe.check != ProbeCheck::Heartbeat);
            let thresholds = probe
                .as_ref()
                .map_or(SINGLE_ANSWER, |probe| Thresholds { rise: probe.rise, fall: probe.fall });
            let source = probe.map(|probe| ProbeSource::Spec(probe, target.url.clone()));
            self.insert(target.name.clone(), origin, source, thresholds, now);
        }
    }

    /// Adds a target in this process.
    pub(crate) fn attach(
        &mut self,
        name: ServiceName,
        capabilities: Vec<Capability>,
        probe: Option<Arc<dyn HealthProbe>>,
        now: Now,
    ) {
        let defaults = ProbeSpec::default();
        let thresholds = Thresholds { rise: defaults.rise, fall: defaults.fall };
        self.insert(
            name,
            ServiceOrigin::Attached(capabilities),
            probe.map(ProbeSource::Custom),
            thresholds,
            now,
        );
    }

    pub(crate) fn heartbeat(
        &mut self,
        name: &ServiceName,
        lease: LeaseId,
        heartbeat: Heartbeat,
        now: Now,
    ) -> Result<Duration, LeaseError> {
        let held = self.held_lease(name, lease)?;
        held.renewed_at = now.monotonic;
        held.last_heartbeat = now.wall;
        let degraded = match heartbeat.state {
            ReportedState::Healthy => None,
            ReportedState::Degraded => Some(
                heartbeat.reason.unwrap_or_else(|| "the service reports it, without a reason".to_owned()),
            ),
        };
        self.update(name, now, |health, _| health.record_report(degraded));
        Ok(self.config.lease)
    }

    /// Starts to drain a service.
    pub(crate) fn deregister(
        &mut self,
        name: &ServiceName,
        lease: LeaseId,
        now: Now,
    ) -> Result<ServiceInfo, LeaseError> {
        let until = now.monotonic + self.config.drain_timeout;
        self.held_lease(name, lease)?.phase = LeasePhase::Draining(until);
        self.update(name, now, |health, _| health.drain());
        self.service(name).ok_or_else(|| LeaseError::Unknown { service: name.clone() })
    }

    /// Records that no event waits for a draining service any more.
    pub(crate) fn drained(&mut self, name: &ServiceName, now: Now) {
        if self.lease(name).is_some_and(|lease| matches!(lease.phase, LeasePhase::Draining(_))) {
            self.end_lease(name, now);
        }
    }

    fn end_lease(&mut self, name: &ServiceName, now: Now) {
        if let Some(lease) = self.lease_mut(name) {
            lease.phase = LeasePhase::Gone(now.monotonic);
        }
        if let Some(entry) = self.entries.get_mut(name) {
            entry.probe = None;
        }
        self.update(name, now, |health, _| health.leave());
    }

    pub(crate) fn rotate_secret(
        &mut self,
        name: &ServiceName,
        lease: LeaseId,
        now: Now,
    ) -> Result<String, LeaseError> {
        let until = now.wall.saturating_add(self.config.secret_grace);
        let record = &mut self.held_lease(name, lease)?.record;
        let old = std::mem::replace(&mut record.secret, new_secret());
        record.old_secret = Some((old, until));
        Ok(record.secret.clone())
    }

    pub(crate) fn probed(
        &mut self,
        name: &ServiceName,
        generation: u64,
        answer: Result<(), String>,
        now: Now,
    ) {
        if self.entries.get(name).is_some_and(|entry| entry.generation == generation) {
            self.update(name, now, |health, _| health.record_probe(answer));
        }
    }

    pub(crate) fn delivered(&mut self, name: &ServiceName, answer: Result<(), &str>, now: Now) {
        self.update(name, now, |health, config| health.record_delivery(answer, config, now.monotonic));
    }

    /// Ends expired leases, forgets services, and updates every health. Returns true if a service needs no
    /// probe any more.
    pub(crate) fn tick(&mut self, now: Now) -> bool {
        let mut has_ended = false;
        let names: Vec<_> = self.entries.keys().cloned().collect();
        for name in names {
            let Some(lease) = self.lease(&name) else {
                self.update(&name, now, |_, _| ());
                continue;
            };
            let silent = now.monotonic.since(lease.renewed_at);
            match lease.phase {
                LeasePhase::Gone(since) => {
                    if now.monotonic.since(since) > self.config.forget_after {
                        self.entries.remove(&name);
                    }
                }
                LeasePhase::Held if silent <= self.config.lease => self.update(&name, now, |_, _| ()),
                LeasePhase::Draining(until) if now.monotonic < until => self.update(&name, now, |_, _| ()),
                LeasePhase::Held | LeasePhase::Draining(_) => {
                    self.end_lease(&name, now);
                    has_ended = true;
                }
            }
        }
        has_ended
    }

    /// Changes the health of one service, and records a change of its state.
    fn update(&mut self, name: &ServiceName, now: Now, change: impl FnOnce(&mut Health, &HealthConfig)) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        change(&mut entry.health, &self.config);
        if entry.health.update(&self.config, now.monotonic, now.wall) {
            self.changes.push(ServiceChange {
                service: name.clone(),
                state: entry.health.state(),
                reason: entry.health.reason().map(str::to_owned),
            });
        }
    }

    fn lease(&self, name: &ServiceName) -> Option<&ServiceLease> {
        match &self.entries.get(name)?.origin {
            ServiceOrigin::Registered(lease) => Some(lease),
            ServiceOrigin::Configured(_) | ServiceOrigin::Attached(_) => None,
        }
    }

    fn lease_mut(&mut self, name: &ServiceName) -> Option<&mut ServiceLease> {
        match &mut self.entries.get_mut(name)?.origin {
            ServiceOrigin::Registered(lease) => Some(lease),
            ServiceOrigin::Configured(_) | ServiceOrigin::Attached(_) => None,
        }
    }

    fn held_lease(&mut self, name: &ServiceName, lease: LeaseId) -> Result<&mut ServiceLease, LeaseError> {
        let unknown = || LeaseError::Unknown { service: name.clone() };
        match self.lease_mut(name) {
            None => Err(unknown()),
            Some(held) if matches!(held.phase, LeasePhase::Gone(_)) => Err(unknown()),
            Some(held) if held.record.lease == lease && held.phase == LeasePhase::Held => Ok(held),
            Some(_) => Err(LeaseError::LeaseLost { service: name.clone() }),
        }
    }

    pub(crate) fn record(&self, name: &ServiceName) -> Option<ServiceRecord> {
        self.lease(name).map(|lease| lease.record.clone())
    }

    pub(crate) fn known(&self) -> Vec<ServiceName> {
        self.entries.keys().cloned().collect()
    }

    pub(crate) fn probe_targets(&self) -> Vec<ProbeTarget> {
        let probe_targets = self.entries.iter().filter_map(|(name, entry)| {
            let source = entry.probe.clone()?;
            Some(ProbeTarget { name: name.clone(), generation: entry.generation, source })
        });
        probe_targets.collect()
    }

    pub(crate) fn services(&self, query: &ServiceQuery) -> Vec<ServiceInfo> {
        let by_name: BTreeMap<_, _> = self.entries.iter().collect();
        let all = by_name.into_keys().filter_map(|name| self.service(name));
        let is_selected = |service: &ServiceInfo| {
            let has_capability =
                query.capability.as_ref().is_none_or(|wanted| service.capabilities.contains(wanted));
            let has_state =
                query.state.map_or(service.state != ServiceState::Gone, |wanted| service.state == wanted);
            has_capability && has_state
        };
        all.filter(is_selected).collect()
    }

    pub(crate) fn service(&self, name: &ServiceName) -> Option<ServiceInfo> {
        let entry = self.entries.get(name)?;
        let health = &entry.health;
        let mut info = ServiceInfo {
            name: name.clone(),
            url: None,
            version: None,
            capabilities: Vec::new(),
            weight: NonZeroU32::MIN,
            metadata: BTreeMap::new(),
            state: health.state(),
            reason: health.reason().map(str::to_owned),
            since: health.since(),
            registered_at: None,
            last_heartbeat: None,
        };
        match &entry.origin {
            ServiceOrigin::Registered(lease) => {
                let Registration { url, version, capabilities, weight, metadata, .. } =
                    &lease.record.registration;
                info.url = Some(url.clone());
                info.version.clone_from(version);
                info.capabilities.clone_from(capabilities);
                info.weight = *weight;
                info.metadata.clone_from(metadata);
                info.registered_at = Some(lease.record.registered_at);
                info.last_heartbeat = Some(lease.last_heartbeat);
            }
            ServiceOrigin::Configured(target) => {
                info.url = Some(target.url.clone());
                info.capabilities.clone_from(&target.capabilities);
                info.weight = target.weight;
            }
            ServiceOrigin::Attached(capabilities) => info.capabilities.clone_from(capabilities),
        }
        Some(info)
    }
}

/// The thresholds of targets without a probe.
const SINGLE_ANSWER: Thresholds = Thresholds { rise: NonZeroU32::MIN, fall: NonZeroU32::MIN };

/// Makes a secret in the form of Standard Webhooks: 32 random bytes.
fn new_secret() -> String {
    let bytes: [u8; 32] = rand::random();
    format!("whsec_{}", STANDARD.encode(bytes))
}
