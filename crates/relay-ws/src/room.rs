//! [`Rooms`]: the rooms of a shard. A room is one position in the stream of a document, with the members that have every
//! item before it.
//!
//! A member is in a room only while its socket takes every batch. When the socket is full, the member leaves the room with a
//! stream of its own, forked at the room's position. It reads on from there at its own pace, and enters the room again when it
//! has caught up. So no member has a queue of events, and no member waits for another.
//!
//! When the stream ends, the members are told one after the other, in as many turns as that takes. New members open another
//! room meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use relay_core::{Clock, DocumentId, ErrorCode, MemoryShare, Monotonic};
use slab::Slab;

use crate::codec;
use crate::document_stream::{DocumentStream, StreamItem};
use crate::frame_batch::FrameBatch;
use crate::member_list::{MemberId, MemberList};
use crate::refusal;
use crate::run_queue::{TaskId, Wakeup};
use crate::schedule::work_of;
use crate::shard_queue::{ShardQueue, ShardWakeup};

/// The identity of a room in its shard. Members with and without the messages of presence have two rooms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RoomKey {
    pub(crate) document: DocumentId,
    /// True when the members get the messages of presence.
    pub(crate) presence: bool,
}

/// The key of a room in its shard.
pub(crate) type RoomId = usize;

/// A connection's membership in a room of its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomMember {
    pub(crate) room: RoomId,
    id: MemberId,
}

/// One room.
pub(crate) struct Room {
    id: RoomId,
    key: RoomKey,
    stream: DocumentStream,
    members: MemberList,
    sending: Option<Sending>,
    /// The reason to tell the members once the stream has ended.
    ended: Option<ErrorCode>,
    /// The connections that wait to enter, since they had not caught up when they tried. They try again when the room has
    /// delivered its items.
    rejoin_waiters: BTreeSet<usize>,
    /// Those that tried then, and did not enter. They wait for the room's next item.
    tried: BTreeSet<usize>,
    wakeup: Arc<ShardWakeup>,
    /// The moment of the wake-up for items that are still in the stream.
    woken_at: Option<Monotonic>,
}

/// A batch that is being delivered.
struct Sending {
    batch: FrameBatch,
    /// The index of the next slot in the list of members.
    next: usize,
    /// The end of the slots whose members need the batch. Members in later slots entered with the batch already read.
    end: usize,
    /// The moment of the wake-up for the first message of the batch, if it is known.
    woken_at: Option<Monotonic>,
}

/// The next thing to do for a room.
pub(crate) enum RoomEvent {
    /// Deliver the batch; see [`Rooms::deliver`].
    Batch,
    /// Let this connection catch up with the room, and enter.
    Rejoin(usize),
    /// Nothing, until the room is woken.
    Idle,
    /// Tell this connection, which is a member no more, that the stream has ended for this reason.
    MemberEnded(usize, ErrorCode),
    /// Remove the room: its stream has ended, and no member is left to tell.
    Over,
}

/// The outcome of writing a batch to a member's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchWrite {
    /// The socket has the batch, or is broken and its connection ends.
    Done,
    /// The socket is full. The connection keeps the rest of the batch, and leaves the room.
    Partial,
}

/// The outcome of a delivery to some members.
#[derive(Default)]
pub(crate) struct BatchOutcome {
    /// The work of encoding the batch and of writing it to members; see [`crate::schedule`].
    pub(crate) work: u64,
    /// The connections that have left the room, each with a stream of its own at the room's position.
    pub(crate) left: Vec<(usize, DocumentStream)>,
    /// The moment at which the batch's first message woke the room. Set when the batch was written for the last member.
    pub(crate) woken_at: Option<Monotonic>,
}

impl Room {
    /// Clears the room's wake-up and returns its waker. The shard calls this before it polls the room, so that no wake-up is
    /// missed.
    pub(crate) fn clear_wakeup(&self) -> Waker {
        self.wakeup.clear();
        Waker::from(Arc::clone(&self.wakeup))
    }

    /// Lets the room go on behind the other tasks of the shard.
    pub(crate) fn requeue(&self) {
        self.wakeup.requeue();
    }

    /// Ends the stream for `reason`.
    pub(crate) fn end(&mut self, reason: ErrorCode) {
        self.sending = None;
        self.ended = Some(reason);
    }

    fn add(&mut self, connection: usize) -> RoomMember {
        let member = RoomMember { room: self.id, id: self.members.push(connection) };
        self.stream.stand_for(self.members.len());
        member
    }

    /// Returns the next thing to do. A batch has at most `max_messages`, and ends with the message at which it reaches
    /// `max_bytes`. It is charged to `memory`.
    pub(crate) fn next_event(
        &mut self,
        cx: &mut Context<'_>,
        max_messages: usize,
        max_bytes: usize,
        memory: &MemoryShare,
    ) -> RoomEvent {
        if self.sending.is_none() && self.ended.is_none() {
            self.fill_batch(cx, max_messages, max_bytes, memory);
        }
        if self.sending.is_some() {
            return RoomEvent::Batch;
        }
        match self.ended {
            Some(reason) => {
                let next = self.members.pop();
                next.map_or(RoomEvent::Over, |connection| RoomEvent::MemberEnded(connection, reason))
            }
            None => self.next_waiter().map_or(RoomEvent::Idle, RoomEvent::Rejoin),
        }
    }

    /// Returns a connection that has not tried to enter since the room's last item.
    fn next_waiter(&mut self) -> Option<usize> {
        let connection = self.rejoin_waiters.pop_first()?;
        self.tried.insert(connection);
        Some(connection)
    }

    /// Delivers the batch to the next members until the work reaches `max_work`, but at least to one.
    fn deliver(
        &mut self,
        max_work: u64,
        mut write: impl FnMut(usize, &mut FrameBatch) -> BatchWrite,
    ) -> BatchOutcome {
        let mut delivery = BatchOutcome::default();
        let Some(sending) = &mut self.sending else { return delivery };
        let write_work = work_of(1, sending.batch.len());
        while sending.next < sending.end && delivery.work < max_work {
            if sending.next == 0 {
                delivery.work += sending.batch.messages();
            }
            sending.next += 1;
            let Some((member, connection)) = self.members.at(sending.next - 1) else { continue };
            delivery.work += write_work;
            // After the last batch there is nothing to read on, so a member that keeps the rest of it may stay.
            if write(connection, &mut sending.batch) == BatchWrite::Partial && self.ended.is_none() {
                self.members.remove(member);
                let mut stream = self.stream.fork();
                // The member is a reader of its own from now on, also while its socket takes nothing.
                stream.stand_for(1);
                delivery.left.push((connection, stream));
            }
        }
        if !delivery.left.is_empty() {
            self.stream.stand_for(self.members.len());
        }
        if sending.next == sending.end {
            delivery.woken_at = sending.woken_at;
            self.sending = None;
            self.members.compact();
        }
        delivery
    }

    /// Makes a batch of the stream's next items, if there are any.
    fn fill_batch(
        &mut self,
        cx: &mut Context<'_>,
        max_messages: usize,
        max_bytes: usize,
        memory: &MemoryShare,
    ) {
        let (mut frames, mut bytes, mut caught_up) = (Vec::new(), 0, false);
        while frames.len() < max_messages && bytes < max_bytes {
            match self.stream.poll_next(cx) {
                Poll::Pending => {
                    caught_up = true;
                    break;
                }
                Poll::Ready(StreamItem::Ended(cause)) => {
                    self.ended = Some(refusal::end_reason(cause.as_ref(), &self.key.document));
                    break;
                }
                Poll::Ready(StreamItem::Event(event)) => frames.push(codec::encode_broadcast(&event)),
                Poll::Ready(StreamItem::Presence(change)) => {
                    frames.push(codec::encode_presence(&self.key.document, &change));
                }
            }
            bytes += frames.last().map_or(0, |frame| frame.bytes().len());
        }
        // Later wake-ups are for later batches. Items that did not fit into this batch keep its moment.
        let woken_at = self.wakeup.take_woken_at().into_iter().chain(self.woken_at.take()).min();
        if !caught_up {
            self.woken_at = woken_at;
        }
        if !frames.is_empty() {
            self.rejoin_waiters.append(&mut self.tried);
            let batch = FrameBatch::new(frames, memory.clone());
            self.sending = Some(Sending { batch, next: 0, end: self.members.slots(), woken_at });
        }
    }
}

/// The rooms of a shard.
pub(crate) struct Rooms {
    list: Slab<Room>,
    by_key: HashMap<RoomKey, RoomId>,
    queue: Arc<ShardQueue>,
    clock: Arc<dyn Clock>,
}

impl Rooms {
    pub(crate) fn new(queue: Arc<ShardQueue>, clock: Arc<dyn Clock>) -> Self {
        Self { list: Slab::new(), by_key: HashMap::new(), queue, clock }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn get_mut(&mut self, id: RoomId) -> Option<&mut Room> {
        self.list.get_mut(id)
    }

    /// Makes `connection` a member, if its `stream` is at the position of the room. If there is no room, a new one reads on
    /// from `stream`.
    ///
    /// # Errors
    /// The stream, when its position is another one. The room lets the connection try again when it has read on.
    pub(crate) fn enter(
        &mut self,
        key: &RoomKey,
        connection: usize,
        stream: DocumentStream,
    ) -> Result<RoomMember, DocumentStream> {
        let open = self.by_key.get(key).filter(|id| self.list[**id].ended.is_none());
        let Some(&id) = open else {
            return Ok(self.open(key, stream).add(connection));
        };
        let room = &mut self.list[id];
        if !room.stream.is_caught_up_with(&stream) {
            // The reader that is behind is woken by the event that it lacks. If that is the room, it lets its waiters enter once
            // it has read the event.
            if !room.tried.contains(&connection) {
                room.rejoin_waiters.insert(connection);
            }
            return Err(stream);
        }
        room.rejoin_waiters.remove(&connection);
        room.tried.remove(&connection);
        // Before the stream of the member is dropped, so that publishers never see one reader less.
        Ok(room.add(connection))
    }

    fn open(&mut self, key: &RoomKey, stream: DocumentStream) -> &mut Room {
        let entry = self.list.vacant_entry();
        let id = entry.key();
        let wakeup = Wakeup::timed(&self.queue, TaskId::Room(id), Arc::clone(&self.clock));
        // The stream has the connection's waker. The room's first poll replaces it by the room's.
        Waker::from(Arc::clone(&wakeup)).wake();
        self.by_key.insert(key.clone(), id);
        entry.insert(Room {
            id,
            key: key.clone(),
            stream,
            members: MemberList::default(),
            sending: None,
            ended: None,
            rejoin_waiters: BTreeSet::new(),
            tried: BTreeSet::new(),
            wakeup,
            woken_at: None,
        })
    }

    /// The identity of the room `id`.
    pub(crate) fn key(&self, id: RoomId) -> Option<&RoomKey> {
        self.list.get(id).map(|room| &room.key)
    }

    /// The id of the room's document. Members take this copy, so that all share its memory.
    pub(crate) fn document(&self, id: RoomId) -> &DocumentId {
        &self.list[id].key.document
    }

    /// Ends a membership. The last one ends the room too.
    pub(crate) fn leave(&mut self, member: RoomMember) {
        let Some(room) = self.list.get_mut(member.room) else { return };
        room.members.remove(member.id);
        if room.members.is_empty() {
            self.remove(member.room);
            return;
        }
        if room.ended.is_none() {
            room.stream.stand_for(room.members.len());
        }
        if room.sending.is_none() {
            room.members.compact();
        }
    }

    /// Delivers the batch of a room to its next members until the work reaches `max_work`. `write` writes the batch to the
    /// connection with the given key. A member whose socket is full leaves the room. The last leave ends the room.
    pub(crate) fn deliver(
        &mut self,
        id: RoomId,
        max_work: u64,
        write: impl FnMut(usize, &mut FrameBatch) -> BatchWrite,
    ) -> BatchOutcome {
        let Some(room) = self.list.get_mut(id) else { return BatchOutcome::default() };
        let mut delivery = room.deliver(max_work, write);
        if room.members.is_empty() {
            // No member is left whose time could be measured.
            delivery.woken_at = None;
            self.remove(id);
        }
        delivery
    }

    /// Ends a room.
    pub(crate) fn remove(&mut self, id: RoomId) {
        if let Some(room) = self.list.try_remove(id)
            && self.by_key.get(&room.key) == Some(&id)
        {
            self.by_key.remove(&room.key);
        }
    }
}
