//! [`MinRate`]: the rate at which a document takes drafts although most of its readers are behind.
//!
//! Whoever may join a document can bring more readers than all others together, and never read. So readers that are behind slow
//! the document down to this rate, and never stop it. The rule is the generic cell rate algorithm of ITU-T I.371: each draft moves
//! a due time on by its cost, and a draft is taken until that time is more than a burst ahead. A draft of any size costs half a
//! second at most, so that a few authors of large drafts delay another author's draft by less than it may wait.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use relay_core::{Clock, Monotonic};

/// The time in which a burst is earned.
const BURST: Duration = Duration::from_millis(500);
/// The most time that a draft costs.
const MAX_COST: Duration = Duration::from_millis(500);

/// The least rate of a document, and the use that was made of it.
pub(super) struct MinRate {
    /// The time that one unit of cost takes; `None` when there is no least rate.
    interval: Option<Duration>,
    burst: Duration,
    /// The time at which all that was taken is paid for.
    due: Monotonic,
    clock: Arc<dyn Clock>,
}

impl MinRate {
    /// A rate of `per_second` units of cost; none with 0. A burst has at most `max_burst` units, and at least one.
    pub(super) fn new(per_second: u32, max_burst: u64, clock: Arc<dyn Clock>) -> Self {
        let interval = (per_second > 0).then(|| Duration::from_secs(1) / per_second);
        let max_burst = u32::try_from(max_burst.saturating_sub(1)).unwrap_or(u32::MAX);
        let burst = interval.map_or(Duration::ZERO, |one| BURST.min(one.saturating_mul(max_burst)));
        Self { interval, burst, due: Monotonic::ZERO, clock }
    }

    /// The price of a draft of this cost; `None` while it is too early for one.
    pub(super) fn price(&self, cost: u32) -> Option<Duration> {
        let price = self.interval?.saturating_mul(cost).min(MAX_COST);
        (self.due <= self.clock.monotonic() + self.burst).then_some(price)
    }

    /// Pays for a draft that is taken.
    pub(super) fn pay(&mut self, price: Duration) {
        if !price.is_zero() {
            self.due = self.due.max(self.clock.monotonic()) + price;
        }
    }

    /// Gives back the price of a draft that got no place.
    pub(super) fn refund(&mut self, price: Duration) {
        self.due = Monotonic::from_elapsed(self.due.elapsed().saturating_sub(price));
    }
}

impl fmt::Debug for MinRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MinRate")
            .field("interval", &self.interval)
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use relay_core::testing::ManualClock;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(per_second: u32, max_burst: u64) -> (MinRate, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new());
        clock.advance(SECOND);
        (MinRate::new(per_second, max_burst, Arc::clone(&clock) as Arc<dyn Clock>), clock)
    }

    /// The drafts of this cost that are taken at once.
    fn taken(rate: &mut MinRate, cost: u32) -> usize {
        let take = || rate.price(cost).map(|price| rate.pay(price));
        std::iter::from_fn(take).take(10_000).count()
    }

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let (mut rate, clock) = rate(100, 1_000);
        assert_eq!(taken(&mut rate, 1), 51);
        assert_eq!(taken(&mut rate, 1), 0);
        clock.advance(SECOND / 10);
        assert_eq!(taken(&mut rate, 1), 10);
        clock.advance(10 * SECOND);
        assert_eq!(taken(&mut rate, 1), 51, "time that was not used earns one burst");
    }

    #[test]
    fn a_large_draft_is_paid_for_later_and_delays_others_by_half_a_second() {
        for (cost, delay) in [(20, 200), (1025, 500)] {
            let (mut rate, clock) = rate(100, 1);
            assert_eq!(taken(&mut rate, cost), 1);
            clock.advance(Duration::from_millis(delay - 1));
            assert_eq!(rate.price(1), None);
            clock.advance(Duration::from_millis(1));
            assert!(rate.price(1).is_some());
        }
    }

    #[test]
    fn a_price_that_is_given_back_buys_another_draft() {
        let (mut rate, _) = rate(100, 8);
        assert_eq!(taken(&mut rate, 1), 8);
        rate.refund(Duration::from_millis(20));
        assert_eq!(taken(&mut rate, 1), 2);
    }

    #[test]
    fn the_burst_has_a_limit_and_no_rate_takes_nothing() {
        for (max_burst, expected) in [(0, 1), (1, 1), (8, 8), (1_000, 51)] {
            assert_eq!(taken(&mut rate(100, max_burst).0, 1), expected);
        }
        assert_eq!(taken(&mut rate(0, 1_000).0, 1), 0);
    }
}
