//! What led to an event: the chain of rules that, one after the other, had a service publish the next event. An event
//! carries it as metadata; who would be led into the same rule once more goes round in a circle, which is cut there.
//!
//! A service takes part by copying the metadata of the event that it was given into what it publishes because of it.

use std::sync::Arc;

use relay_core::{Event, Metadata};

/// The metadata key of the chain: names of rules, separated by commas, the earliest first.
pub const CAUSES_KEY: &str = "relay.causes";

const SEPARATOR: char = ',';

/// Why an event is not taken to where a rule would have it go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoopError {
    #[error(
        "rule `{rule}` has led to this event already (`{CAUSES_KEY}` is `{chain}`): what its targets publish because of an event must not match it again"
    )]
    Cycle { rule: Arc<str>, chain: String },
    #[error(
        "`{CAUSES_KEY}` is `{chain}`: with rule `{rule}` it would be longer than {} bytes",
        Metadata::MAX_VALUE_BYTES
    )]
    ChainTooLong { rule: Arc<str>, chain: String },
}

/// The chain of what is delivered by `rule`.
///
/// # Errors
/// [`LoopError`], when the rule is in the event's chain already.
pub(crate) fn extend_chain(event: &Event, rule: &Arc<str>) -> Result<String, LoopError> {
    let chain = event.metadata.get(CAUSES_KEY).unwrap_or_default();
    if chain.split(SEPARATOR).any(|earlier| earlier == &**rule) {
        return Err(LoopError::Cycle { rule: Arc::clone(rule), chain: chain.to_owned() });
    }
    let longer = if chain.is_empty() { rule.to_string() } else { format!("{chain}{SEPARATOR}{rule}") };
    if longer.len() > Metadata::MAX_VALUE_BYTES {
        return Err(LoopError::ChainTooLong { rule: Arc::clone(rule), chain: chain.to_owned() });
    }
    Ok(longer)
}

/// The event as it is delivered because of `rule`: with the chain that led to it. An event that has as much metadata
/// as an event may have is delivered without.
pub(crate) fn with_causes(event: &Arc<Event>, rule: &Arc<str>) -> Arc<Event> {
    let Ok(chain) = extend_chain(event, rule) else { return Arc::clone(event) };
    let mut metadata = event.metadata.clone();
    if metadata.insert(CAUSES_KEY, chain).is_err() {
        return Arc::clone(event);
    }
    let mut marked = Event::clone(event);
    marked.metadata = metadata;
    marked.wire = relay_core::WireForms::default();
    Arc::new(marked)
}
