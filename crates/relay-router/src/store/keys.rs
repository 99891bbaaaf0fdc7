//! The keys of the store's entries. Numbers are big-endian, so that keys sort as their numbers do.

use relay_core::{Offset, ServiceName};

use crate::records::{DeadLetterId, RouteId};

/// The key of the cursor in `meta`.
pub(super) const CURSOR: &[u8] = b"cursor";
/// The key of the rules in `meta`.
pub(super) const RULES: &[u8] = b"rules";
/// The key of the signatures of causes, in `meta`.
pub(super) const CAUSES_KEY: &[u8] = b"causes_key";

/// The beginning of the keys of the numbers of lost events, in `meta`.
pub(super) const LOST_EVENTS: &[u8] = b"lost/";
/// The beginning of the keys of the numbers of dropped dead letters, in `meta`.
pub(super) const DROPPED_LETTERS: &[u8] = b"dropped_letters/";

// A name's length takes two bytes of a dead letter's key.
const _: () = assert!(ServiceName::MAX_BYTES <= u16::MAX as usize);

/// The bytes after the target in a dead letter's key: an offset and a route.
const DEAD_LETTER_ID_BYTES: usize = 12;

pub(super) fn route(id: RouteId) -> Vec<u8> {
    id.0.to_be_bytes().to_vec()
}

pub(super) fn queued(route: RouteId, offset: Offset) -> Vec<u8> {
    [&route.0.to_be_bytes()[..], &offset.get().to_be_bytes()].concat()
}

/// The beginning of the keys of a target's dead letters. It has the name's length, so that no target's prefix begins
/// another target's.
pub(super) fn dead_letters_of(target: &ServiceName) -> Vec<u8> {
    let name = target.as_str().as_bytes();
    #[allow(clippy::cast_possible_truncation, reason = "a name's length fits, as is asserted above")]
    let length = name.len() as u16;
    [&length.to_be_bytes()[..], name].concat()
}

pub(super) fn dead_letter(target: &ServiceName, id: DeadLetterId) -> Vec<u8> {
    let mut key = dead_letters_of(target);
    key.extend_from_slice(&id.offset.get().to_be_bytes());
    key.extend_from_slice(&id.route.0.to_be_bytes());
    key
}

/// The key of the decision with this number about a loss.
pub(super) fn loss(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// The key of the number of events that are lost under `name`, in `meta`.
pub(super) fn lost_events(name: &str) -> Vec<u8> {
    [LOST_EVENTS, name.as_bytes()].concat()
}

/// The key of the number of the target's dropped dead letters, in `meta`.
pub(super) fn dropped_letters(target: &ServiceName) -> Vec<u8> {
    [DROPPED_LETTERS, target.as_str().as_bytes()].concat()
}

/// Reads the target from a key that [`dropped_letters`] made.
pub(super) fn parse_dropped_letters(key: &[u8]) -> Option<ServiceName> {
    let name = key.strip_prefix(DROPPED_LETTERS)?;
    ServiceName::new(std::str::from_utf8(name).ok()?).ok()
}

/// Reads a key that [`route`] made.
pub(super) fn parse_route(key: &[u8]) -> Option<RouteId> {
    Some(RouteId(u32::from_be_bytes(key.try_into().ok()?)))
}

/// Reads a key that [`queued`] made.
pub(super) fn parse_queued(key: &[u8]) -> Option<(RouteId, Offset)> {
    let (route, offset) = key.split_at_checked(4)?;
    Some((parse_route(route)?, Offset::new(u64::from_be_bytes(offset.try_into().ok()?))))
}

/// Reads the id from a key that [`dead_letter`] made.
pub(super) fn parse_dead_letter_id(key: &[u8]) -> Option<DeadLetterId> {
    let (offset, route) = key.get(key.len().checked_sub(DEAD_LETTER_ID_BYTES)?..)?.split_at_checked(8)?;
    let offset = Offset::new(u64::from_be_bytes(offset.try_into().ok()?));
    Some(DeadLetterId { offset, route: parse_route(route)? })
}

/// Reads the target from a key that [`dead_letter`] made.
pub(super) fn parse_dead_letter_target(key: &[u8]) -> Option<ServiceName> {
    let name = key.get(2..key.len().checked_sub(DEAD_LETTER_ID_BYTES)?)?;
    ServiceName::new(std::str::from_utf8(name).ok()?).ok()
}
