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

use crate::batch::Batch;
use crate::codec;
use crate::feed::{Feed, Item};
use crate::framing::Agreement;
use crate::inbox::{Target, Wakeup};
use crate::pen::Pen;
use crate::shard::{ShardInbox, ShardWakeup};

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
    feed: Feed,
    /// By connection; one who leaves while a batch is being sent leaves a hole until it is sent.
    members: Vec<Option<usize>>,
    /// Members that are no holes.
    live: usize,
    sending: Option<Sending>,
    over: Option<Over>,
    /// Connections that wanted to come in and were not level.
    seekers: Vec<usize>,
    wakeup: Arc<ShardWakeup>,
    /// When the room was woken for what it has not collected yet.
    woken_at: Option<Monotonic>,
}

/// What the document gives is over, with the cause if there is one but the end of the source.
struct Over(Option<StreamError>);

/// A batch on its way. Who comes in meanwhile stands at `end` or behind, and has had it already.
struct Sending {
    batch: Batch,
    next: usize,
    end: usize,
    /// When the room was woken for the first of it, if that is known.
    woken_at: Option<Monotonic>,
}

/// How a room goes on.
pub(crate) enum Step {
    /// Give the batch to this connection; see [`Room::batch`].
    Deliver(usize),
    /// Every member was given the batch, whose first event came at this monotonic time.
    Sent(Monotonic),
    /// Nothing is left to do until the room is woken. These connections may find that they are level now.
    Settled(Vec<usize>),
    /// What the document gives is over, for all these connections.
    Over(Vec<usize>, Option<StreamError>),
}

impl Room {
    /// The shard begins to deal with the room: what wakes it from now on is not missed.
    pub(crate) fn begin(&self) -> Waker {
        self.wakeup.begin();
        Waker::from(Arc::clone(&self.wakeup))
    }

    /// Who is in it.
    pub(crate) fn members(&self) -> Vec<usize> {
        self.members.iter().flatten().copied().collect()
    }

    /// What is on its way: how many messages, and their bytes for a member that agreed to this.
    pub(crate) fn batch(&mut self, agreed: Option<Agreement>, pen: &mut Pen) -> Option<(u64, Bytes)> {
        let batch = &mut self.sending.as_mut()?.batch;
        Some((batch.messages(), batch.bytes(agreed, pen)))
    }

    /// What is to be done next. A batch takes at most `max_messages`, and ends with the one that makes it reach `max_bytes`.
    pub(crate) fn step(&mut self, cx: &mut Context<'_>, max_messages: usize, max_bytes: usize) -> Step {
        loop {
            if let Some(sending) = &mut self.sending {
                while sending.next < sending.end {
                    sending.next += 1;
                    if let Some(connection) = self.members[sending.next - 1] {
                        return Step::Deliver(connection);
                    }
                }
                let woken_at = sending.woken_at;
                self.sending = None;
                self.members.retain(Option::is_some);
                if let Some(woken_at) = woken_at {
                    return Step::Sent(woken_at);
                }
            }
            if let Some(Over(cause)) = self.over.take() {
                return Step::Over(self.members(), cause);
            }
            if !self.collect(cx, max_messages, max_bytes) {
                return Step::Settled(std::mem::take(&mut self.seekers));
            }
        }
    }

    /// Makes a batch of what the document has given meanwhile. Returns whether there was anything.
    fn collect(&mut self, cx: &mut Context<'_>, max_messages: usize, max_bytes: usize) -> bool {
        let (mut frames, mut bytes, mut is_level) = (Vec::new(), 0, false);
        while frames.len() < max_messages && bytes < max_bytes {
            match self.feed.poll_next(cx) {
                Poll::Pending => {
                    is_level = true;
                    break;
                }
                Poll::Ready(Item::Ended(cause)) => {
                    self.over = Some(Over(cause));
                    break;
                }
                Poll::Ready(Item::Event(event)) => frames.push(codec::encode_broadcast(&event)),
                Poll::Ready(Item::Presence(change)) => {
                    frames.push(codec::encode_presence(&self.key.document, &change));
                }
            }
            bytes += frames.last().map_or(0, |frame| frame.bytes().len());
        }
        // What wakes the room from here on is for later batches; what did not fit into this one has waited as long.
        let woken_at = self.wakeup.woken_at().into_iter().chain(self.woken_at.take()).min();
        if !is_level {
            self.woken_at = woken_at;
        }
        if frames.is_empty() {
            return self.over.is_some();
        }
        let batch = Batch::new(frames);
        self.sending = Some(Sending { batch, next: 0, end: self.members.len(), woken_at });
        true
    }
}

/// All rooms of a shard.
pub(crate) struct Rooms {
    list: Slab<Room>,
    by_key: HashMap<RoomKey, RoomId>,
    inbox: Arc<ShardInbox>,
    clock: Arc<dyn Clock>,
}

impl Rooms {
    pub(crate) fn new(inbox: Arc<ShardInbox>, clock: Arc<dyn Clock>) -> Self {
        Self { list: Slab::new(), by_key: HashMap::new(), inbox, clock }
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
    pub(crate) fn enter(&mut self, key: &RoomKey, connection: usize, feed: Feed) -> Result<RoomId, Feed> {
        let Some(&id) = self.by_key.get(key) else {
            let entry = self.list.vacant_entry();
            let id = entry.key();
            let wakeup = Wakeup::timed(&self.inbox, Target::Room(id), Arc::clone(&self.clock));
            // Whatever the feed would have woken before, it is to wake the room now.
            Waker::from(Arc::clone(&wakeup)).wake();
            entry.insert(Room {
                key: key.clone(),
                feed,
                members: vec![Some(connection)],
                live: 1,
                sending: None,
                over: None,
                seekers: Vec::new(),
                wakeup,
                woken_at: None,
            });
            self.by_key.insert(key.clone(), id);
            return Ok(id);
        };
        let room = &mut self.list[id];
        if room.over.is_some() || !room.feed.is_level_with(&feed) {
            // Whichever of the two is behind will be woken by what it has not seen; when the room has, it tells.
            if !room.seekers.contains(&connection) {
                room.seekers.push(connection);
            }
            return Err(feed);
        }
        room.members.push(Some(connection));
        room.live += 1;
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
        room.live -= 1;
        if room.live == 0 {
            self.remove(id);
        }
    }

    /// Takes `connection` out and gives it a place of its own, where the room stands.
    pub(crate) fn detach(&mut self, id: RoomId, connection: usize) -> Option<Feed> {
        let feed = self.list.get(id)?.feed.fork();
        self.leave(id, connection);
        Some(feed)
    }

    /// Ends a room.
    pub(crate) fn remove(&mut self, id: RoomId) {
        if let Some(room) = self.list.try_remove(id) {
            self.by_key.remove(&room.key);
        }
    }
}
