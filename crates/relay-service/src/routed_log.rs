//! The log as the channels get it: the router learns of each append at once, and reads the events from the log itself.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use relay_core::{DocumentId, Event, EventLog, Head, LogError, Offset, ReadLimit, Seq};
use relay_router::Router;

/// A log that tells a router how far it goes.
pub(crate) struct RoutedLog {
    log: Arc<dyn EventLog>,
    /// The router publishes events too, so there are channels, and their log, before there is a router.
    router: Arc<OnceLock<Router>>,
}

impl RoutedLog {
    /// The log, and the place for its router.
    pub(crate) fn new(log: Arc<dyn EventLog>) -> (Self, Arc<OnceLock<Router>>) {
        let router = Arc::new(OnceLock::new());
        (Self { log, router: Arc::clone(&router) }, router)
    }
}

#[async_trait]
impl EventLog for RoutedLog {
    async fn head(&self, document: &DocumentId) -> Result<Head, LogError> {
        self.log.head(document).await
    }

    async fn append(&self, document: &DocumentId, events: &[Event]) -> Result<Offset, LogError> {
        let first = self.log.append(document, events).await?;
        if let (Some(router), Some(after)) = (self.router.get(), (events.len() as u64).checked_sub(1)) {
            router.appended(Offset::new(first.get().saturating_add(after)));
        }
        Ok(first)
    }

    async fn read_document(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, LogError> {
        self.log.read_document(document, after, limit).await
    }

    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError> {
        self.log.read(after, limit).await
    }

    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError> {
        self.log.trim(document, through).await
    }
}
