//! Who of several targets gets an event: an order of preference, of which the caller takes the first that can.
//!
//! A pure function of what is known of the targets at that moment. Whatever the strategy, a healthy target comes
//! before a degraded one, that before one of which nothing is known, and the rest last; within the same health the
//! strategy decides.

use std::num::NonZeroU32;

use relay_core::{DocumentId, ServiceName};
use relay_events::ServiceState;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Who of a rule's targets gets an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// The first of the list that is healthy.
    #[default]
    FirstHealthy,
    /// Every one of them.
    All,
    /// One after the other, each as often as its weight says.
    RoundRobin,
    /// The one with the fewest deliveries under way for its weight.
    LeastOutstanding,
    /// Always the same one for one document, as long as it is there; each as many documents as its weight says. When
    /// a target comes or goes, only documents that it gets or had change theirs.
    ConsistentHash,
}

/// What is known of a target when one is to be chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    /// Its name.
    pub(crate) name: &'a ServiceName,
    /// Its health.
    pub(crate) state: ServiceState,
    /// How many deliveries are under way to it.
    pub(crate) outstanding: usize,
    /// Its share.
    pub(crate) weight: NonZeroU32,
}

/// The places of all `candidates` in the order in which they are preferred for an event of `document`.
///
/// `turn` counts the choices that a rule has made; only [`Strategy::RoundRobin`] looks at it. For [`Strategy::All`] the
/// order says nothing about who gets the event.
pub(crate) fn order(
    strategy: Strategy,
    candidates: &[Candidate<'_>],
    document: &DocumentId,
    turn: u64,
) -> Vec<usize> {
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    match strategy {
        Strategy::FirstHealthy | Strategy::All => {}
        Strategy::RoundRobin => rotate(&mut places, candidates, turn),
        Strategy::LeastOutstanding => places.sort_by(|&one, &other| {
            // a/x < b/y as a*y < b*x, which is exact.
            let load = |of: usize, by: usize| {
                candidates[of].outstanding as u128 * u128::from(candidates[by].weight.get())
            };
            load(one, other).cmp(&load(other, one))
        }),
        Strategy::ConsistentHash => {
            let seed = xxh3_64_with_seed(document.as_str().as_bytes(), 0);
            let score = |place: &usize| rendezvous_score(&candidates[*place], seed);
            places.sort_by(|one, other| score(other).total_cmp(&score(one)));
        }
    }
    // Stable: the strategy's order holds among those of the same health.
    places.sort_by_key(|&place| health_rank(candidates[place].state));
    places
}

fn health_rank(state: ServiceState) -> u8 {
    match state {
        ServiceState::Healthy => 0,
        ServiceState::Degraded => 1,
        ServiceState::Unknown => 2,
        ServiceState::Unhealthy => 3,
        ServiceState::Draining => 4,
        _ => 5,
    }
}

/// Begins with the one whose turn it is, among those of the best health, so that none gets all the turns of one who is
/// away. In as many turns as the weights together each comes as often as its weight says.
fn rotate(places: &mut [usize], candidates: &[Candidate<'_>], turn: u64) {
    let best = candidates.iter().map(|candidate| health_rank(candidate.state)).min();
    let weight = |place: usize| match &candidates[place] {
        candidate if Some(health_rank(candidate.state)) == best => u64::from(candidate.weight.get()),
        _ => 0,
    };
    let common = places.iter().fold(0, |common, &place| gcd(common, weight(place))).max(1);
    let round: u64 = places.iter().map(|&place| weight(place) / common).sum();
    if round == 0 {
        return;
    }
    // Steps of about 0.6 of a round spread a heavy one's turns over it; sharing no divisor with the round, they come to
    // each of its slots once. Where all weights are the same each has one slot, and the order of the list is as good.
    let are_equal = places.iter().all(|&place| weight(place) <= common);
    let start = if are_equal { 1 } else { round / 2 + round / 8 + 1 };
    let step = (start..=start + round).find(|&step| gcd(step, round) == 1).unwrap_or(1);
    let slot = u128::from(turn) * u128::from(step) % u128::from(round);
    let mut passed = 0_u128;
    let chosen = places.iter().position(|&place| {
        passed += u128::from(weight(place) / common);
        slot < passed
    });
    places.rotate_left(chosen.unwrap_or_default());
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// The higher, the more preferred (weighted rendezvous hashing): -weight / ln(u), with u evenly in (0, 1) by target
/// and document.
fn rendezvous_score(candidate: &Candidate<'_>, seed: u64) -> f64 {
    let hash = xxh3_64_with_seed(candidate.name.as_str().as_bytes(), seed);
    // 53 bits, moved half a step so that neither 0 nor 1 comes out.
    let unit = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(candidate.weight.get()) / unit.ln()
}

#[cfg(test)]
mod tests;
