//! The changes of targets outside the rules: attached targets, registered services, and the events that report changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::{DocumentId, EventSink, ServiceName};
use relay_events::ServiceState;
use tokio::sync::Notify;

use super::context::{Origin, RouterContext};
use crate::registry::{
    LeaseId, RegisterError, Registered, Registration, ServiceChange, ServiceQuery, ServiceRecord,
};
use crate::rules::TargetPolicy;
use crate::store::{StoreError, WriteBatch};
use crate::target::{HttpTargetConfig, InProcessTarget, OutboundError};

/// The document whose `service.changed` events report the changes of services.
pub const SERVICES_DOCUMENT: &str = "relay:services";

/// The changes of services that are not published yet: the last one of each service.
#[derive(Default)]
pub(super) struct PendingChanges {
    changes: Mutex<BTreeMap<ServiceName, ServiceChange>>,
    pending_notifications: Notify,
}

impl PendingChanges {
    /// Adds a change. It replaces an earlier one of the same service.
    pub(super) fn add(&self, change: ServiceChange) {
        self.changes.lock().insert(change.service.clone(), change);
        self.pending_notifications.notify_one();
    }

    fn first(&self) -> Option<ServiceChange> {
        self.changes.lock().first_key_value().map(|(_, change)| change.clone())
    }

    /// Removes a change that was published, unless a later one of the service has replaced it.
    fn remove(&self, published: &ServiceChange) {
        let mut changes = self.changes.lock();
        if changes.get(&published.service) == Some(published) {
            changes.remove(&published.service);
        }
    }
}

/// The attached targets and the registered services.
pub(super) struct Services {
    context: Arc<RouterContext>,
    sink: Arc<dyn EventSink>,
    pending: Arc<PendingChanges>,
}

impl Services {
    pub(super) fn new(
        context: Arc<RouterContext>,
        sink: Arc<dyn EventSink>,
        pending: Arc<PendingChanges>,
    ) -> Self {
        Self { context, sink, pending }
    }

    /// Adds or replaces a target that is code in this process.
    pub(super) async fn attach(&self, target: InProcessTarget) -> Result<(), StoreError> {
        let _guard = self.context.config_lock.lock().await;
        let mut batch = WriteBatch::default();
        self.context.begin_routing(&mut batch).await;
        batch.append(self.put_attached(target));
        self.context.deps().store.commit_synced(batch).await
    }

    pub(super) fn put_attached(&self, target: InProcessTarget) -> WriteBatch {
        let InProcessTarget { name, target, capabilities, policy, probe } = target;
        self.context.deps().monitor.attach(name.clone(), capabilities.clone(), probe);
        self.context.static_targets.lock().insert(name.clone(), Origin::Attached);
        self.context.engine.update(|state| {
            state.pool.put(name, target, capabilities, NonZeroU32::MIN, policy);
            state.recompute_targets()
        })
    }

    /// Registers a service that asks from `address`, or renews its registration.
    pub(super) async fn register(
        &self,
        name: ServiceName,
        registration: Registration,
        address: Option<IpAddr>,
    ) -> Result<Registered, RegisterError> {
        let _guard = self.context.config_lock.lock().await;
        if self.context.static_targets.lock().contains_key(&name) {
            return Err(RegisterError::NameTaken { service: name });
        }
        self.context.outbound.check_url(&registration.url)?;
        let monitor = &self.context.deps().monitor;
        let registered = monitor.register(name.clone(), registration, address)?;
        let Some(record) = monitor.record(&name) else { return Ok(registered) };
        let mut batch = WriteBatch::default();
        batch.service(&name, &record);
        self.context.begin_routing(&mut batch).await;
        batch.append(self.put_service(record)?);
        self.context.deps().store.commit_synced(batch).await?;
        Ok(registered)
    }

    /// Gives a service a new secret, and returns it.
    pub(super) async fn rotate_secret(
        &self,
        name: &ServiceName,
        lease: LeaseId,
    ) -> Result<String, RegisterError> {
        let _guard = self.context.config_lock.lock().await;
        let monitor = &self.context.deps().monitor;
        let secret = monitor.rotate_secret(name, lease)?;
        let Some(record) = monitor.record(name) else { return Ok(secret) };
        let mut batch = WriteBatch::default();
        batch.service(name, &record);
        batch.append(self.put_service(record)?);
        self.context.deps().store.commit_synced(batch).await?;
        Ok(secret)
    }

    /// Takes over a service of the last run. If its address is not allowed any more, the service is no target until it
    /// registers with another one.
    pub(super) fn restore(&self, record: ServiceRecord) {
        let name = record.name.clone();
        self.context.deps().monitor.restore(record.clone());
        if let Err(error) = self.put_service(record) {
            tracing::error!(service = %name, %error, "the address of the service is not allowed any more");
        }
    }

    fn put_service(&self, record: ServiceRecord) -> Result<WriteBatch, OutboundError> {
        let target = self.context.http_target(HttpTargetConfig {
            url: record.registration.url.clone(),
            format: record.registration.format,
            secrets: record.secrets(self.context.deps().clock.wall()),
            ..HttpTargetConfig::default()
        })?;
        let Registration { capabilities, weight, .. } = record.registration;
        Ok(self.context.engine.update(|state| {
            state.pool.put(record.name, target, capabilities, weight, TargetPolicy::default());
            state.recompute_targets()
        }))
    }

    /// Publishes the changes of services, and removes drained and forgotten ones, until the router stops.
    pub(super) async fn run_service_changes(&self) {
        let stopping = self.context.engine.stopping();
        let mut completions = self.context.engine.completions();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.pending.pending_notifications.notified() => {}
                closed = completions.changed() => if closed.is_err() { return },
            }
            self.finish_draining();
            if let Err(error) = self.forget_services().await {
                return self.context.engine.fail(error);
            }
            while let Some(change) = self.pending.first() {
                if stopping.run_until_cancelled(self.publish(&change)).await.is_none() {
                    let service = change.service;
                    tracing::debug!(%service, "the router stops before the change of the service is published");
                    return;
                }
                self.pending.remove(&change);
            }
        }
    }

    async fn publish(&self, change: &ServiceChange) {
        let service = &change.service;
        let payload = relay_events::ServiceChanged {
            service: service.to_string(),
            state: change.state,
            reason: change.reason.clone(),
        };
        let draft = match DocumentId::new(SERVICES_DOCUMENT) {
            Ok(document) => relay_events::server_draft(document, &payload).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let published = match draft {
            Ok(draft) => self.sink.publish(draft).await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        if let Err(error) = published {
            tracing::error!(%service, %error, "the change of the service cannot be published");
        }
    }

    /// Removes the draining services that no event waits for.
    fn finish_draining(&self) {
        let monitor = &self.context.deps().monitor;
        let draining = monitor
            .services(&ServiceQuery { state: Some(ServiceState::Draining), ..ServiceQuery::default() });
        for service in draining {
            if !self.context.engine.read(|state| state.is_needed(&service.name)) {
                monitor.drained(&service.name);
            }
        }
    }

    /// Removes the targets of services that the monitor has forgotten.
    async fn forget_services(&self) -> Result<(), StoreError> {
        let _guard = self.context.config_lock.lock().await;
        let deps = self.context.deps();
        let known: BTreeSet<_> = deps.monitor.known().into_iter().collect();
        let static_targets = self.context.static_targets.lock().clone();
        let batch = self.context.engine.update(|state| {
            let is_gone = |name: &&ServiceName| !known.contains(*name) && !static_targets.contains_key(*name);
            let gone: Vec<_> = state.pool.names().filter(is_gone).cloned().collect();
            let mut batch = WriteBatch::default();
            for name in &gone {
                state.pool.remove(name);
                batch.remove_service(name);
            }
            if !gone.is_empty() {
                batch.append(state.recompute_targets());
            }
            batch
        });
        if batch.is_empty() {
            return Ok(());
        }
        self.context.engine.notify_routes_changed();
        deps.store.commit(batch).await
    }
}
