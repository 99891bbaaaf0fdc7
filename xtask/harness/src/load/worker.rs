//! One worker process: up to some thousand members on one thread with one `epoll`. Its only work per message is to find
//! the stamp. The command starts several workers, since the open files of one process are limited.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Socket, Type};

use super::frame::{self, FrameKind, MARK};
use super::system::{self, JoinStep, Position, System, contains};
use super::wire::{Assignment, Collected, WorkerCommand, WorkerReply, pairs};

/// The time without any event after which a phase is given up.
const STALL_NS: u64 = 10_000_000_000;
/// The time without a message after which a collection ends incomplete.
const QUIET_NS: u64 = 3_000_000_000;
/// The time that joined members wait for presence, which a server may not send.
const STATE_TIMEOUT_NS: u64 = 1_500_000_000;
/// The largest message of a server; the longest is a member list.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Files that a process has open beside its members' sockets.
const OTHER_FILES: u64 = 64;
const WAKER: Token = Token(usize::MAX);

/// Returns the machine's monotonic clock in nanoseconds, which is the same in every process.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Returns the whole part of a time or count, which is positive and far below 2^53.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the whole part is what is wanted"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

/// Fails if the limit of open files is too low for so many members.
pub(crate) fn check_open_files(members: u32) -> anyhow::Result<()> {
    enough_open_files(members, getrlimit(Resource::Nofile).current)
}

fn enough_open_files(members: u32, limit: Option<u64>) -> anyhow::Result<()> {
    let needed = u64::from(members) + OTHER_FILES;
    match limit {
        Some(limit) if limit < needed => bail!(
            "{members} connections in one process need {needed} open files, and its limit is {limit}\nfix: ulimit -n {needed}"
        ),
        _ => Ok(()),
    }
}

/// Runs a worker to the end of its standard input.
pub(crate) fn run(assignment: &str) -> anyhow::Result<()> {
    let assignment = serde_json::from_str(assignment).context("a worker's assignment is one JSON object")?;
    let done = Worker::new(assignment).and_then(Worker::serve);
    if let Err(error) = &done {
        send_reply(&WorkerReply::Failed(format!("{error:#}")))?;
    }
    done
}

fn send_reply(reply: &WorkerReply) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, reply)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Upgrading,
    Joining,
    Joined,
    Gone,
}

struct LoadMember {
    stream: TcpStream,
    stage: Stage,
    slow: bool,
    reading: bool,
    /// The beginning of an incomplete frame.
    rest: Vec<u8>,
    /// Bytes that the socket has not taken yet.
    out: Vec<u8>,
    /// The position after which Relay's member joins again.
    position: Position,
    /// The answers to the messages of a flood.
    answered: u64,
}

struct Worker {
    plan: Assignment,
    poll: Poll,
    members: Vec<LoadMember>,
    documents: Vec<String>,
    commands: mpsc::Receiver<WorkerCommand>,
    buffer: Vec<u8>,
    joined: u32,
    last_join: u64,
    states: u32,
    last_state: u64,
    /// Messages that the first member got, which limit a publisher's window.
    first_got: u64,
    last_event: u64,
    latencies: Histogram<u64>,
    collected: Collected,
    disconnected: u32,
    /// True while answers are counted, since members flood.
    is_flooding: bool,
}

impl Worker {
    fn new(plan: Assignment) -> anyhow::Result<Self> {
        check_open_files(plan.members)?;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (sender, commands) = mpsc::sync_channel(1);
        // Ends with the input, or with the process.
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let Ok(command) = serde_json::from_str(&line) else { break };
                if sender.send(command).is_err() || waker.wake().is_err() {
                    break;
                }
            }
            drop(sender);
            // The closed channel ends the worker, which may have ended already.
            let _ = waker.wake();
        });
        let last = (plan.first_member + plan.members).div_ceil(plan.per_document.max(1));
        Ok(Self {
            documents: (0..last).map(|number| format!("bench-{number}")).collect(),
            members: Vec::with_capacity(plan.members as usize),
            plan,
            poll,
            commands,
            buffer: vec![0; 256 << 10],
            joined: 0,
            last_join: 0,
            states: 0,
            last_state: 0,
            first_got: 0,
            last_event: now(),
            latencies: Histogram::new(3)?,
            collected: Collected::default(),
            disconnected: 0,
            is_flooding: false,
        })
    }

    fn serve(mut self) -> anyhow::Result<()> {
        let first_connect = now();
        self.join_all()?;
        send_reply(&WorkerReply::Ready {
            first_connect,
            last_join: self.last_join,
            states: self.states,
            last_state: self.last_state,
        })?;
        loop {
            match self.commands.try_recv() {
                Ok(command) => send_reply(&self.execute(&command)?)?,
                Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                Err(mpsc::TryRecvError::Empty) => self.poll_once(Some(Duration::from_millis(500)))?,
            }
        }
    }

    fn execute(&mut self, command: &WorkerCommand) -> anyhow::Result<WorkerReply> {
        Ok(match *command {
            WorkerCommand::Publish { rate, seconds, window } => self.publish(rate, seconds, window)?,
            WorkerCommand::Type { per_member, seconds } => self.type_all(per_member, seconds)?,
            WorkerCommand::Flood { ref event, members, seconds, window } => {
                self.flood(event, members as usize, seconds, window)?
            }
            WorkerCommand::Collect { expected } => {
                self.last_event = now();
                while self.collected.delivered < expected && now() - self.last_event < QUIET_NS {
                    self.poll_once(Some(Duration::from_millis(100)))?;
                }
                let mut collected = std::mem::take(&mut self.collected);
                collected.latencies = pairs(&self.latencies);
                collected.disconnected = self.disconnected;
                self.latencies.reset();
                WorkerReply::Collected(collected)
            }
            WorkerCommand::Heartbeat => {
                if let Some(heartbeat) = self.plan.system.heartbeat() {
                    for index in 0..self.members.len() {
                        self.send(index, &heartbeat);
                        if index % 64 == 0 {
                            self.poll_once(Some(Duration::ZERO))?;
                        }
                    }
                }
                WorkerReply::Done
            }
            WorkerCommand::StopReading => {
                for member in self.members.iter_mut().filter(|member| member.slow) {
                    member.reading = false;
                    self.poll.registry().deregister(&mut member.stream)?;
                }
                WorkerReply::Done
            }
        })
    }

    fn document(&self, index: usize) -> usize {
        (self.plan.first_member as usize + index) / self.plan.per_document.max(1) as usize
    }

    fn join_all(&mut self) -> anyhow::Result<()> {
        let started = now();
        self.last_event = started;
        while self.joined < self.plan.members {
            let on_their_way = self.members.len() - self.joined as usize;
            let room = (self.plan.in_flight as usize).saturating_sub(on_their_way);
            let left = self.plan.members as usize - self.members.len();
            for _ in 0..room.min(left) {
                self.connect()?;
            }
            self.poll_once(Some(Duration::from_millis(100)))?;
            ensure!(
                now() - self.last_event < STALL_NS,
                "{} of {} members had joined when no more messages came",
                self.joined,
                self.plan.members
            );
        }
        // Relay sends each member the document's presence; the other systems send none.
        while self.plan.presence
            && self.states < self.plan.members
            && now() - self.last_state.max(self.last_join) < STATE_TIMEOUT_NS
            && self.plan.system == System::Relay
        {
            self.poll_once(Some(Duration::from_millis(100)))?;
        }
        Ok(())
    }

    fn connect(&mut self) -> anyhow::Result<()> {
        let number = u32::try_from(self.members.len())? + self.plan.first_member;
        let slow = self.plan.slow_every.is_some_and(|every| number % every == every / 2);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if slow {
            // The segments of Ethernet and a small buffer, as of a far client. The loopback's own sizes would hide a slow
            // member for long.
            socket.set_tcp_mss(1_460)?;
            socket.set_recv_buffer_size(8 << 10)?;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.plan.port));
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                return Err(error).context("a connection cannot be opened");
            }
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let token = Token(self.members.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let (rest, out) = (Vec::new(), Vec::new());
        let position = Position::default();
        let stage = Stage::Connecting;
        self.members.push(LoadMember {
            stream,
            stage,
            slow,
            reading: true,
            rest,
            out,
            position,
            answered: 0,
        });
        Ok(())
    }

    /// Polls the sockets once and handles those that are ready.
    fn poll_once(&mut self, timeout: Option<Duration>) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(1_024);
        match self.poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            done => done?,
        }
        for event in events.iter().filter(|event| event.token() != WAKER) {
            let Token(index) = event.token();
            if event.is_writable() {
                self.writable(index)?;
            }
            if event.is_readable() {
                self.readable(index)?;
            }
        }
        Ok(())
    }

    fn writable(&mut self, index: usize) -> anyhow::Result<()> {
        if self.members[index].stage == Stage::Connecting {
            if let Some(error) = self.members[index].stream.take_error()? {
                return Err(error).context("a connection was refused");
            }
            let number = u32::try_from(index)? + self.plan.first_member;
            if let Some(request) = self.plan.system.upgrade(self.plan.port, number) {
                self.members[index].stage = Stage::Upgrading;
                self.send(index, request.as_bytes());
            } else {
                self.has_joined(index);
            }
        } else if !self.members[index].out.is_empty() {
            self.flush(index);
        }
        Ok(())
    }

    fn has_joined(&mut self, index: usize) {
        self.members[index].stage = Stage::Joined;
        self.joined += 1;
        self.last_join = now();
        self.last_event = self.last_join;
    }

    fn send(&mut self, index: usize, bytes: &[u8]) {
        let member = &mut self.members[index];
        if member.stage != Stage::Gone {
            member.out.extend_from_slice(bytes);
            self.flush(index);
        }
    }

    fn flush(&mut self, index: usize) {
        let member = &mut self.members[index];
        while !member.out.is_empty() {
            match member.stream.write(&member.out) {
                Ok(written) => drop(member.out.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The next read finds that the connection has ended.
                Err(_) => member.out.clear(),
            }
        }
    }

    fn readable(&mut self, index: usize) -> anyhow::Result<()> {
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let member = &mut self.members[index];
            if member.stage == Stage::Gone || !member.reading {
                self.buffer = buffer;
                return Ok(());
            }
            let held = member.rest.len();
            if buffer.len() < held + (64 << 10) {
                ensure!(held < MAX_MESSAGE_BYTES, "a message is longer than {MAX_MESSAGE_BYTES} bytes");
                buffer.resize(2 * held + (64 << 10), 0);
            }
            buffer[..held].copy_from_slice(&member.rest);
            member.rest.clear();
            let read = member.stream.read(&mut buffer[held..]);
            let (got, full) = match read {
                Ok(got) => (got, held + got == buffer.len()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    member.rest.extend_from_slice(&buffer[..held]);
                    self.buffer = buffer;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    member.rest.extend_from_slice(&buffer[..held]);
                    self.buffer = buffer;
                    continue;
                }
                Err(_) => (0, false),
            };
            if got == 0 {
                self.buffer = buffer;
                return self.gone(index);
            }
            if self.members[index].stage == Stage::Joined && !self.members[index].slow {
                self.collected.bytes += got as u64;
            }
            let done = self.scan(index, &buffer[..held + got]);
            let used = done.as_ref().copied().unwrap_or(0);
            self.members[index].rest.extend_from_slice(&buffer[used..held + got]);
            self.buffer = buffer;
            done?;
            // Edge-triggered: a read that did not fill the buffer has emptied the socket.
            if !full {
                return Ok(());
            }
        }
    }

    fn gone(&mut self, index: usize) -> anyhow::Result<()> {
        let stage = std::mem::replace(&mut self.members[index].stage, Stage::Gone);
        ensure!(stage == Stage::Joined, "the server closed the connection of a member that was joining");
        self.disconnected += 1;
        Ok(self.poll.registry().deregister(&mut self.members[index].stream)?)
    }

    /// Handles the complete frames of `bytes` and returns their length.
    fn scan(&mut self, index: usize, bytes: &[u8]) -> anyhow::Result<usize> {
        let mut used = 0;
        if self.members[index].stage == Stage::Upgrading {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(0) };
            let head = String::from_utf8_lossy(&bytes[..end]);
            let status = head.lines().next().unwrap_or_default();
            ensure!(status.contains(" 101"), "the server refused a connection: {status}");
            self.members[index].stage = Stage::Joining;
            let document = self.document(index);
            let greeting = self.plan.system.greeting(&self.documents[document], self.plan.presence);
            self.send(index, &greeting);
            used = end + 4;
        }
        let (read_at, mut last) = (now(), None);
        while let Some((frame, length)) = frame::first(&bytes[used..])? {
            used += length;
            match frame.kind {
                FrameKind::Data => {
                    last = self.message(index, frame.payload, read_at)?.then_some(frame.payload).or(last);
                }
                FrameKind::Ping => {
                    let mut pong = Vec::new();
                    frame::write(&mut pong, 10, frame.payload);
                    self.send(index, &pong);
                }
                // The server ends the connection after a close.
                FrameKind::Pong | FrameKind::Close => {}
            }
        }
        if let (System::Relay, Some(event)) = (self.plan.system, last) {
            self.members[index].position.advance(event);
        }
        Ok(used)
    }

    /// Handles a message. Returns true for an event.
    fn message(&mut self, index: usize, message: &[u8], read_at: u64) -> anyhow::Result<bool> {
        let (mut at, mut found) = (0, 0);
        while let Some(mark) = memchr::memmem::find(&message[at..], MARK) {
            at += mark + MARK.len();
            if let Some(stamp) = frame::stamp(&message[at..]) {
                found += 1;
                if !self.members[index].slow {
                    self.latencies.record(read_at.saturating_sub(stamp).max(1))?;
                }
            }
        }
        if found > 0 {
            self.last_event = read_at;
            if !self.members[index].slow {
                self.collected.delivered += found;
                self.collected.last = read_at;
            }
            if index == 0 {
                self.first_got += found;
            }
            return Ok(true);
        }
        if let Some(reply) = self.plan.system.keep_alive(message) {
            self.send(index, &reply);
        } else if self.members[index].stage == Stage::Joining {
            let document = self.document(index);
            match self.plan.system.join_step(message, &self.documents[document]) {
                JoinStep::Wait => {}
                JoinStep::Send(reply) => self.send(index, &reply),
                JoinStep::Joined => {
                    if contains(message, br#""reset":true"#) {
                        self.collected.resets += 1;
                    }
                    self.members[index].position = Position::of_reply(message);
                    self.has_joined(index);
                }
                JoinStep::Refused => bail!("the server refused a join: {}", String::from_utf8_lossy(message)),
            }
        } else if self.plan.system.ends_join(message) {
            self.collected.ended += 1;
            self.members[index].stage = Stage::Joining;
            let document = &self.documents[self.document(index)];
            let rejoin = self.members[index].position.rejoin(document, self.plan.presence);
            self.send(index, &rejoin);
        } else if self.is_flooding && contains(message, br#""phx_reply""#) {
            // A flood may be refused.
            self.members[index].answered += 1;
        } else if contains(message, br#""status":"error""#) {
            bail!("the server refused a message: {}", String::from_utf8_lossy(message));
        }
        if self.plan.presence && contains(message, br#""presence_state""#) {
            self.states += 1;
            self.last_state = read_at;
        }
        Ok(false)
    }

    fn publish(&mut self, rate: Option<f64>, seconds: f64, window: u64) -> anyhow::Result<WorkerReply> {
        let (first, length) = (now(), whole(seconds * 1e9));
        let (before, mut sent) = (self.first_got, 0u64);
        let mut batch = Vec::new();
        let document = self.document(0);
        self.last_event = first;
        loop {
            let elapsed = now() - first;
            let due = match rate {
                Some(rate) => whole(elapsed.min(length) as f64 / 1e9 * rate) + 1,
                None if elapsed < length => self.first_got - before + window,
                None => sent,
            };
            while sent < due && elapsed < length {
                let message = frame::message(now(), self.plan.message_bytes);
                self.plan.system.publish(&mut batch, &self.documents[document], &message);
                sent += 1;
            }
            if !batch.is_empty() {
                self.send(0, &batch);
                batch.clear();
            }
            let waiting = self.first_got - before < sent;
            if elapsed >= length && (!waiting || now() - self.last_event > QUIET_NS) {
                return Ok(WorkerReply::Published { count: sent, first });
            }
            ensure!(self.members[0].stage == Stage::Joined, "the server disconnected the publisher");
            ensure!(
                rate.is_some() || !waiting || now() - self.last_event < STALL_NS,
                "the publisher got {} of its {sent} messages back, and then nothing",
                self.first_got - before
            );
            let pause = rate.map_or(100_000_000, |rate| {
                let next = whole(sent as f64 / rate * 1e9);
                next.saturating_sub(now() - first).clamp(1, 100_000_000)
            });
            self.poll_once(Some(Duration::from_nanos(pause)))?;
        }
    }

    fn flood(
        &mut self,
        event: &str,
        members: usize,
        seconds: f64,
        window: u64,
    ) -> anyhow::Result<WorkerReply> {
        let (first, length) = (now(), whole(seconds * 1e9));
        let mut message = Vec::new();
        let document = self.document(0);
        system::push(&mut message, &self.documents[document], event, &"x".repeat(self.plan.message_bytes));
        let mut sent = vec![0; members];
        self.is_flooding = true;
        self.last_event = first;
        loop {
            let is_over = now() - first >= length;
            for (index, sent) in sent.iter_mut().enumerate() {
                let due = self.members[index].answered + window - *sent;
                // A few at a time are as many writes as answers.
                if !is_over && due >= window / 4 {
                    self.send(index, &message.repeat(usize::try_from(due)?));
                    *sent += due;
                }
            }
            let waiting: u64 = sent.iter().zip(&self.members).map(|(sent, one)| sent - one.answered).sum();
            if is_over && (waiting == 0 || now() - first > length + QUIET_NS) {
                self.is_flooding = false;
                return Ok(WorkerReply::Published { count: sent.iter().sum::<u64>() - waiting, first });
            }
            self.poll_once(Some(Duration::from_millis(10)))?;
        }
    }

    fn type_all(&mut self, per_member: f64, seconds: f64) -> anyhow::Result<WorkerReply> {
        let (first, length) = (now(), whole(seconds * 1e9));
        let rate = per_member * self.members.len() as f64;
        let mut sent = 0u64;
        loop {
            let elapsed = now() - first;
            if elapsed >= length {
                return Ok(WorkerReply::Published { count: sent, first });
            }
            let due = whole(elapsed as f64 / 1e9 * rate) + 1;
            while sent < due {
                let index = usize::try_from(sent)? % self.members.len();
                let mut batch = Vec::new();
                let message = frame::message(now(), self.plan.message_bytes);
                self.plan.system.publish(&mut batch, &self.documents[self.document(index)], &message);
                self.send(index, &batch);
                sent += 1;
            }
            self.poll_once(Some(Duration::from_millis(1)))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::enough_open_files;

    #[test]
    fn too_few_open_files_are_named_with_what_to_do() {
        assert!(enough_open_files(9_000, Some(20_000)).is_ok());
        assert!(enough_open_files(9_000, None).is_ok());
        let error = enough_open_files(9_000, Some(1_024)).unwrap_err().to_string();
        assert!(error.contains("limit is 1024") && error.contains("ulimit -n 9064"), "{error}");
    }
}
