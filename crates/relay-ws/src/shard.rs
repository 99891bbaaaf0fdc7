//! [`Shard`]: one task that owns a share of the connections, and the rooms that they are in.
//!
//! A message of a document reaches the shard once, and the shard writes the same bytes to the socket of each member. The
//! state of a shard is neither shared nor locked. Requests from outside and wake-ups come through its run queue.
//!
//! Calls go one way: the shard calls its rooms and its connections, and a connection calls the rooms. The outcome of a write
//! comes back as a value.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use relay_core::{Monotonic, StreamError};
use slab::Slab;
use tokio::time::{Interval, MissedTickBehavior};

use crate::connection::Connection;
use crate::room::{BatchWrite, RoomEvent, RoomId, Rooms};
use crate::run_queue::{TaskId, Wakeup};
use crate::shard_context::ShardDeps;
use crate::shard_queue::{NewConnection, ShardQueue, ShardRequest};
use crate::shard_resources::ShardResources;
use crate::timer_wheel::{Tick, TimerWheel};

/// The connections and members that are served before other tasks of the runtime get their turn.
const BUDGET: usize = 128;
/// The most messages in a batch for the members of a room.
const MAX_BATCH_MESSAGES: usize = 64;
/// The bytes that are read from a socket at once.
const READ_BYTES: usize = 64 * 1024;

/// The state of a shard.
pub(crate) struct Shard {
    resources: ShardResources,
    index: usize,
    queue: Arc<ShardQueue>,
    connections: Slab<Box<ConnectionTask>>,
    timers: TimerWheel,
    ticks: Pin<Box<Interval>>,
    scratch: Box<[u8]>,
    /// The tasks to run, in their order. It is swapped with the list in the run queue.
    ready: VecDeque<TaskId>,
    /// The timers of a tick. It is empty between ticks, and keeps its memory.
    due: Vec<(Tick, usize)>,
    /// True while the server stops. The client of a new connection is asked to connect again at once.
    draining: bool,
    /// True when the shard ends with its last connection.
    ending: bool,
    /// True from the first run on.
    has_run: bool,
}

/// A connection with its timer.
struct ConnectionTask {
    connection: Connection,
    /// The tick of the timer that is set; [`Tick::MAX`] without a timer.
    timer: Tick,
}

impl Shard {
    pub(crate) fn new(deps: Arc<ShardDeps>, index: usize, queue: Arc<ShardQueue>) -> Self {
        let tick = deps.config.tick;
        let mut ticks = Box::pin(tokio::time::interval(tick));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let rooms = Rooms::new(Arc::clone(&queue), Arc::clone(&deps.parts.clock));
        Self {
            timers: TimerWheel::new(tick, deps.parts.clock.monotonic()),
            resources: ShardResources::new(deps, rooms),
            index,
            connections: Slab::new(),
            queue,
            ticks,
            scratch: vec![0; READ_BYTES].into(),
            ready: VecDeque::new(),
            due: Vec::new(),
            draining: false,
            ending: false,
            has_run: false,
        }
    }

    /// Runs until the shard was asked to end and its last connection has ended. Run again after a panic, it begins without
    /// connections.
    pub(crate) async fn run(&mut self) {
        if std::mem::replace(&mut self.has_run, true) {
            self.start_over();
        }
        // The shard has a budget of its own instead of the runtime's.
        tokio::task::unconstrained(std::future::poll_fn(|cx| self.poll(cx))).await;
    }

    /// Gives up all connections, since it is not known which of them the panic has damaged. Their clients connect again.
    fn start_over(&mut self) {
        let connections = std::mem::take(&mut self.connections);
        for (key, mut task) in connections {
            // A connection that panics here is left all the same.
            let left = catch_unwind(AssertUnwindSafe(|| {
                self.resources.with_context(key, &mut task.connection, Connection::leave_all_rooms);
            }));
            if left.is_err() {
                self.resources.deps.counters.panicked.increment();
            }
        }
        let fresh = Self::new(Arc::clone(&self.resources.deps), self.index, Arc::clone(&self.queue));
        *self = Self { draining: self.draining, ending: self.ending, has_run: true, ..fresh };
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.queue.register(cx.waker());
        self.tick(cx);
        if self.ready.is_empty() {
            for request in self.queue.take(&mut self.ready) {
                self.handle(request);
            }
        }
        let mut budget = BUDGET;
        while budget > 0 {
            match self.ready.pop_front() {
                Some(TaskId::Connection(key)) => {
                    budget -= 1;
                    self.poll_connection(key);
                }
                Some(TaskId::Room(room)) => budget = self.poll_room(room, budget),
                None => break,
            }
        }
        self.resources.deps.gauges.set(self.connections.len(), self.resources.rooms.len());
        if self.ending && self.connections.is_empty() {
            return Poll::Ready(());
        }
        if !self.ready.is_empty() || !self.queue.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Queues the connections whose deadlines have come.
    fn tick(&mut self, cx: &mut Context<'_>) {
        while self.ticks.as_mut().poll_tick(cx).is_ready() {
            let mut due = std::mem::take(&mut self.due);
            self.timers.advance(self.resources.now(), &mut due);
            for (tick, key) in due.drain(..) {
                if let Some(task) = self.connections.get_mut(key)
                    && task.timer == tick
                {
                    task.timer = Tick::MAX;
                    self.ready.push_back(TaskId::Connection(key));
                }
            }
            self.due = due;
            if self.resources.deps.parts.memory.total().is_over() {
                // Connections that do not read give way.
                let stalled = self.connections.iter().filter(|(_, task)| task.connection.is_stalled());
                self.ready.extend(stalled.map(|(key, _)| TaskId::Connection(key)));
            }
        }
    }

    fn handle(&mut self, request: ShardRequest) {
        match request {
            ShardRequest::Serve(new) => self.serve(*new),
            ShardRequest::Drain { over } => self.drain(over),
            ShardRequest::End => self.ending = true,
            ShardRequest::Members(document, reply) => {
                let members =
                    self.connections.iter().filter_map(|(_, task)| task.connection.member_of(&document));
                // The receiver may be gone.
                let _ = reply.send(members.collect());
            }
            ShardRequest::Connections(wanted, reply) => {
                let all = self.connections.iter().map(|(_, task)| &task.connection);
                let wanted = all.filter(|one| wanted.is_none_or(|id| one.id() == id));
                let _ = reply.send(wanted.map(|one| one.stats(self.index)).collect());
            }
        }
    }

    fn serve(&mut self, new: NewConnection) {
        self.resources.deps.counters.connections.increment();
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let wakeup = Wakeup::new(&self.queue, TaskId::Connection(key));
        // Boxed, since a growing slab moves its values and reserves space for twice as many.
        let connection = Connection::new(new, Arc::clone(&self.resources.deps), wakeup);
        entry.insert(Box::new(ConnectionTask { connection, timer: Tick::MAX }));
        if self.draining {
            self.drain_one(key, Duration::ZERO, Duration::ZERO);
        }
        self.ready.push_front(TaskId::Connection(key));
    }

    fn poll_connection(&mut self, key: usize) {
        let Some(task) = self.connections.get_mut(key) else { return };
        let scratch = &mut self.scratch;
        let polled = self.resources.with_context(key, &mut task.connection, |connection, shard| {
            catch_unwind(AssertUnwindSafe(|| connection.poll(shard, scratch)))
        });
        match polled {
            Ok(Poll::Pending) => self.schedule(key),
            Ok(Poll::Ready(())) => self.remove(key),
            Err(_) => {
                tracing::error!("a connection panicked, which is a defect; it ends, and the others go on");
                self.resources.deps.counters.panicked.increment();
                self.remove(key);
            }
        }
    }

    /// Sets a timer for the connection's next deadline.
    fn schedule(&mut self, key: usize) {
        let Some(task) = self.connections.get_mut(key) else { return };
        let tick = self.timers.at(task.connection.deadline(&self.resources.deps.config));
        if tick < task.timer {
            task.timer = tick;
            self.timers.insert(key, tick);
        }
    }

    fn remove(&mut self, key: usize) {
        let Some(mut task) = self.connections.try_remove(key) else { return };
        self.resources.with_context(key, &mut task.connection, Connection::leave_all_rooms);
    }

    /// Serves a room. Each write to a member costs one of `budget`, and so does each other step. Returns the rest of `budget`.
    fn poll_room(&mut self, id: RoomId, mut budget: usize) -> usize {
        let now = self.resources.now();
        let Some(room) = self.resources.rooms.get_mut(id) else { return budget };
        let waker = room.clear_wakeup();
        let cx = &mut Context::from_waker(&waker);
        while budget > 0 {
            let Some(room) = self.resources.rooms.get_mut(id) else { return budget };
            let max_bytes = self.resources.deps.config.write_buffer_bytes;
            let memory = self.resources.deps.parts.memory.total();
            let event =
                catch_unwind(AssertUnwindSafe(|| room.next_event(cx, MAX_BATCH_MESSAGES, max_bytes, memory)));
            match event {
                Ok(RoomEvent::Batch) => budget -= self.deliver(id, budget, now).max(1),
                Ok(RoomEvent::Idle(waiters)) => {
                    // The waiters run at once, before the room is ahead of them again.
                    for key in waiters {
                        self.ready.push_front(TaskId::Connection(key));
                    }
                    return budget - 1;
                }
                Ok(RoomEvent::Ended(connections, cause)) => {
                    self.end_room(id, &connections, cause.as_ref());
                    return budget - 1;
                }
                Err(_) => {
                    tracing::error!(
                        "a room panicked, which is a defect; the room ends, and the others go on"
                    );
                    self.resources.deps.counters.panicked.increment();
                    let connections = room.connections();
                    self.end_room(id, &connections, None);
                    return budget - 1;
                }
            }
        }
        self.ready.push_back(TaskId::Room(id));
        budget
    }

    /// Delivers the batch of a room to at most `max_members`. Returns their number.
    fn deliver(&mut self, id: RoomId, max_members: usize, now: Monotonic) -> usize {
        let Self { connections, resources, .. } = self;
        let ShardResources { deps, rooms, deflater, .. } = resources;
        let delivery = rooms.deliver(id, max_members, |key, batch| match connections.get_mut(key) {
            Some(task) => task.connection.write_batch(batch, deflater, deps, now),
            None => BatchWrite::Done,
        });
        for (key, stream) in delivery.left {
            if let Some(task) = self.connections.get_mut(key) {
                task.connection.left_room(id, stream);
            }
        }
        if let Some(woken_at) = delivery.woken_at {
            let now = self.resources.now();
            self.resources.deps.broadcasts.record(now, now.since(woken_at));
        }
        delivery.members
    }

    /// Ends a room, and the joins of its members.
    fn end_room(&mut self, id: RoomId, connections: &[usize], cause: Option<&StreamError>) {
        self.resources.rooms.remove(id);
        for &key in connections {
            if let Some(task) = self.connections.get_mut(key) {
                self.resources.with_context(key, &mut task.connection, |connection, shard| {
                    connection.room_ended(id, cause, shard);
                });
            }
        }
    }

    /// Closes all connections, spread over the time `over`.
    fn drain(&mut self, over: Duration) {
        self.draining = true;
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).max(1);
        for (index, key) in (0..).zip(keys) {
            let wait = over / count * index;
            self.drain_one(key, wait, over);
            self.ready.push_front(TaskId::Connection(key));
        }
    }

    /// Closes one connection after `wait`.
    fn drain_one(&mut self, key: usize, wait: Duration, over: Duration) {
        let Some(task) = self.connections.get_mut(key) else { return };
        // Clients return after the last connection is closed, each at another moment.
        let return_after = over.saturating_add(wait);
        self.resources.with_context(key, &mut task.connection, |connection, shard| {
            connection.begin_draining(shard.now + wait, return_after, shard);
        });
    }
}
