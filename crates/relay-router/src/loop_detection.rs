//! The detection of loops: rules and services that answer each event with another one, without end.
//!
//! An event carries the chain of rules that led to it as metadata. A rule that is already in the chain is not
//! applied again. A service takes part by copying the value of its delivery into the events that it publishes.
//!
//! A service that could write any chain could keep its events from the other services. So a delivered chain has the
//! router's signature, and [`VerifiedSink`] takes a chain with a signature only. What is stored is the chain alone. The
//! chain of any other publisher does not count.

mod key;
mod verified_sink;

use std::sync::Arc;

use relay_core::{Actor, Event, Metadata};

pub use self::key::CausesKey;
use self::key::SIGNATURE_BYTES;
pub use self::verified_sink::VerifiedSink;
pub use relay_events::CAUSES_KEY;

/// The separator of the rules in a chain.
const SEPARATOR: char = ',';

/// The separator between a chain and its signature. No rule's name has one.
const SIGNATURE_SEPARATOR: char = ';';

/// The most bytes of a chain: with its signature it is one metadata value.
const MAX_CHAIN_BYTES: usize = Metadata::MAX_VALUE_BYTES - SIGNATURE_SEPARATOR.len_utf8() - SIGNATURE_BYTES;

/// The reason that a rule is not applied to an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoopError {
    #[error(
        "rule `{rule}` has led to this event already (`{CAUSES_KEY}` is `{chain}`): what its targets publish because of an event must not match it again"
    )]
    Cycle { rule: Arc<str>, chain: String },
    #[error(
        "`{CAUSES_KEY}` is `{chain}`: with rule `{rule}` it would be longer than {MAX_CHAIN_BYTES} bytes"
    )]
    ChainTooLong { rule: Arc<str>, chain: String },
}

/// Returns the chain of an event as it is stored. A signature in it is passed over: dry runs may be given the metadata of a
/// delivery.
fn chain_of(event: &Event) -> &str {
    let value = match event.actor {
        Actor::Service(_) => event.metadata.get(CAUSES_KEY).unwrap_or_default(),
        Actor::User(_) | Actor::System => "",
    };
    value.split_once(SIGNATURE_SEPARATOR).map_or(value, |(chain, _)| chain)
}

/// Returns the event's chain, extended by `rule`.
///
/// # Errors
/// [`LoopError`], if the rule is in the chain already or the chain becomes too long.
pub(crate) fn extend_chain(event: &Event, rule: &Arc<str>) -> Result<String, LoopError> {
    let chain = chain_of(event);
    if chain.split(SEPARATOR).any(|earlier| earlier == &**rule) {
        return Err(LoopError::Cycle { rule: Arc::clone(rule), chain: chain.to_owned() });
    }
    let longer = if chain.is_empty() { rule.to_string() } else { format!("{chain}{SEPARATOR}{rule}") };
    if longer.len() > MAX_CHAIN_BYTES {
        return Err(LoopError::ChainTooLong { rule: Arc::clone(rule), chain: chain.to_owned() });
    }
    Ok(longer)
}

/// Returns the event as it is delivered because of `rule`: with its chain, extended by the rule and signed. Without a rule, and
/// where the rule is in the chain already, the chain is signed as it is. Metadata always has space for it.
pub(crate) fn with_causes(event: &Arc<Event>, rule: Option<&Arc<str>>, key: &CausesKey) -> Arc<Event> {
    let extended = rule.and_then(|rule| extend_chain(event, rule).ok());
    let chain = extended.as_deref().unwrap_or_else(|| chain_of(event));
    let mut marked = Event::clone(event);
    // A chain that an earlier version stored may be too long to be signed. The event then begins a new one.
    let is_signed = !chain.is_empty() && marked.metadata.insert(CAUSES_KEY, key.sign(chain)).is_ok();
    if !is_signed {
        marked.metadata.remove(CAUSES_KEY);
    }
    Arc::new(marked)
}

#[cfg(test)]
mod tests;
