//! Durations as quantiles over the last minute.
//!
//! A mean hides what users complain about, and quantiles since the start hide what goes on now. So a [`LatencyWindow`]
//! is a ring of histograms, one for each slice of time. A duration is recorded in the newest slice, a snapshot adds all
//! slices up, and a slice that is older than the window is overwritten. The caller hands in the time.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use relay_core::Monotonic;
use serde::Serialize;

/// The number of slices in a window.
const SLICES: usize = 6;
/// The length of a slice.
const SLICE: Duration = Duration::from_secs(10);
/// The durations that are told apart: from 128 ns to a minute, with an error of at most 1 %. A longer one counts as the
/// longest in quantiles; the maximum and the sums are exact.
const LOWEST_NANOS: u64 = 128;
const HIGHEST_NANOS: u64 = 60_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 2;

/// The durations of the last minute, in slices of ten seconds.
///
/// Recording takes one short lock and allocates only the first time a slice is used, so it can be shared by many
/// threads (about 30 ns without contention). It takes at most 72 KiB, and next to nothing until something is recorded.
///
/// ```
/// use std::time::Duration;
/// use relay_core::Monotonic;
/// use relay_metrics::LatencyWindow;
///
/// let now = Monotonic::ZERO;
/// let window = LatencyWindow::new();
/// window.record(now, Duration::from_millis(20));
/// assert_eq!(window.stats(now).max, Some(0.02));
///
/// let later = window.stats(now + Duration::from_secs(61));
/// assert_eq!((later.max, later.total_count), (None, 1));
/// ```
#[derive(Debug, Default)]
pub struct LatencyWindow(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    slices: [Slice; SLICES],
    total: Totals,
}

/// The durations of one slice of time.
#[derive(Debug, Default, Clone)]
struct Slice {
    /// The number of the slice among all slices of time, from 0.
    number: u64,
    /// In nanoseconds. `None` until it is used for the first time.
    histogram: Option<Histogram<u32>>,
    sum: Totals,
    max: Duration,
}

#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    count: u64,
    time: Duration,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.time = self.time.saturating_add(other.time);
    }
}

/// The content of a [`LatencyWindow`] at one moment. All times are in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LatencyStats {
    /// The median over the window. `None` when nothing was recorded in it, as for the other quantiles.
    pub p50: Option<f64>,
    /// The value that 95 % stay below, over the window.
    pub p95: Option<f64>,
    /// The value that 99 % stay below, over the window.
    pub p99: Option<f64>,
    /// The longest in the window.
    pub max: Option<f64>,
    /// The number of durations recorded in the window.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The number of durations ever recorded.
    pub total_count: u64,
    /// Their sum.
    pub total_sum: f64,
}

impl LatencyWindow {
    /// A window in which nothing has been recorded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that something took `latency` and ended at `now`, by [`Clock::monotonic`](relay_core::Clock::monotonic).
    ///
    /// Threads need not call in the order of their `now`s.
    pub fn record(&self, now: Monotonic, latency: Duration) {
        let number = slice_number(now);
        let mut ring = self.0.lock();
        let one = Totals { count: 1, time: latency };
        ring.total.add(one);
        let slice = &mut ring.slices[slot_index(number)];
        if slice.number > number {
            // The thread has slept through a whole window: its duration no longer shows.
            return;
        }
        if slice.number < number {
            slice.begin(number);
        }
        slice.sum.add(one);
        slice.max = slice.max.max(latency);
        if slice.histogram.is_none() {
            slice.histogram =
                Histogram::new_with_bounds(LOWEST_NANOS, HIGHEST_NANOS, SIGNIFICANT_DIGITS).ok();
        }
        if let Some(histogram) = &mut slice.histogram {
            histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// Returns what was recorded in the last minute before `now`, and ever.
    pub fn stats(&self, now: Monotonic) -> LatencyStats {
        let newest = slice_number(now);
        let oldest = newest.saturating_sub(SLICES as u64 - 1);
        let (slices, total) = {
            let ring = self.0.lock();
            let fresh = ring.slices.iter().filter(|slice| slice.number >= oldest && slice.sum.count > 0);
            (fresh.cloned().collect::<Vec<Slice>>(), ring.total)
        };
        let mut all = Histogram::<u32>::new_with_bounds(LOWEST_NANOS, HIGHEST_NANOS, SIGNIFICANT_DIGITS).ok();
        let (mut sum, mut max) = (Totals::default(), Duration::ZERO);
        for slice in &slices {
            sum.add(slice.sum);
            max = max.max(slice.max);
            // It fails for different bounds alone, and both have the same.
            all =
                all.zip(slice.histogram.as_ref()).and_then(|(mut all, one)| all.add(one).ok().map(|()| all));
        }
        let all = all.filter(|all| !all.is_empty());
        // A bucket's upper end may lie above what was ever seen.
        let quantile = |q| Some(seconds(Duration::from_nanos(all.as_ref()?.value_at_quantile(q)).min(max)));
        LatencyStats {
            p50: quantile(0.50),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max: (sum.count > 0).then(|| seconds(max)),
            count: sum.count,
            sum: seconds(sum.time),
            total_count: total.count,
            total_sum: seconds(total.time),
        }
    }
}

impl Slice {
    /// Begins anew as the slice of that number. The histogram's memory is kept.
    fn begin(&mut self, number: u64) {
        self.number = number;
        self.sum = Totals::default();
        self.max = Duration::ZERO;
        if let Some(histogram) = &mut self.histogram {
            histogram.reset();
        }
    }
}

fn slice_number(now: Monotonic) -> u64 {
    now.elapsed().as_secs() / SLICE.as_secs()
}

fn slot_index(number: u64) -> usize {
    usize::try_from(number % SLICES as u64).unwrap_or(0)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Monotonic {
        Monotonic::from_elapsed(Duration::from_secs(seconds))
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[track_caller]
    fn check_about(found: Option<f64>, wanted: f64) {
        let found = found.expect("something was recorded");
        assert!((found - wanted).abs() <= wanted * 0.01, "{found} instead of {wanted}");
    }

    #[test]
    fn quantiles_are_within_one_percent_and_maximum_and_sum_are_exact() {
        let window = LatencyWindow::new();
        for millis in 1..=1_000 {
            window.record(at(millis % 60), ms(millis));
        }
        let stats = window.stats(at(59));
        check_about(stats.p50, 0.5);
        check_about(stats.p95, 0.95);
        check_about(stats.p99, 0.99);
        assert_eq!((stats.max, stats.count, stats.total_count), (Some(1.0), 1_000, 1_000));
        assert!((stats.sum - 500.5).abs() < 1e-9, "{}", stats.sum);
    }

    #[test]
    fn what_is_older_than_a_minute_no_longer_shows_but_in_the_totals() {
        let window = LatencyWindow::new();
        window.record(at(5), ms(900));
        window.record(at(15), ms(10));
        assert_eq!(window.stats(at(59)).max, Some(0.9));
        let later = window.stats(at(60));
        assert_eq!((later.max, later.count, later.total_count), (Some(0.01), 1, 2));
        window.record(at(65), ms(20));
        assert_eq!(window.stats(at(69)).max, Some(0.02), "the slice of 5 s was begun anew");
        assert_eq!(window.stats(at(500)).p99, None);
    }

    #[test]
    fn threads_may_come_with_an_earlier_now() {
        let window = LatencyWindow::new();
        window.record(at(21), ms(2));
        window.record(at(19), ms(1));
        assert_eq!(window.stats(at(21)).count, 2);
        window.record(at(100), ms(3));
        window.record(at(40), ms(4));
        let stats = window.stats(at(100));
        assert_eq!(
            (stats.count, stats.total_count),
            (1, 4),
            "40 s is a window ago, and its slice is used again"
        );
    }

    #[test]
    fn what_takes_longer_than_a_minute_counts_as_the_longest() {
        let window = LatencyWindow::new();
        window.record(at(0), Duration::from_secs(3_600));
        window.record(at(0), Duration::ZERO);
        let stats = window.stats(at(0));
        assert_eq!((stats.max, stats.sum), (Some(3_600.0), 3_600.0));
        check_about(stats.p99, 60.0);
    }

    #[test]
    fn a_window_takes_no_more_than_it_says() {
        let window = LatencyWindow::new();
        for second in 0..60 {
            window.record(at(second), ms(second));
        }
        let ring = window.0.lock();
        let counts = ring.slices.iter().flat_map(|slice| &slice.histogram).map(Histogram::distinct_values);
        let bytes = counts.sum::<usize>() * size_of::<u32>() + size_of::<Ring>();
        assert!(bytes <= 72 * 1024, "{bytes} bytes");
    }
}
