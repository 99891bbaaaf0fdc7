//! [`LineLimit`]: the most log lines that one place in the code writes in a minute.
//!
//! A client or a service that makes something fail can do so as often as it likes, while a disk is full or a target is down. The
//! counters tell how often. The log tells of the first failures of each minute, and how many lines were left out.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{Clock, Monotonic, SystemClock};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::log_output::LogOutput;

/// The most lines that one place writes in a [`WINDOW`].
pub(crate) const MAX_LINES: u32 = 20;
/// The time for which lines are counted, from the first of them on.
const WINDOW: Duration = Duration::from_secs(60);

/// A layer that leaves out the lines of places that have written too many. Lines for debugging are written only where they
/// are asked for, and have no limit.
pub(crate) struct LineLimit {
    /// One entry for each place in the code that has written a line.
    places: Mutex<HashMap<Identifier, Written>>,
    clock: SystemClock,
    output: LogOutput,
}

/// The lines of one place in the present window.
struct Written {
    since: Monotonic,
    lines: u32,
}

impl Written {
    fn new(since: Monotonic) -> Self {
        Self { since, lines: 0 }
    }

    /// Counts a line, and returns true if it may be written.
    fn admits(&mut self, now: Monotonic) -> bool {
        if now.since(self.since) >= WINDOW {
            *self = Self::new(now);
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= MAX_LINES
    }
}

impl LineLimit {
    /// A limit in front of `output`, which counts the lines that are left out.
    pub(crate) fn new(output: LogOutput) -> Self {
        Self { places: Mutex::default(), clock: SystemClock::new(), output }
    }
}

impl<S: Subscriber> Layer<S> for LineLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let (metadata, now) = (event.metadata(), self.clock.monotonic());
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut places = self.places.lock();
        let written = places.entry(metadata.callsite()).or_insert_with(|| Written::new(now));
        let is_admitted = written.admits(now);
        drop(places);
        if !is_admitted {
            self.output.leave_out();
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

    use std::io::{self, Write};
    use std::sync::mpsc;

    use relay_service::DroppedLogLines;
    use relay_tasks::Supervisor;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// An output that hands over each line.
    struct Lines(mpsc::Sender<String>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8(bytes.to_vec()).unwrap()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (LineLimit, mpsc::Receiver<String>, DroppedLogLines) {
        let ((sender, written), dropped) = (mpsc::channel(), DroppedLogLines::default());
        let tasks = Supervisor::default().group();
        let (output, _guard) = LogOutput::start(Lines(sender), dropped.clone(), &tasks).unwrap();
        (LineLimit::new(output), written, dropped)
    }

    #[test]
    fn a_place_that_writes_a_line_per_event_writes_the_first_ones_alone() {
        let (limit, written, dropped) = start();
        let format = tracing_subscriber::fmt().with_ansi(false).with_writer(limit.output.clone());
        let log = format.with_max_level(Level::DEBUG).finish().with(limit);
        tracing::subscriber::with_default(log, || {
            for n in 0..1_000 {
                tracing::warn!(n, "it failed");
                tracing::debug!(n, "in detail");
            }
            tracing::warn!("another place");
        });
        assert_eq!(dropped.get(), 1_000 - u64::from(MAX_LINES));
        let last = |line: &String| !line.contains("another place");
        let lines: Vec<_> = written.iter().take_while(last).collect();
        let of = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!((of("it failed"), of("in detail")), (20, 1_000));
    }

    #[test]
    fn each_place_has_its_lines_again_after_a_minute() {
        let at = |seconds| Monotonic::ZERO + Duration::from_secs(seconds);
        let mut place = Written::new(at(5));
        let mut admitted = |now| (0..50).filter(|_| place.admits(now)).count();
        assert_eq!([5, 64, 65, 66, 200].map(|seconds| admitted(at(seconds))), [20, 0, 20, 0, 20]);
    }
}
