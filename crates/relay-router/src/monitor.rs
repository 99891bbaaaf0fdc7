//! The monitor of services: it runs their probes, takes their heartbeats and delivery results, and ends their
//! leases.
//!
//! Each service has a probe task of its own, so that one that hangs delays no other. All state is behind one
//! lock with short critical sections. The observer is called after the lock is released.

use std::collections::HashMap;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use relay_core::{Clock, HealthProbe, Now, ServiceName};
use relay_events::ServiceState;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use relay_tasks::{TaskGroup, TaskName};

use crate::health::{HealthConfig, build_probe};
use crate::registry::{
    Heartbeat, LeaseError, LeaseId, ProbeTarget, RegisterError, Registered, Registration, Registry,
    ServiceChange, ServiceInfo, ServiceQuery, ServiceRecord,
};
use crate::rules::{Capability, TargetSpec};
use crate::target::Outbound;

/// The task that applies what time alone changes.
const TICKS: TaskName = TaskName::new("router.health-ticks");
/// The probes of one service.
const PROBE: TaskName = TaskName::new("router.probe");

/// The monitor of all services and targets. Clones are handles to the same monitor.
#[derive(Clone)]
pub(crate) struct HealthMonitor(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    clock: Arc<dyn Clock>,
    outbound: Outbound,
    observer: Box<dyn Fn(ServiceChange) + Send + Sync>,
    /// Held while the observer is called, so that changes arrive in their order.
    notify_lock: Mutex<()>,
    /// Counts the changes, for readers that wait for one.
    changes: watch::Sender<u64>,
    /// The probe task of each service, with the generation of its registry entry.
    probe_tasks: Mutex<HashMap<ServiceName, (u64, CancellationToken)>>,
    tasks: TaskGroup,
    stopping: CancellationToken,
}

impl HealthMonitor {
    /// Starts the monitor with a validated configuration. `observer` is called for each change, in order; it must
    /// not block, and must not call the monitor.
    pub(crate) fn start(
        config: HealthConfig,
        outbound: Outbound,
        clock: Arc<dyn Clock>,
        tasks: TaskGroup,
        observer: impl Fn(ServiceChange) + Send + Sync + 'static,
    ) -> Self {
        let tick = config.tick;
        let monitor = Self(Arc::new(Inner {
            registry: Mutex::new(Registry::new(config)),
            clock,
            outbound,
            observer: Box::new(observer),
            notify_lock: Mutex::new(()),
            changes: watch::Sender::new(0),
            probe_tasks: Mutex::new(HashMap::new()),
            tasks,
            stopping: CancellationToken::new(),
        }));
        monitor.0.tasks.keep_running(TICKS, monitor.clone(), move |ticking| Box::pin(ticking.run(tick)));
        monitor
    }

    /// Applies what time alone changes, until the monitor stops.
    async fn run(&self, tick: Duration) {
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.0.stopping.cancelled() => return,
                _ = ticks.tick() => if self.update(Registry::tick) {
                    self.sync_probe_tasks();
                },
            }
        }
    }

    /// Returns a service's state; [`ServiceState::Unknown`] for an unknown service.
    pub(crate) fn state(&self, name: &ServiceName) -> ServiceState {
        self.0.registry.lock().state(name)
    }

    /// Returns a counter of state changes over all services.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Records a delivery that succeeded, or failed for a reason.
    pub(crate) fn record_delivery(&self, name: &ServiceName, answer: Result<(), &str>) {
        self.update(|registry, now| registry.delivered(name, answer, now));
    }

    /// Replaces the targets of the previous rule document by those of the current one.
    pub(crate) fn configure(&self, targets: &[TargetSpec]) {
        self.update(|registry, now| registry.configure(targets, now));
        self.sync_probe_tasks();
    }

    /// Adds a target in this process, with its probe if it has one.
    pub(crate) fn attach(
        &self,
        name: ServiceName,
        capabilities: Vec<Capability>,
        probe: Option<Arc<dyn HealthProbe>>,
    ) {
        self.update(|registry, now| registry.attach(name, capabilities, probe, now));
        self.sync_probe_tasks();
    }

    /// Registers a service that asks from `address`, or replaces its registration.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub(crate) fn register(
        &self,
        name: ServiceName,
        registration: Registration,
        address: Option<IpAddr>,
    ) -> Result<Registered, RegisterError> {
        let registered = self.update(|registry, now| registry.register(name, registration, address, now))?;
        self.sync_probe_tasks();
        Ok(registered)
    }

    /// Restores a registration from before a restart. Its lease begins now.
    pub(crate) fn restore(&self, record: ServiceRecord) {
        self.update(|registry, now| registry.restore(record, now));
        self.sync_probe_tasks();
    }

    /// Returns a service's stored registration.
    pub(crate) fn record(&self, name: &ServiceName) -> Option<ServiceRecord> {
        self.0.registry.lock().record(name)
    }

    /// Renews a lease and returns its length.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub(crate) fn heartbeat(
        &self,
        name: &ServiceName,
        lease: LeaseId,
        heartbeat: Heartbeat,
    ) -> Result<Duration, LeaseError> {
        self.update(|registry, now| registry.heartbeat(name, lease, heartbeat, now))
    }

    /// Starts to drain a service. [`HealthMonitor::drained`] ends it, or else the drain time-out.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub(crate) fn deregister(&self, name: &ServiceName, lease: LeaseId) -> Result<ServiceInfo, LeaseError> {
        self.update(|registry, now| registry.deregister(name, lease, now))
    }

    /// Records that no event waits for a draining service any more: it is gone.
    pub(crate) fn drained(&self, name: &ServiceName) {
        self.update(|registry, now| registry.drained(name, now));
        self.sync_probe_tasks();
    }

    /// Gives a service a new secret and returns it.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub(crate) fn rotate_secret(&self, name: &ServiceName, lease: LeaseId) -> Result<String, LeaseError> {
        self.update(|registry, now| registry.rotate_secret(name, lease, now))
    }

    /// Returns the names of all services, including those that are gone and still remembered.
    pub(crate) fn known(&self) -> Vec<ServiceName> {
        self.0.registry.lock().known()
    }

    /// Returns the services that match `query`, by name.
    pub(crate) fn services(&self, query: &ServiceQuery) -> Vec<ServiceInfo> {
        self.0.registry.lock().services(query)
    }

    /// Returns one service.
    pub(crate) fn service(&self, name: &ServiceName) -> Option<ServiceInfo> {
        self.0.registry.lock().service(name)
    }

    /// Stops the probes and the clock.
    pub(crate) async fn shutdown(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn update<T>(&self, step: impl FnOnce(&mut Registry, Now) -> T) -> T {
        let now = self.0.clock.now();
        let (result, has_changed) = {
            let mut registry = self.0.registry.lock();
            let result = step(&mut registry, now);
            (result, registry.has_changes())
        };
        if has_changed {
            let _guard = self.0.notify_lock.lock();
            let changes = self.0.registry.lock().take_changes();
            changes.into_iter().for_each(&self.0.observer);
            self.0.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
        result
    }

    /// Starts a probe task for each service that needs one, and stops the tasks of the others.
    fn sync_probe_tasks(&self) {
        // This lock comes first: a task list from an older read of the registry must not replace a newer one.
        let mut probe_tasks = self.0.probe_tasks.lock();
        let targets = self.0.registry.lock().probe_targets();
        let wanted: HashMap<_, _> = targets.iter().map(|one| (&one.name, one.generation)).collect();
        probe_tasks.retain(|name, (generation, token)| {
            let is_wanted = wanted.get(name) == Some(generation);
            if !is_wanted {
                token.cancel();
            }
            is_wanted
        });
        for target in targets {
            if probe_tasks.contains_key(&target.name) {
                continue;
            }
            let token = self.0.stopping.child_token();
            probe_tasks.insert(target.name.clone(), (target.generation, token.clone()));
            let probing = (self.clone(), target, token);
            self.0.tasks.keep_running(PROBE, probing, |(monitor, target, token)| {
                let probing = monitor.run_probe(target);
                Box::pin(async move { _ = token.run_until_cancelled(probing).await })
            });
        }
    }

    async fn run_probe(&self, target: &ProbeTarget) {
        let (probe, spec) = build_probe(&target.source, &self.0.outbound);
        // A random delay keeps services that start together from being probed together.
        tokio::time::sleep(spec.interval.min(FIRST_PROBE_WITHIN).mul_f64(rand::random())).await;
        loop {
            let checked = AssertUnwindSafe(probe.check()).catch_unwind();
            let answer = match tokio::time::timeout(spec.timeout, checked).await {
                Ok(Ok(answer)) => answer.map_err(|failure| failure.detail),
                Ok(Err(_panic)) => Err("the probe has panicked".to_owned()),
                Err(_elapsed) => Err(format!("no answer within {} ms", spec.timeout.as_millis())),
            };
            self.update(|registry, now| registry.probed(&target.name, target.generation, answer, now));
            tokio::time::sleep(spec.interval.mul_f64(rand::random_range(0.9..=1.1))).await;
        }
    }
}

/// The span within which a service gets its first probe.
const FIRST_PROBE_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod probe_tests;
