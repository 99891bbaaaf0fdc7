//! [`LogOutput`]: the way of log lines to standard output, by a queue that is bounded in bytes and a thread of its own.
//!
//! Standard output may be a pipe that nobody reads, a paused terminal, or a file on a full disk. No thread that serves waits
//! for it, except for a moment when it panics. A line that cannot be written ends nothing. A line that finds the queue full
//! is dropped and counted, and a warning tells how many were. So does one for lines that are left out as too many of a kind.
//!
//! `tracing-appender` has a queue like this one. It bounds the number of lines and not their bytes, and at its end it writes
//! to standard error, which may be the same paused terminal.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use relay_service::DroppedLogLines;
use relay_tasks::{OnPanic, Pulse, TaskGroup, TaskName};
use tracing_subscriber::fmt::MakeWriter;

use crate::line_limit::MAX_LINES;

/// The thread that writes lines.
const WRITER: TaskName = TaskName::new("program.log-output");

/// The most bytes of lines that wait. As many may be in the hands of the thread that writes, so that up to twice as many are
/// in memory.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// The longest wait for the output at the end of the process, and after a panic.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue of the lines. Clones are handles to the same queue.
#[derive(Clone)]
pub(crate) struct LogOutput(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when the queue or its state changes.
    changed: Condvar,
    dropped: DroppedLogLines,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The lines that were dropped since the last warning.
    unreported: u64,
    /// The lines that were left out since the last warning.
    left_out: u64,
    /// True while the thread writes.
    is_writing: bool,
}

/// Waits, when it is dropped, until the lines are written, but not for long.
pub(crate) struct LogGuard(LogOutput);

impl LogOutput {
    /// Starts the thread that writes the lines to `output`. It runs until the process ends. Lines that are dropped are added
    /// to `dropped`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        mut output: impl Write + Send + 'static,
        dropped: DroppedLogLines,
        tasks: &TaskGroup,
    ) -> io::Result<(Self, LogGuard)> {
        let shared = Shared { queue: Mutex::default(), changed: Condvar::new(), dropped };
        let queue = Self(Arc::new(shared));
        let writer = queue.clone();
        let write = move |pulse: &Pulse| writer.run(&mut output, pulse);
        // The thread ends with the process.
        drop(tasks.thread(WRITER, "relay-output".to_owned(), OnPanic::Restart, write)?);
        Ok((queue.clone(), LogGuard(queue)))
    }

    /// Adds a line, with its line end.
    pub(crate) fn push(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.bytes + line.len() > MAX_QUEUED_BYTES {
            queue.unreported += 1;
            drop(queue);
            self.0.dropped.add(1);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.0.changed.notify_all();
    }

    /// Counts a line that is not written, since the same place in the code has written many.
    pub(crate) fn leave_out(&self) {
        self.0.queue.lock().left_out += 1;
        self.0.dropped.add(1);
    }

    fn run(&self, output: &mut impl Write, pulse: &Pulse) {
        // The lines that the output refused since it last took one.
        let mut refused = 0;
        loop {
            pulse.check();
            let (lines, mut unreported, left_out) = {
                let mut queue = self.0.queue.lock();
                queue.is_writing = false;
                self.0.changed.notify_all();
                self.0.changed.wait_while(&mut queue, |queue| queue.lines.is_empty());
                queue.is_writing = true;
                queue.bytes = 0;
                let lines = std::mem::take(&mut queue.lines);
                (lines, std::mem::take(&mut queue.unreported), std::mem::take(&mut queue.left_out))
            };
            for line in lines {
                match output.write_all(&line).and_then(|()| output.flush()) {
                    Ok(()) => unreported += std::mem::take(&mut refused),
                    Err(_refused) => {
                        refused += 1;
                        self.0.dropped.add(1);
                    }
                }
            }
            if left_out > 0 {
                tracing::warn!(
                    lines = left_out,
                    "log lines were left out, since their place in the code wrote {MAX_LINES} in a minute; the metrics have the numbers"
                );
            }
            if unreported > 0 {
                tracing::warn!(
                    lines = unreported,
                    "log lines were dropped, since the output did not take them"
                );
            }
        }
    }

    /// Waits until all lines are written, at most for [`FLUSH_TIMEOUT`].
    pub(crate) fn flush(&self) {
        let mut queue = self.0.queue.lock();
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        // An output that takes nothing keeps the process no longer.
        let _ = self.0.changed.wait_while_for(&mut queue, is_busy, FLUSH_TIMEOUT);
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// The writer of one line.
pub(crate) struct LineWriter<'a>(&'a LogOutput);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogOutput {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

    use std::sync::mpsc;

    use relay_tasks::Supervisor;

    use super::*;

    /// An output that hands over each line.
    struct Lines(mpsc::Sender<Vec<u8>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_panics_goes_on_with_the_lines_that_wait() {
        let (supervisor, (sender, written)) = (Supervisor::default(), mpsc::channel());
        let (output, _guard) =
            LogOutput::start(Lines(sender), DroppedLogLines::default(), &supervisor.group()).unwrap();
        output.push(b"one\n");
        assert_eq!(written.recv().unwrap(), b"one\n");
        supervisor.kill(WRITER);
        output.push(b"two\n");
        output.push(b"three\n");
        assert_eq!([written.recv().unwrap(), written.recv().unwrap()].concat(), b"two\nthree\n");
        // By now the writer has panicked.
        output.push(b"four\n");
        assert_eq!(written.recv().unwrap(), b"four\n");
        assert!(supervisor.stats().values().all(|stats| stats.panicked == 1));
    }
}
