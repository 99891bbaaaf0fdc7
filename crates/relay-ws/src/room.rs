//! A shard's rooms: for each document one place in what it gives, and the members that have got everything up to there.
//!
//! A member is in a room only while its socket takes what it is given. One whose socket is full leaves the room with a
//! place of its own, forked where the room stands, reads on from there at its own pace, and comes back when it is level
//! again. So nobody has a queue, and nobody waits for anybody.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use relay_core::{Clock, DocumentId, Monotonic, StreamError};
use slab::Slab;

use crate::codec;
use crate::document_stream::{DocumentStream, StreamItem};
use crate::frame_batch::FrameBatch;
use crate::frame_writer::FrameWriter;
use crate::framing::DeflateParams;
use crate::run_queue::{TaskId, Wakeup};
use crate::shard_queue::{ShardQueue, ShardWakeup};

/// What distinguishes rooms: the document, and whether its members want to know who is there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RoomKey {
    pub(crate) document: DocumentId,
    pub(crate) presence: bool,
}

/// A room's key in its shard.
pub(crate) type RoomId = usize;

/// One room.
pub(crate) struct Room {
    key: RoomKey,
    stream: DocumentStream,
    /// By connection; one who leaves while a batch is being sent leaves a hole until it is sent.
    members: Vec<Option<usize>>,
    /// Members that are no holes.
    member_count: usize,
    sending: Option<Sending>,
    ended: Option<Ended>,
    /// Connections that wanted to come in and were not level.
    rejoin_waiters: Vec<usize>,
    wakeup: Arc<ShardWakeup>,
    /// When the room was woken for what it has not collected yet.
    woken_at: Option<Monotonic>,
}

/// What the document gives is over, with the cause if there is one but the end of the source.
struct Ended(Option<StreamError>);

/// A batch on its way. Who comes in meanwhile stands at `end` or behind, and has had it already.
struct Sending {
    batch: FrameBatch,
    next: usize,
    end: usize,
    /// When the room was woken for the first of it, if that is known.
    woken_at: Option<Monotonic>,
}

/// How a room goes on.
pub(crate) enum RoomEvent {
    /// Give the batch to this connection; see [`Room::batch`].
    Deliver(usize),
    /// Every member was given the batch, whose first event came at this monotonic time.
    BatchSent(Monotonic),
    /// Nothing is left to do until the room is woken. These connections may find that they are level now.
    Idle(Vec<usize>),
    /// What the document gives is over, for all these connections.
    Ended(Vec<usize>, Option<StreamError>),
}

impl Room {
    /// The shard begins to deal with the room: what wakes it from now on is not missed.
    pub(crate) fn clear_wakeup(&self) -> Waker {
        self.wakeup.clear();
        Waker::from(Arc::clone(&self.wakeup))
    }

    /// Who is in it.
    pub(crate) fn members(&self) -> Vec<usize> {
        self.members.iter().flatten().copied().collect()
    }

    /// What is on its way: how many messages, and their bytes for a member that agreed to this.
    pub(crate) fn batch(
        &mut self,
        deflate: Option<DeflateParams>,
        writer: &mut FrameWriter,
    ) -> Option<(u64, Bytes)> {
        let batch = &mut self.sending.as_mut()?.batch;
        Some((batch.messages(), batch.bytes(deflate, writer)))
    }

    /// What is to be done next. A batch takes at most `max_messages`, and ends with the one that makes it reach `max_bytes`.
    pub(crate) fn next_event(
        &mut self,
        cx: &mut Context<'_>,
        max_messages: usize,
        max_bytes: usize,
    ) -> RoomEvent {
        loop {
            if let Some(sending) = &mut self.sending {
                while sending.next < sending.end {
                    sending.next += 1;
                    if let Some(connection) = self.members[sending.next - 1] {
                        return RoomEvent::Deliver(connection);
                    }
                }
                let woken_at = sending.woken_at;
                self.sending = None;
                self.members.retain(Option::is_some);
                if let Some(woken_at) = woken_at {
                    return RoomEvent::BatchSent(woken_at);
                }
            }
            if let Some(Ended(cause)) = self.ended.take() {
                return RoomEvent::Ended(self.members(), cause);
            }
            if !self.fill_batch(cx, max_messages, max_bytes) {
                return RoomEvent::Idle(std::mem::take(&mut self.rejoin_waiters));
            }
        }
    }

    /// Makes a batch of what the document has given meanwhile. Returns whether there was anything.
    fn fill_batch(&mut self, cx: &mut Context<'_>, max_messages: usize, max_bytes: usize) -> bool {
        let (mut frames, mut bytes, mut caught_up) = (Vec::new(), 0, false);
        while frames.len() < max_messages && bytes < max_bytes {
            match self.stream.poll_next(cx) {
                Poll::Pending => {
                    caught_up = true;
                    break;
                }
                Poll::Ready(StreamItem::Ended(cause)) => {
                    self.ended = Some(Ended(cause));
                    break;
                }
                Poll::Ready(StreamItem::Event(event)) => frames.push(codec::encode_broadcast(&event)),
                Poll::Ready(StreamItem::Presence(change)) => {
                    frames.push(codec::encode_presence(&self.key.document, &change));
                }
            }
            bytes += frames.last().map_or(0, |frame| frame.bytes().len());
        }
        // What wakes the room from here on is for later batches; what did not fit into this one has waited as long.
        let woken_at = self.wakeup.woken_at().into_iter().chain(self.woken_at.take()).min();
        if !caught_up {
            self.woken_at = woken_at;
        }
        if frames.is_empty() {
            return self.ended.is_some();
        }
        let batch = FrameBatch::new(frames);
        self.sending = Some(Sending { batch, next: 0, end: self.members.len(), woken_at });
        true
    }
}

/// All rooms of a shard.
pub(crate) struct Rooms {
    list: Slab<Room>,
    by_key: HashMap<RoomKey, RoomId>,
    run_queue: Arc<ShardQueue>,
    clock: Arc<dyn Clock>,
}

impl Rooms {
    pub(crate) fn new(run_queue: Arc<ShardQueue>, clock: Arc<dyn Clock>) -> Self {
        Self { list: Slab::new(), by_key: HashMap::new(), run_queue, clock }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn get_mut(&mut self, id: RoomId) -> Option<&mut Room> {
        self.list.get_mut(id)
    }

    /// Lets `connection` in, whose own place in the document is `feed`, if that is level with the room's. If there is no
    /// room yet, `feed` becomes the room's. If it is not level, the feed comes back, and the connection is told when it
    /// is worth trying again.
    pub(crate) fn enter(
        &mut self,
        key: &RoomKey,
        connection: usize,
        stream: DocumentStream,
    ) -> Result<RoomId, DocumentStream> {
        let Some(&id) = self.by_key.get(key) else {
            let entry = self.list.vacant_entry();
            let id = entry.key();
            let wakeup = Wakeup::timed(&self.run_queue, TaskId::Room(id), Arc::clone(&self.clock));
            // Whatever the feed would have woken before, it is to wake the room now.
            Waker::from(Arc::clone(&wakeup)).wake();
            entry.insert(Room {
                key: key.clone(),
                stream,
                members: vec![Some(connection)],
                member_count: 1,
                sending: None,
                ended: None,
                rejoin_waiters: Vec::new(),
                wakeup,
                woken_at: None,
            });
            self.by_key.insert(key.clone(), id);
            return Ok(id);
        };
        let room = &mut self.list[id];
        if room.ended.is_some() || !room.stream.is_caught_up_with(&stream) {
            // Whichever of the two is behind will be woken by what it has not seen; when the room has, it tells.
            if !room.rejoin_waiters.contains(&connection) {
                room.rejoin_waiters.push(connection);
            }
            return Err(stream);
        }
        room.members.push(Some(connection));
        room.member_count += 1;
        Ok(id)
    }

    /// The document's name as the room has it, so that its members can share it.
    pub(crate) fn document(&self, id: RoomId) -> &DocumentId {
        &self.list[id].key.document
    }

    /// Takes `connection` out. The last one's leaving ends the room.
    pub(crate) fn leave(&mut self, id: RoomId, connection: usize) {
        let Some(room) = self.list.get_mut(id) else { return };
        let Some(at) = room.members.iter().position(|member| *member == Some(connection)) else { return };
        if room.sending.is_some() {
            room.members[at] = None;
        } else {
            room.members.swap_remove(at);
        }
        room.member_count -= 1;
        if room.member_count == 0 {
            self.remove(id);
        }
    }

    /// Takes `connection` out and gives it a place of its own, where the room stands.
    pub(crate) fn detach(&mut self, id: RoomId, connection: usize) -> Option<DocumentStream> {
        let stream = self.list.get(id)?.stream.fork();
        self.leave(id, connection);
        Some(stream)
    }

    /// Ends a room.
    pub(crate) fn remove(&mut self, id: RoomId) {
        if let Some(room) = self.list.try_remove(id) {
            self.by_key.remove(&room.key);
        }
    }
}
