//! [`MinRate`]: the rate at which a document takes drafts although most of its readers are behind.
//!
//! Whoever may join a document can bring more readers than all others together, and never read. So readers that are behind slow
//! the document down to this rate, and never stop it. The rule is the generic cell rate algorithm of ITU-T I.371: each draft moves
//! a due time on by its cost, and a draft is taken until that time is more than a burst ahead. A draft of any size costs half a
//! second at most, so that a few authors of large drafts delay another author's draft by less than it may wait.

use std::time::Duration;

use relay_core::Monotonic;

/// The time in which a burst is earned.
const BURST: Duration = Duration::from_millis(500);
/// The most time that a draft costs.
const MAX_COST: Duration = Duration::from_millis(500);

/// The least rate of a document, and the use that was made of it.
#[derive(Debug)]
pub(super) struct MinRate {
    /// The time that one unit of cost takes; `None` when there is no least rate.
    interval: Option<Duration>,
    burst: Duration,
    /// The time at which all that was taken is paid for.
    due: Monotonic,
}

impl MinRate {
    /// A rate of `per_second` units of cost; none with 0. A burst has at most `max_burst` units, and at least one.
    pub(super) fn new(per_second: u32, max_burst: u64) -> Self {
        let interval = (per_second > 0).then(|| Duration::from_secs(1) / per_second);
        let max_burst = u32::try_from(max_burst.saturating_sub(1)).unwrap_or(u32::MAX);
        let burst = interval.map_or(Duration::ZERO, |one| BURST.min(one.saturating_mul(max_burst)));
        Self { interval, burst, due: Monotonic::ZERO }
    }

    /// Pays for a draft of this cost. Returns false when it is too early for one.
    pub(super) fn try_take(&mut self, cost: u32, now: Monotonic) -> bool {
        let Some(interval) = self.interval else { return false };
        let may_take = self.due <= now + self.burst;
        if may_take {
            self.due = self.due.max(now) + interval.saturating_mul(cost).min(MAX_COST);
        }
        may_take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The drafts of this cost that are taken at once.
    fn taken(rate: &mut MinRate, cost: u32, now: Monotonic) -> usize {
        std::iter::from_fn(|| rate.try_take(cost, now).then_some(())).take(10_000).count()
    }

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let mut rate = MinRate::new(100, 1_000);
        let start = Monotonic::ZERO + SECOND;
        assert_eq!(taken(&mut rate, 1, start), 51);
        assert_eq!(taken(&mut rate, 1, start), 0);
        assert_eq!(taken(&mut rate, 1, start + SECOND / 10), 10);
        assert_eq!(taken(&mut rate, 1, start + 10 * SECOND), 51, "time that was not used earns one burst");
    }

    #[test]
    fn a_large_draft_is_paid_for_later_and_delays_others_by_half_a_second() {
        let start = Monotonic::ZERO + SECOND;
        for (cost, delay) in [(20, 200), (1025, 500)] {
            let mut rate = MinRate::new(100, 1);
            assert_eq!(taken(&mut rate, cost, start), 1);
            assert!(!rate.try_take(1, start + Duration::from_millis(delay - 1)));
            assert!(rate.try_take(1, start + Duration::from_millis(delay)));
        }
    }

    #[test]
    fn the_burst_has_a_limit_and_no_rate_takes_nothing() {
        let start = Monotonic::ZERO + SECOND;
        for (max_burst, expected) in [(0, 1), (1, 1), (8, 8), (1_000, 51)] {
            assert_eq!(taken(&mut MinRate::new(100, max_burst), 1, start), expected);
        }
        assert_eq!(taken(&mut MinRate::new(0, 1_000), 1, start), 0);
    }
}
