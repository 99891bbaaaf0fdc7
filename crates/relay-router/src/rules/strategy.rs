//! Strategies: the choice among several targets, as an order of preference. The caller takes the first usable
//! one.
//!
//! The order is a pure function of the targets' states. With every strategy a healthy target comes before a
//! degraded one, that before an unknown one, and all others last. Within the same health the strategy
//! decides.

use std::num::NonZeroU32;

use relay_core::{DocumentId, ServiceName};
use relay_events::ServiceState;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The choice among a rule's targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// The first healthy target of the list.
    #[default]
    FirstHealthy,
    /// All targets.
    All,
    /// Each target in turn, as often as its weight says.
    RoundRobin,
    /// The target with the fewest deliveries in flight for its weight.
    LeastOutstanding,
    /// The same target for each document, as long as it is there; each gets documents by its weight. When a
    /// target is added or removed, only the documents that it gains or had move.
    ConsistentHash,
}

/// A target to choose from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    /// The name.
    pub(crate) name: &'a ServiceName,
    /// The health.
    pub(crate) state: ServiceState,
    /// The deliveries in flight.
    pub(crate) outstanding: usize,
    /// The weight.
    pub(crate) weight: NonZeroU32,
}

/// Returns the indexes of all `candidates` in the order of preference for an event of `document`.
///
/// `turn` counts the choices of a rule; only [`Strategy::RoundRobin`] uses it. For [`Strategy::All`] the
/// order does not matter.
pub(crate) fn order(
    strategy: Strategy,
    candidates: &[Candidate<'_>],
    document: &DocumentId,
    turn: u64,
) -> Vec<usize> {
    let mut indexes: Vec<usize> = (0..candidates.len()).collect();
    match strategy {
        Strategy::FirstHealthy | Strategy::All => {}
        Strategy::RoundRobin => rotate(&mut indexes, candidates, turn),
        Strategy::LeastOutstanding => indexes.sort_by(|&one, &other| {
            // Compares a/x with b/y as a*y with b*x, which is exact.
            let load = |of: usize, by: usize| {
                candidates[of].outstanding as u128 * u128::from(candidates[by].weight.get())
            };
            load(one, other).cmp(&load(other, one))
        }),
        Strategy::ConsistentHash => {
            let seed = xxh3_64_with_seed(document.as_str().as_bytes(), 0);
            let score = |index: &usize| rendezvous_score(&candidates[*index], seed);
            indexes.sort_by(|one, other| score(other).total_cmp(&score(one)));
        }
    }
    // The sort is stable: the strategy's order holds among targets of the same health.
    indexes.sort_by_key(|&index| health_rank(candidates[index].state));
    indexes
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

/// Rotates the order to the target whose turn it is. Only targets of the best health take part, so that none
/// gets all turns of an unhealthy one. In as many turns as the sum of the weights, each is chosen as often as
/// its weight says.
fn rotate(indexes: &mut [usize], candidates: &[Candidate<'_>], turn: u64) {
    let best = candidates.iter().map(|candidate| health_rank(candidate.state)).min();
    let weight = |index: usize| match &candidates[index] {
        candidate if Some(health_rank(candidate.state)) == best => u64::from(candidate.weight.get()),
        _ => 0,
    };
    let common = indexes.iter().fold(0, |common, &index| gcd(common, weight(index))).max(1);
    let round: u64 = indexes.iter().map(|&index| weight(index) / common).sum();
    if round == 0 {
        return;
    }
    // Steps of about 0.6 of a round spread the turns of a heavy target. A step without a common divisor with
    // the round reaches each slot once. With equal weights each target has one slot, and the order of the
    // list serves as well.
    let are_equal = indexes.iter().all(|&index| weight(index) <= common);
    let start = if are_equal { 1 } else { round / 2 + round / 8 + 1 };
    let step = (start..=start + round).find(|&step| gcd(step, round) == 1).unwrap_or(1);
    let slot = u128::from(turn) * u128::from(step) % u128::from(round);
    let mut passed = 0_u128;
    let chosen = indexes.iter().position(|&index| {
        passed += u128::from(weight(index) / common);
        slot < passed
    });
    indexes.rotate_left(chosen.unwrap_or_default());
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// Returns the score by weighted rendezvous hashing; higher is preferred. It is -weight / ln(u), with u
/// uniform in (0, 1) by target and document.
fn rendezvous_score(candidate: &Candidate<'_>, seed: u64) -> f64 {
    let hash = xxh3_64_with_seed(candidate.name.as_str().as_bytes(), seed);
    // 53 bits, moved by half a step so that the result is neither 0 nor 1.
    let unit = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(candidate.weight.get()) / unit.ln()
}

#[cfg(test)]
mod tests;
