//! The worker processes of one run, seen as one.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

use super::wire::{Assignment, Collected, WorkerCommand, WorkerReply};

/// Members of one process, well under the usual limit of open files.
const MEMBERS_OF_A_WORKER: u32 = 9_000;

/// A run's worker processes. Dropping the fleet ends them.
pub(crate) struct Fleet {
    workers: Vec<WorkerProcess>,
    /// The times of the joining.
    pub(crate) joined: JoinTimes,
}

/// The times at which a fleet's members joined. Instants are nanoseconds of the machine's monotonic clock.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct JoinTimes {
    pub(crate) first_connect: u64,
    pub(crate) last_join: u64,
    /// Members that got the document's presence in a message of its own.
    pub(crate) states: u32,
    /// The time of the last such message.
    pub(crate) last_state: u64,
}

struct WorkerProcess {
    child: Child,
    commands: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Fleet {
    /// Starts as many processes as `whole` needs and waits until all members have joined.
    pub(crate) fn start(whole: &Assignment) -> anyhow::Result<Self> {
        let mut workers = Vec::new();
        for (first, members) in shares(whole.members, whole.per_document) {
            let share = Assignment { first_member: whole.first_member + first, members, ..whole.clone() };
            workers.push(WorkerProcess::start(&share)?);
        }
        let mut joined = JoinTimes { first_connect: u64::MAX, ..JoinTimes::default() };
        for worker in &mut workers {
            let WorkerReply::Ready { first_connect, last_join, states, last_state } = worker.reply()? else {
                bail!("a worker process began with another reply")
            };
            joined.first_connect = joined.first_connect.min(first_connect);
            joined.last_join = joined.last_join.max(last_join);
            joined.states += states;
            joined.last_state = joined.last_state.max(last_state);
        }
        Ok(Self { workers, joined })
    }

    /// Sends a command to all workers and waits for their replies.
    pub(crate) fn command(&mut self, command: &WorkerCommand) -> anyhow::Result<Vec<WorkerReply>> {
        for worker in &mut self.workers {
            worker.command(command)?;
        }
        self.workers.iter_mut().map(WorkerProcess::reply).collect()
    }

    /// Lets the members publish. Returns the number of messages and the time of the first.
    pub(crate) fn publish(&mut self, command: &WorkerCommand) -> anyhow::Result<(u64, u64)> {
        let (mut all, mut begin) = (0, u64::MAX);
        for reply in self.command(command)? {
            let WorkerReply::Published { count, first } = reply else {
                bail!("a worker process did not publish")
            };
            all += count;
            begin = begin.min(first);
        }
        Ok((all, begin))
    }

    /// Returns the messages that the members got since the last collection. Each worker waits for its share of `expected`.
    pub(crate) fn collect(&mut self, expected: &[u64]) -> anyhow::Result<Collected> {
        for (worker, expected) in self.workers.iter_mut().zip(expected) {
            worker.command(&WorkerCommand::Collect { expected: *expected })?;
        }
        let mut all = Collected::default();
        for worker in &mut self.workers {
            let WorkerReply::Collected(part) = worker.reply()? else {
                bail!("a worker process did not report")
            };
            all.merge(part);
        }
        Ok(all)
    }
}

/// Returns the first member and the number of members of each process. A document's members are in one process.
pub(crate) fn shares(members: u32, per_document: u32) -> Vec<(u32, u32)> {
    let workers = members.div_ceil(MEMBERS_OF_A_WORKER).max(1);
    let unit = if per_document < MEMBERS_OF_A_WORKER { per_document.max(1) } else { 1 };
    let share = members.div_ceil(workers).next_multiple_of(unit);
    (0..members).step_by(share.max(1) as usize).map(|first| (first, share.min(members - first))).collect()
}

impl WorkerProcess {
    fn start(assignment: &Assignment) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bench-worker").arg(serde_json::to_string(assignment)?);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take().context("a worker process has no input")?;
        let replies = BufReader::new(child.stdout.take().context("a worker process has no output")?);
        Ok(Self { child, commands, replies })
    }

    fn command(&mut self, command: &WorkerCommand) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.commands, command)?;
        self.commands.write_all(b"\n")?;
        Ok(self.commands.flush()?)
    }

    fn reply(&mut self) -> anyhow::Result<WorkerReply> {
        let mut line = String::new();
        self.replies.read_line(&mut line)?;
        match serde_json::from_str(&line).context("a worker process ended early")? {
            WorkerReply::Failed(why) => bail!("{why}"),
            reply => Ok(reply),
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn members_are_shared_out_evenly_with_each_document_in_one_process() {
        assert_eq!(shares(1_000, 1_000), [(0, 1_000)]);
        assert_eq!(shares(10_000, 10_000), [(0, 5_000), (5_000, 5_000)]);
        assert_eq!(shares(10_000, 10), [(0, 5_000), (5_000, 5_000)]);
        assert_eq!(shares(9_030, 100), [(0, 4_600), (4_600, 4_430)]);
    }
}
