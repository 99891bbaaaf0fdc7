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

use relay_core::{ErrorCode, Monotonic};
use slab::Slab;
use tokio::time::{Interval, MissedTickBehavior};

use crate::connection::Connection;
use crate::room::{BatchWrite, RoomEvent, RoomId, Rooms};
use crate::run_queue::{TaskId, Wakeup};
use crate::schedule::{Schedule, TURN_WORK};
use crate::shard_context::{ShardContext, ShardDeps};
use crate::shard_queue::{NewConnection, ShardQueue, ShardRequest};
use crate::shard_resources::ShardResources;
use crate::timer_wheel::{Tick, TimerWheel};

/// The most messages in a batch for the members of a room.
const MAX_BATCH_MESSAGES: usize = 64;
/// The bytes that are read from a socket at once.
const READ_BYTES: usize = 64 * 1024;

/// The state of a shard.
pub(crate) struct Shard {
    resources: ShardResources,
    index: usize,
    queue: Arc<ShardQueue>,
    /// The requests that are not handled yet. A panic in one of them leaves the others to the next run.
    requests: VecDeque<ShardRequest>,
    connections: Slab<Box<ConnectionTask>>,
    timers: TimerWheel,
    ticks: Pin<Box<Interval>>,
    scratch: Box<[u8]>,
    schedule: Schedule,
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
            requests: VecDeque::new(),
            ticks,
            scratch: vec![0; READ_BYTES].into(),
            schedule: Schedule::default(),
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
        let requests = std::mem::take(&mut self.requests);
        let fresh = Self::new(Arc::clone(&self.resources.deps), self.index, Arc::clone(&self.queue));
        *self = Self { requests, draining: self.draining, ending: self.ending, has_run: true, ..fresh };
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.queue.register(cx.waker());
        self.tick(cx);
        self.queue.take(self.schedule.begin_run(), &mut self.requests);
        while let Some(request) = self.requests.pop_front() {
            self.handle(request);
        }
        while let Some(task) = self.schedule.next() {
            let work = match task {
                TaskId::Connection(key) => self.poll_connection(key),
                TaskId::Room(room) => self.poll_room(room),
            };
            self.schedule.charge(work);
        }
        self.resources.deps.gauges.set(self.connections.len(), self.resources.rooms.len());
        if self.ending && self.connections.is_empty() {
            return Poll::Ready(());
        }
        if !self.schedule.is_empty() || !self.queue.is_empty() {
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
                    task.connection.requeue();
                }
            }
            self.due = due;
            if self.resources.deps.parts.memory.total().is_over() {
                // Connections that do not read give way.
                let connections = self.connections.iter().map(|(_, task)| &task.connection);
                connections.filter(|one| one.is_stalled()).for_each(Connection::requeue);
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
        connection.requeue();
        entry.insert(Box::new(ConnectionTask { connection, timer: Tick::MAX }));
        if self.draining {
            self.drain_one(key, Duration::ZERO, Duration::ZERO);
        }
    }

    /// Gives a connection its turn. Returns the work that it has done.
    fn poll_connection(&mut self, key: usize) -> u64 {
        let Some(task) = self.connections.get_mut(key) else { return 0 };
        let before = task.connection.work();
        let scratch = &mut self.scratch;
        let polled = self.resources.with_context(key, &mut task.connection, |connection, shard| {
            catch_unwind(AssertUnwindSafe(|| connection.poll(shard, scratch)))
        });
        let work = 1 + task.connection.work() - before;
        match polled {
            Ok(Poll::Pending) => self.schedule(key),
            Ok(Poll::Ready(())) => self.remove(key),
            Err(_) => self.end_panicked(key),
        }
        work
    }

    /// Lets a connection act on behalf of a room, as a part of the room's turn. Returns the work.
    fn act_for_room(&mut self, key: usize, act: impl FnOnce(&mut Connection, &mut ShardContext<'_>)) -> u64 {
        let Some(task) = self.connections.get_mut(key) else { return 1 };
        let before = task.connection.work();
        let acted = self.resources.with_context(key, &mut task.connection, |connection, shard| {
            catch_unwind(AssertUnwindSafe(|| act(connection, shard)))
        });
        let work = 1 + task.connection.work() - before;
        if acted.is_err() {
            self.end_panicked(key);
        }
        work
    }

    fn end_panicked(&mut self, key: usize) {
        tracing::error!("a connection panicked, which is a defect; it ends, and the others go on");
        self.resources.deps.counters.panicked.increment();
        self.remove(key);
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

    /// Gives a room its turn. Returns the work that it has done.
    fn poll_room(&mut self, id: RoomId) -> u64 {
        let now = self.resources.now();
        let Some(room) = self.resources.rooms.get_mut(id) else { return 0 };
        let waker = room.clear_wakeup();
        let cx = &mut Context::from_waker(&waker);
        let mut work = 1;
        while work < TURN_WORK {
            let Some(room) = self.resources.rooms.get_mut(id) else { return work };
            let max_bytes = self.resources.deps.config.write_buffer_bytes;
            let memory = self.resources.deps.parts.memory.total();
            let event =
                catch_unwind(AssertUnwindSafe(|| room.next_event(cx, MAX_BATCH_MESSAGES, max_bytes, memory)));
            match event {
                Ok(RoomEvent::Batch) => work += self.deliver(id, TURN_WORK - work, now),
                // At once, before the room is ahead of the connection again.
                Ok(RoomEvent::Rejoin(key)) => {
                    work += self.act_for_room(key, |connection, shard| connection.rejoin(id, shard));
                }
                Ok(RoomEvent::MemberEnded(key, reason)) => {
                    work +=
                        self.act_for_room(key, |connection, shard| connection.room_ended(id, reason, shard));
                }
                Ok(RoomEvent::Idle) => return work,
                Ok(RoomEvent::Over) => {
                    self.resources.rooms.remove(id);
                    return work;
                }
                Err(_) => {
                    tracing::error!(
                        "a room panicked, which is a defect; the room ends, and the others go on"
                    );
                    self.resources.deps.counters.panicked.increment();
                    work += 1;
                    room.end(ErrorCode::Closed);
                }
            }
        }
        if let Some(room) = self.resources.rooms.get_mut(id) {
            room.requeue();
        }
        work
    }

    /// Delivers the batch of a room to members until the work reaches `max_work`. Returns the work.
    fn deliver(&mut self, id: RoomId, max_work: u64, now: Monotonic) -> u64 {
        let Self { connections, resources, .. } = self;
        let ShardResources { deps, rooms, deflater, .. } = resources;
        let delivery = rooms.deliver(id, max_work, |key, batch| match connections.get_mut(key) {
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
        delivery.work
    }

    /// Closes all connections, spread over the time `over`.
    fn drain(&mut self, over: Duration) {
        self.draining = true;
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).max(1);
        for (index, key) in (0..).zip(keys) {
            let wait = over / count * index;
            self.drain_one(key, wait, over);
        }
    }

    /// Closes one connection after `wait`.
    fn drain_one(&mut self, key: usize, wait: Duration, over: Duration) {
        let Some(task) = self.connections.get_mut(key) else { return };
        // Clients return after the last connection is closed, each at another moment.
        let return_after = over.saturating_add(wait);
        task.connection.begin_draining(self.resources.now() + wait, return_after);
    }
}
