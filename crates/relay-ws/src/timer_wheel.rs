//! [`TimerWheel`]: the timers of all connections of a shard, after Varghese and Lauck, "Hashed and Hierarchical Timing
//! Wheels" (1987). An entry is in the slot of its tick. An entry that is more than one turn of the wheel away stays in its
//! slot until its turn.

use std::time::Duration;

use relay_core::Monotonic;

/// A moment in ticks.
pub(crate) type Tick = u64;

/// A coarse timer wheel.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    slots: Vec<Vec<(Tick, usize)>>,
    tick: Duration,
    /// The first tick whose entries have not been returned.
    now: Tick,
}

/// The number of ticks in one turn of the wheel.
const SLOTS: u64 = 128;

impl TimerWheel {
    pub(crate) fn new(tick: Duration, now: Monotonic) -> Self {
        let mut wheel = Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), tick, now: 0 };
        wheel.now = wheel.at(now);
        wheel
    }

    /// The first tick that is not before `moment`.
    pub(crate) fn at(&self, moment: Monotonic) -> Tick {
        u64::try_from(moment.elapsed().as_nanos().div_ceil(self.tick.as_nanos())).unwrap_or(u64::MAX)
    }

    /// Adds an entry of `key` at `tick`, or at the next tick if that is over. A key may have several entries.
    pub(crate) fn insert(&mut self, key: usize, tick: Tick) {
        let tick = tick.max(self.now);
        self.slots[Self::slot(tick)].push((tick, key));
    }

    /// Moves the entries whose tick is not after `moment` into `due`.
    pub(crate) fn advance(&mut self, moment: Monotonic, due: &mut Vec<(Tick, usize)>) {
        // The last tick that has begun.
        let last = u64::try_from(moment.elapsed().as_nanos() / self.tick.as_nanos()).unwrap_or(u64::MAX);
        if last < self.now {
            return;
        }
        for tick in self.now..=last.min(self.now + SLOTS - 1) {
            self.slots[Self::slot(tick)].retain(|entry| {
                if entry.0 <= last {
                    due.push(*entry);
                }
                entry.0 > last
            });
        }
        self.now = last + 1;
    }

    fn slot(tick: Tick) -> usize {
        // The remainder is less than SLOTS, so it fits.
        usize::try_from(tick % SLOTS).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Compared with a plain list: every key is returned by the first call that is not before its moment, and only once.
        #[test]
        fn every_key_comes_in_its_time(
            keys in prop::collection::vec(0_u64..1000, 1..50),
            steps in prop::collection::vec(1_u64..400, 1..20),
        ) {
            let mut wheel = TimerWheel::new(Duration::from_millis(10), Monotonic::ZERO);
            let mut waiting: Vec<(u64, usize)> = Vec::new();
            for (key, tenths) in keys.iter().enumerate() {
                let tick = wheel.at(Monotonic::ZERO + Duration::from_millis(tenths * 7));
                wheel.insert(key, tick);
                waiting.push((tenths * 7, key));
            }
            let mut now = 0;
            for step in steps {
                now += step * 13;
                let mut due = Vec::new();
                wheel.advance(Monotonic::ZERO + Duration::from_millis(now), &mut due);
                let mut due: Vec<usize> = due.into_iter().map(|(_, key)| key).collect();
                due.sort_unstable();
                // A key whose moment is within a tick is due when the next tick has begun.
                let is_due = |at: u64| at.div_ceil(10) * 10 <= now;
                let expected: Vec<usize> =
                    waiting.iter().filter(|(at, _)| is_due(*at)).map(|(_, key)| *key).collect();
                waiting.retain(|(at, _)| !is_due(*at));
                prop_assert_eq!(due, expected);
            }
        }
    }
}
