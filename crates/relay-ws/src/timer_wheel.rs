//! A coarse timer wheel (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987): one for all connections of a
//! shard, instead of a timer for each. An entry is put into the slot of its tick; entries that are more than a turn away
//! wait in the slot until their turn comes.

use relay_core::Monotonic;
use std::time::Duration;

/// A moment in ticks.
pub(crate) type Tick = u64;

#[derive(Debug)]
pub(crate) struct TimerWheel {
    slots: Vec<Vec<(Tick, usize)>>,
    tick: Duration,
    /// Everything before this tick was given out.
    now: Tick,
}

/// One turn of the wheel is this many ticks.
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

    /// Gives `key` out at `tick`, or with the next turn if that is over. There may be several entries of one key.
    pub(crate) fn insert(&mut self, key: usize, tick: Tick) {
        let tick = tick.max(self.now);
        self.slots[Self::slot(tick)].push((tick, key));
    }

    /// Puts the keys whose tick is not after `moment` into `due`.
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
        // Less than SLOTS.
        usize::try_from(tick % SLOTS).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Beside a plain list: every key comes with the first turn that is not before its moment, and only once.
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
                // A moment within a tick is given out when the tick after it has begun.
                let is_due = |at: u64| at.div_ceil(10) * 10 <= now;
                let expected: Vec<usize> =
                    waiting.iter().filter(|(at, _)| is_due(*at)).map(|(_, key)| *key).collect();
                waiting.retain(|(at, _)| !is_due(*at));
                prop_assert_eq!(due, expected);
            }
        }
    }
}
