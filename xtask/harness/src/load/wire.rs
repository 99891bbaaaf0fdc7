//! The messages between the command and its worker processes: one JSON object a line, on standard input and output.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::system::System;

/// The members of one worker process, given when it starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) system: System,
    pub(crate) port: u16,
    /// The number of this worker's first member among all of the run.
    pub(crate) first_member: u32,
    pub(crate) members: u32,
    /// Members of one document; member `n` is in document `n / per_document`.
    pub(crate) per_document: u32,
    /// Connections that may be joining at once.
    pub(crate) in_flight: u32,
    /// Lets members take part in presence, where the system has it.
    pub(crate) presence: bool,
    /// The interval between slow members, which are not measured and stop reading on order.
    pub(crate) slow_every: Option<u32>,
    pub(crate) message_bytes: usize,
}

/// A command to a worker, which gives one [`WorkerReply`] to each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum WorkerCommand {
    /// The first member publishes `rate` messages per second, or as fast as it can with at most `window` messages that have
    /// not come back to it.
    Publish { rate: Option<f64>, seconds: f64, window: u64 },
    /// Every member publishes, spread evenly.
    Type { per_member: f64, seconds: f64 },
    /// The first `members` members publish `event`, each as fast as it is answered, with at most `window` messages that have
    /// no answer.
    Flood { event: String, members: u32, seconds: f64, window: u64 },
    /// Waits for `expected` messages since the last `Collect`, or until no more come, and reports.
    Collect { expected: u64 },
    /// Every member sends a heartbeat.
    Heartbeat,
    /// The slow members stop reading.
    StopReading,
}

/// A reply of a worker. The first one, `Ready`, comes without a command. Instants are nanoseconds of the machine's
/// monotonic clock.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum WorkerReply {
    Ready { first_connect: u64, last_join: u64, states: u32, last_state: u64 },
    Published { count: u64, first: u64 },
    Collected(Collected),
    Done,
    Failed(String),
}

/// The messages that a worker's members got.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Collected {
    pub(crate) delivered: u64,
    pub(crate) bytes: u64,
    pub(crate) last: u64,
    /// Members that the server has disconnected so far.
    pub(crate) disconnected: u32,
    /// Joins that the server ended by a failure. Their members join again from their positions.
    pub(crate) ended: u32,
    /// Joins after such an end that could not go on from the member's position.
    pub(crate) resets: u32,
    /// Pairs of a latency in nanoseconds and its count.
    pub(crate) latencies: Vec<(u64, u64)>,
}

impl Collected {
    /// Adds the messages of another worker.
    pub(crate) fn merge(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.bytes += other.bytes;
        self.last = self.last.max(other.last);
        self.disconnected += other.disconnected;
        self.ended += other.ended;
        self.resets += other.resets;
        self.latencies.extend(other.latencies);
    }

    /// Returns all latencies as one histogram.
    pub(crate) fn histogram(&self) -> anyhow::Result<Histogram<u64>> {
        let mut histogram = Histogram::new(3)?;
        for (value, count) in &self.latencies {
            histogram.record_n(*value, *count)?;
        }
        Ok(histogram)
    }
}

/// Returns a histogram as pairs of value and count.
pub(crate) fn pairs(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::{Collected, pairs};

    #[test]
    fn merged_workers_have_the_percentiles_of_all_their_members() {
        let (mut whole, mut merged) = (Histogram::<u64>::new(3).unwrap(), Collected::default());
        for worker in 0..3u64 {
            let mut part = Histogram::<u64>::new(3).unwrap();
            for value in 1..=1_000 {
                part.record(value * (worker + 1) * 1_000).unwrap();
                whole.record(value * (worker + 1) * 1_000).unwrap();
            }
            merged.merge(Collected {
                delivered: 1_000,
                last: worker,
                latencies: pairs(&part),
                ..Collected::default()
            });
        }
        let found = merged.histogram().unwrap();
        assert_eq!((merged.delivered, merged.last, found.len()), (3_000, 2, 3_000));
        for quantile in [0.5, 0.9, 0.99, 1.0] {
            assert_eq!(found.value_at_quantile(quantile), whole.value_at_quantile(quantile));
        }
    }
}
