//! Who may be delivered to: services that register, targets in this process, and what becomes of them.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use relay_core::{DocumentId, ServiceName};
use relay_events::ServiceState;

use super::{Origin, Router, SERVICES_DOCUMENT};
use crate::registry::{
    Heartbeat, LeaseError, LeaseId, RegisterError, Registered, Registration, ServiceInfo, ServiceQuery,
    ServiceRecord,
};
use crate::rules::TargetPolicy;
use crate::store::{StoreError, WriteBatch};
use crate::target::{HttpTarget, HttpTargetConfig, InProcessTarget, OutboundError};

impl Router {
    /// Adds a target that is code in this process, or replaces it: it gets what happens from now on. One that shall get
    /// what it has missed since the last start too belongs into [`RouterConfig::targets`](crate::RouterConfig::targets).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn attach(&self, target: InProcessTarget) -> Result<(), StoreError> {
        let _changing = self.0.config_lock.lock().await;
        let mut batch = WriteBatch::default();
        self.0.cursor.begin(self.log_end().await, &mut batch);
        batch.append(self.put_attached(target));
        self.0.engine.deps().store.commit_synced(batch).await
    }

    pub(super) fn put_attached(&self, target: InProcessTarget) -> WriteBatch {
        let InProcessTarget { name, target, capabilities, policy, probe } = target;
        self.0.engine.deps().monitor.attach(name.clone(), capabilities.clone(), probe);
        self.0.static_targets.lock().insert(name.clone(), Origin::Attached);
        self.0.engine.update(|state| {
            state.pool.put(name, target, capabilities, NonZeroU32::MIN, policy);
            state.recompute_targets()
        })
    }

    /// Registers a service, or renews what it says of itself: it is a target from now on.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn register(
        &self,
        name: ServiceName,
        registration: Registration,
    ) -> Result<Registered, RegisterError> {
        let _changing = self.0.config_lock.lock().await;
        if self.0.static_targets.lock().contains_key(&name) {
            return Err(RegisterError::NameTaken { service: name });
        }
        self.0.outbound.check_url(&registration.url)?;
        let monitor = &self.0.engine.deps().monitor;
        let registered = monitor.register(name.clone(), registration)?;
        let Some(record) = monitor.record(&name) else { return Ok(registered) };
        let mut batch = WriteBatch::default();
        batch.service(&name, &record);
        self.0.cursor.begin(self.log_end().await, &mut batch);
        batch.append(self.put_service(record)?);
        self.0.engine.deps().store.commit_synced(batch).await?;
        Ok(registered)
    }

    /// Renews a service's lease. Returns how long it lasts.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn heartbeat(
        &self,
        name: &ServiceName,
        lease: LeaseId,
        heartbeat: Heartbeat,
    ) -> Result<Duration, LeaseError> {
        self.0.engine.deps().monitor.heartbeat(name, lease, heartbeat)
    }

    /// Takes leave of a service: it gets nothing new; what waits for it is still delivered.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn deregister(&self, name: &ServiceName, lease: LeaseId) -> Result<ServiceInfo, LeaseError> {
        self.0.engine.deps().monitor.deregister(name, lease)
    }

    /// The services that are meant, by name.
    pub fn services(&self, query: &ServiceQuery) -> Vec<ServiceInfo> {
        self.0.engine.deps().monitor.services(query)
    }

    /// One service, also one that has been silent for too long and is still remembered.
    pub fn service(&self, name: &ServiceName) -> Option<ServiceInfo> {
        self.0.engine.deps().monitor.service(name)
    }

    /// Gives a service a new secret; deliveries are signed with the old one too for a while. Returns the new one.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn rotate_secret(&self, name: &ServiceName, lease: LeaseId) -> Result<String, RegisterError> {
        let _changing = self.0.config_lock.lock().await;
        let monitor = &self.0.engine.deps().monitor;
        let secret = monitor.rotate_secret(name, lease)?;
        let Some(record) = monitor.record(name) else { return Ok(secret) };
        let mut batch = WriteBatch::default();
        batch.service(name, &record);
        batch.append(self.put_service(record)?);
        self.0.engine.deps().store.commit_synced(batch).await?;
        Ok(secret)
    }

    /// Takes a service that was registered before the restart.
    pub(super) fn restore(&self, record: ServiceRecord) {
        let name = record.name.clone();
        self.0.engine.deps().monitor.restore(record.clone());
        // Its address may have been forbidden meanwhile: then it is no target until it registers with another.
        if let Err(error) = self.put_service(record) {
            tracing::error!(service = %name, %error, "the service cannot be reached as it had registered");
        }
    }

    pub(super) fn put_service(&self, record: ServiceRecord) -> Result<WriteBatch, OutboundError> {
        let config = HttpTargetConfig {
            url: record.registration.url.clone(),
            format: record.registration.format,
            secrets: record.secrets(self.0.engine.deps().clock.wall()),
            ..HttpTargetConfig::default()
        };
        let target =
            HttpTarget::new(config, self.0.outbound.clone(), Arc::clone(&self.0.engine.deps().clock))?;
        let Registration { capabilities, weight, .. } = record.registration;
        Ok(self.0.engine.update(|state| {
            state.pool.put(record.name, Arc::new(target), capabilities, weight, TargetPolicy::default());
            state.recompute_targets()
        }))
    }

    /// Publishes what changes about services, and forgets those that are not coming back.
    pub(super) async fn run_service_changes(&self) {
        let stopping = self.0.engine.stopping();
        let mut completions = self.0.engine.completions();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.0.pending_notifications.notified() => {}
                closed = completions.changed() => if closed.is_err() { return },
            }
            self.finish_draining();
            if let Err(error) = self.forget_services().await {
                return self.0.engine.fail(error);
            }
            while let Some((_, change)) = { self.0.pending_changes.lock().pop_first() } {
                let payload = relay_events::ServiceChanged {
                    service: change.service.to_string(),
                    state: change.state,
                    reason: change.reason,
                };
                let draft = match DocumentId::new(SERVICES_DOCUMENT) {
                    Ok(document) => relay_events::server_draft(document, &payload),
                    Err(error) => Err(error.into()),
                };
                let draft = match draft {
                    Ok(draft) => draft,
                    Err(error) => {
                        tracing::error!(service = %change.service, %error, "the service's change is no event");
                        continue;
                    }
                };
                tokio::select! {
                    () = stopping.cancelled() => return,
                    published = self.0.sink.publish(draft) => if let Err(error) = published {
                        tracing::error!(service = %change.service, %error, "the service's change could not be told");
                    }
                }
            }
        }
    }

    /// Those that leave are gone when nothing waits for them any more.
    pub(super) fn finish_draining(&self) {
        let monitor = &self.0.engine.deps().monitor;
        let draining = monitor
            .services(&ServiceQuery { state: Some(ServiceState::Draining), ..ServiceQuery::default() });
        for service in draining {
            if !self.0.engine.read(|state| state.is_needed(&service.name)) {
                monitor.drained(&service.name);
            }
        }
    }

    pub(super) async fn forget_services(&self) -> Result<(), StoreError> {
        let _changing = self.0.config_lock.lock().await;
        let deps = self.0.engine.deps();
        let known: BTreeSet<_> = deps.monitor.known().into_iter().collect();
        let static_targets = self.0.static_targets.lock().clone();
        let mut batch = self.0.engine.update(|state| {
            let names: Vec<_> = state.pool.names().cloned().collect();
            let gone: Vec<_> = names
                .into_iter()
                .filter(|name| !known.contains(name) && !static_targets.contains_key(name))
                .collect();
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
        if batch.is_empty() { Ok(()) } else { deps.store.commit(std::mem::take(&mut batch)).await }
    }
}
