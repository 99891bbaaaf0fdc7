//! A shard: one task that owns a share of all connections, and the rooms that they are in.
//!
//! What happens in a document reaches the shard once, and the shard writes the same bytes to each of its members' sockets.
//! Nothing in a shard is shared or locked: the rest of the world puts orders and wake-ups into its inbox.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use slab::Slab;
use tokio::time::{Interval, MissedTickBehavior};

use crate::connection::Connection;
use crate::frame_writer::FrameWriter;
use crate::room::{RoomEvent, RoomId, Rooms};
use crate::run_queue::{TaskId, Wakeup};
use crate::shard_context::{ShardContext, ShardDeps};
use crate::shard_queue::{NewConnection, ShardQueue, ShardRequest};
use crate::timer_wheel::{Tick, TimerWheel};

/// Connections and members that are dealt with before other tasks of the runtime get their turn.
const BUDGET: usize = 128;
/// The most messages that are written to the members of a room together.
const MAX_BATCH: usize = 64;
/// What is read from a socket at once.
const READ_BYTES: usize = 64 * 1024;

pub(crate) struct Shard {
    deps: Arc<ShardDeps>,
    index: usize,
    run_queue: Arc<ShardQueue>,
    connections: Slab<Box<Connection>>,
    rooms: Rooms,
    timers: TimerWheel,
    ticks: Pin<Box<Interval>>,
    writer: FrameWriter,
    scratch: Box<[u8]>,
    /// What is to be dealt with now, the last first; and the vector that takes its place.
    ready: Vec<TaskId>,
    due: Vec<(Tick, usize)>,
    /// Set while the server stops: who comes now is told to come back at once.
    draining: bool,
    ending: bool,
}

impl Shard {
    pub(crate) fn new(deps: Arc<ShardDeps>, index: usize, run_queue: Arc<ShardQueue>) -> Self {
        let tick = deps.config.tick.max(Duration::from_millis(1));
        let mut ticks = Box::pin(tokio::time::interval(tick));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            timers: TimerWheel::new(tick, deps.parts.clock.monotonic()),
            rooms: Rooms::new(Arc::clone(&run_queue), Arc::clone(&deps.parts.clock)),
            deps,
            index,
            connections: Slab::new(),
            run_queue,
            ticks,
            writer: FrameWriter::default(),
            scratch: vec![0; READ_BYTES].into(),
            ready: Vec::new(),
            due: Vec::new(),
            draining: false,
            ending: false,
        }
    }

    /// Runs until it was told to end and has no connection any more.
    pub(crate) async fn run(mut self) {
        // The shard sees to it by itself that other tasks get their turn.
        tokio::task::unconstrained(std::future::poll_fn(|cx| self.poll(cx))).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.run_queue.register(cx.waker());
        self.tick(cx);
        if self.ready.is_empty() {
            let requests = self.run_queue.take(&mut self.ready);
            // Who woke first is dealt with first.
            self.ready.reverse();
            for request in requests {
                self.handle(request);
            }
        }
        let mut budget = BUDGET;
        while budget > 0 {
            match self.ready.pop() {
                Some(TaskId::Connection(key)) => {
                    budget -= 1;
                    self.poll_connection(key);
                }
                Some(TaskId::Room(room)) => budget = self.poll_room(room, budget),
                None => break,
            }
        }
        let counters = &self.deps.counters;
        counters.connections_open.set(self.connections.len() as u64);
        counters.rooms_open.set(self.rooms.len() as u64);
        if self.ending && self.connections.is_empty() {
            return Poll::Ready(());
        }
        if !self.ready.is_empty() || !self.run_queue.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Looks at the connections whose moment has come.
    fn tick(&mut self, cx: &mut Context<'_>) {
        while self.ticks.as_mut().poll_tick(cx).is_ready() {
            let mut due = std::mem::take(&mut self.due);
            self.timers.advance(self.deps.parts.clock.monotonic(), &mut due);
            for (tick, key) in due.drain(..) {
                if let Some(connection) = self.connections.get_mut(key)
                    && connection.scheduled == tick
                {
                    connection.scheduled = Tick::MAX;
                    self.ready.insert(0, TaskId::Connection(key));
                }
            }
            self.due = due;
        }
    }

    fn handle(&mut self, request: ShardRequest) {
        match request {
            ShardRequest::Serve(new_connection) => self.serve(*new_connection),
            ShardRequest::Drain { over } => self.drain(over),
            ShardRequest::End => self.ending = true,
            ShardRequest::Members(document, answer) => {
                let members = self.connections.iter().filter_map(|(_, one)| one.member_of(&document));
                // Who asked may have gone.
                let _ = answer.send(members.collect());
            }
            ShardRequest::Connections(wanted, answer) => {
                let all = self.connections.iter().map(|(_, one)| one);
                let wanted = all.filter(|one| wanted.is_none_or(|id| one.id() == id));
                let _ = answer.send(wanted.map(|one| one.stats(self.index)).collect());
            }
        }
    }

    fn serve(&mut self, new_connection: NewConnection) {
        self.deps.counters.connections.increment();
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let wakeup = Wakeup::new(&self.run_queue, TaskId::Connection(key));
        // Boxed, since a growing slab would move them all and keep room for twice as many.
        entry.insert(Box::new(Connection::new(new_connection, Arc::clone(&self.deps), wakeup)));
        if self.draining {
            self.drain_one(key, Duration::ZERO, Duration::ZERO);
        }
        self.ready.push(TaskId::Connection(key));
    }

    fn poll_connection(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let now = self.deps.parts.clock.monotonic();
        let mut shard = ShardContext { rooms: &mut self.rooms, writer: &mut self.writer, now, key };
        let polled = catch_unwind(AssertUnwindSafe(|| connection.poll(&mut shard, &mut self.scratch)));
        self.writer.clear();
        match polled {
            Ok(true) => self.schedule(key),
            Ok(false) => self.remove(key),
            Err(_) => {
                tracing::error!("a connection ended by a panic, which is a bug; the others go on");
                self.deps.counters.panicked.increment();
                self.remove(key);
            }
        }
    }

    /// Sees to it that the wheel looks at the connection when its next time-out may be over.
    fn schedule(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let tick = self.timers.at(connection.deadline());
        if tick < connection.scheduled {
            connection.scheduled = tick;
            self.timers.insert(key, tick);
        }
    }

    fn remove(&mut self, key: usize) {
        let Some(mut connection) = self.connections.try_remove(key) else { return };
        let now = self.deps.parts.clock.monotonic();
        connection.leave_all_rooms(&mut ShardContext {
            rooms: &mut self.rooms,
            writer: &mut self.writer,
            now,
            key,
        });
    }

    /// Goes on with a room, for at most `budget` members. Returns what is left of the budget.
    fn poll_room(&mut self, id: RoomId, mut budget: usize) -> usize {
        let now = self.deps.parts.clock.monotonic();
        let Some(room) = self.rooms.get_mut(id) else { return budget };
        let waker = room.clear_wakeup();
        let cx = &mut Context::from_waker(&waker);
        while budget > 0 {
            budget -= 1;
            let Some(room) = self.rooms.get_mut(id) else { return budget };
            let max_bytes = self.deps.config.write_buffer_bytes;
            let step = catch_unwind(AssertUnwindSafe(|| room.next_event(cx, MAX_BATCH, max_bytes)));
            match step {
                Ok(RoomEvent::Deliver(key)) => {
                    if let Some(connection) = self.connections.get_mut(key) {
                        let mut shard =
                            ShardContext { rooms: &mut self.rooms, writer: &mut self.writer, now, key };
                        connection.deliver(id, &mut shard);
                    }
                }
                Ok(RoomEvent::BatchSent(woken_at)) => {
                    let now = self.deps.parts.clock.monotonic();
                    self.deps.broadcasts.record(now, now.since(woken_at));
                }
                Ok(RoomEvent::Idle(rejoin_waiters)) => {
                    self.ready.extend(rejoin_waiters.into_iter().map(TaskId::Connection));
                    return budget;
                }
                Ok(RoomEvent::Ended(members, cause)) => {
                    self.end_room(id, &members, cause.as_ref());
                    return budget;
                }
                Err(_) => {
                    tracing::error!("a room ended by a panic, which is a bug; the others go on");
                    self.deps.counters.panicked.increment();
                    let members = self.rooms.get_mut(id).map(|room| room.members()).unwrap_or_default();
                    self.end_room(id, &members, None);
                    return budget;
                }
            }
        }
        self.ready.insert(0, TaskId::Room(id));
        budget
    }

    fn end_room(&mut self, id: RoomId, members: &[usize], cause: Option<&relay_core::StreamError>) {
        let now = self.deps.parts.clock.monotonic();
        for &key in members {
            if let Some(connection) = self.connections.get_mut(key) {
                let mut shard = ShardContext { rooms: &mut self.rooms, writer: &mut self.writer, now, key };
                connection.room_ended(id, cause, &mut shard);
            }
        }
        self.rooms.remove(id);
    }

    fn drain(&mut self, over: Duration) {
        self.draining = true;
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).max(1);
        for (place, key) in (0..).zip(keys) {
            let wait = over / count * place;
            self.drain_one(key, wait, over);
            self.ready.push(TaskId::Connection(key));
        }
    }

    fn drain_one(&mut self, key: usize, wait: Duration, over: Duration) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let now = self.deps.parts.clock.monotonic();
        let mut shard = ShardContext { rooms: &mut self.rooms, writer: &mut self.writer, now, key };
        // After the last was closed, and each at another moment.
        let return_after = over.saturating_add(wait);
        connection.begin_draining(now + wait, return_after, &mut shard);
    }
}
