//! [`Filter`]: a condition on the events that a subscriber gets.

use std::fmt;
use std::sync::Arc;

use relay_core::{Actor, Event, Kind};

/// A condition on events: every part that is given must hold.
///
/// ```
/// use relay_bus::Filter;
///
/// let filter = Filter::all()
///     .kind(relay_events::DOCUMENT_EDITED)
///     .kind(relay_events::DOCUMENT_SAVED)
///     .document_prefix("reports/")
///     .predicate(|event| event.payload.len() < 1024);
/// # let _ = filter;
/// ```
#[derive(Clone, Default)]
pub struct Filter {
    kinds: Vec<Kind>,
    actors: Vec<Actor>,
    document_prefix: Option<Arc<str>>,
    predicate: Option<Predicate>,
}

type Predicate = Arc<dyn Fn(&Event) -> bool + Send + Sync>;

impl Filter {
    /// Every event.
    pub fn all() -> Self {
        Self::default()
    }

    /// Events of `kind`, or of another kind that is given.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Events of `actor`, or of another actor that is given.
    pub fn actor(mut self, actor: Actor) -> Self {
        self.actors.push(actor);
        self
    }

    /// Events of documents whose ids begin with `prefix`.
    pub fn document_prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.document_prefix = Some(prefix.into());
        self
    }

    /// Events for which `predicate` is true. It runs where the subscriber reads, so that a slow predicate delays no other subscriber.
    pub fn predicate(mut self, predicate: impl Fn(&Event) -> bool + Send + Sync + 'static) -> Self {
        self.predicate = Some(Arc::new(predicate));
        self
    }

    /// True when `event` passes the filter.
    pub fn matches(&self, event: &Event) -> bool {
        self.matches_fields(event) && self.matches_predicate(event)
    }

    /// Everything but the predicate: safe to run inside the publisher's critical section.
    pub(crate) fn matches_fields(&self, event: &Event) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.actors.is_empty() || self.actors.contains(&event.actor))
            && self
                .document_prefix
                .as_deref()
                .is_none_or(|prefix| event.document.as_str().starts_with(prefix))
    }

    pub(crate) fn matches_predicate(&self, event: &Event) -> bool {
        self.predicate.as_ref().is_none_or(|predicate| predicate(event))
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("kinds", &self.kinds)
            .field("actors", &self.actors)
            .field("document_prefix", &self.document_prefix)
            .field("predicate", &self.predicate.is_some())
            .finish()
    }
}
