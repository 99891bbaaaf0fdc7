//! The detection of loops: rules and services that answer each event with another one, without end.
//!
//! An event carries the chain of rules that led to it as metadata. A rule that is already in the chain is not
//! applied again. A service takes part by copying the metadata of the event it received into the events it
//! publishes. The chain of any other publisher does not count, or a user could keep an event from its services.

use std::sync::Arc;

use relay_core::{Actor, Event, Metadata};

/// The metadata key of the chain: names of rules, separated by commas, the earliest first.
pub const CAUSES_KEY: &str = "relay.causes";

const SEPARATOR: char = ',';

/// The reason that a rule is not applied to an event.
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

/// Returns the event's chain, extended by `rule`.
///
/// # Errors
/// [`LoopError`], if the rule is in the chain already or the chain becomes too long.
pub(crate) fn extend_chain(event: &Event, rule: &Arc<str>) -> Result<String, LoopError> {
    let chain = match event.actor {
        Actor::Service(_) => event.metadata.get(CAUSES_KEY).unwrap_or_default(),
        Actor::User(_) | Actor::System => "",
    };
    if chain.split(SEPARATOR).any(|earlier| earlier == &**rule) {
        return Err(LoopError::Cycle { rule: Arc::clone(rule), chain: chain.to_owned() });
    }
    let longer = if chain.is_empty() { rule.to_string() } else { format!("{chain}{SEPARATOR}{rule}") };
    if longer.len() > Metadata::MAX_VALUE_BYTES {
        return Err(LoopError::ChainTooLong { rule: Arc::clone(rule), chain: chain.to_owned() });
    }
    Ok(longer)
}

/// Returns the event with its chain extended by `rule`, as it is delivered. An event whose metadata is full
/// keeps the metadata that it has.
pub(crate) fn with_causes(event: &Arc<Event>, rule: &Arc<str>) -> Arc<Event> {
    let Ok(chain) = extend_chain(event, rule) else { return Arc::clone(event) };
    let mut metadata = event.metadata.clone();
    if metadata.insert(CAUSES_KEY, chain).is_err() {
        return Arc::clone(event);
    }
    let mut marked = Event::clone(event);
    marked.metadata = metadata;
    Arc::new(marked)
}
