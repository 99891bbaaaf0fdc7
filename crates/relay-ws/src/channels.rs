//! The topics that one connection has joined, as a state machine: it is handed a message and says what has to be
//! done. It does no I/O; the connection does what it says.

use std::sync::Arc;
use std::task::{Context, Poll};

use relay_core::{CheckedDraft, Commands, DocumentId, SessionId};

use crate::codec::{self, ClientMessage};
use crate::document_stream::{DocumentStream, StreamItem};
use crate::error_reply::ErrorReply;
use crate::request::{self, Identity, JoinRequest};
use crate::room::{RoomId, RoomKey, Rooms};

/// A topic that was joined, and the `ref` of that join. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelRef {
    pub(crate) document: DocumentId,
    pub(crate) join_ref: Option<Arc<str>>,
}

impl ChannelRef {
    /// Its topic.
    pub(crate) fn topic(&self) -> String {
        codec::topic(&self.document)
    }
}

/// One topic of a connection.
pub(crate) struct Channel {
    pub(crate) channel_ref: ChannelRef,
    /// Whether the member is shown to others, and told of them.
    pub(crate) presence: bool,
    /// The session that the member is part of.
    session: Option<SessionId>,
    pub(crate) delivery: Delivery,
}

/// Where a channel gets its events from.
pub(crate) enum Delivery {
    /// The join is being made.
    Joining,
    /// From a place of its own: it is catching up.
    CatchingUp(DocumentStream),
    /// From the room.
    Room(RoomId),
}

/// What has to be done for a message.
pub(crate) enum Action {
    /// Reply to a heartbeat.
    Heartbeat,
    /// Subscribe to the document, then reply. `replaced` is the channel that this join closes.
    Join { channel: ChannelRef, request: Box<JoinRequest>, replaced: Option<Channel> },
    /// Reply ok, then close the channel if there was one.
    Leave { closed: Option<Channel> },
    /// Publish the draft and reply how it went.
    Publish { channel: ChannelRef, draft: Box<CheckedDraft> },
    /// Ask whoever knows of participants, and reply what they say.
    Request { channel: ChannelRef },
    /// Reply with an error.
    Refuse(ErrorReply),
    /// Nothing: the message belongs to a channel that was closed while it was on its way.
    Ignore,
    /// Keep the message until the join of its topic is made, and take no other before.
    Defer,
}

/// The topics of one connection.
#[derive(Default)]
pub(crate) struct Channels {
    list: Vec<Channel>,
    /// Whose turn it is to deliver.
    next_index: usize,
}

impl Channels {
    /// What `message` asks for. Closed and new channels are taken note of here.
    pub(crate) fn receive(
        &mut self,
        message: &ClientMessage<'_>,
        identity: &Identity,
        commands: &Commands,
        max_topics: usize,
    ) -> Action {
        if message.topic == "phoenix" {
            return match message.event.as_ref() {
                "heartbeat" => Action::Heartbeat,
                _ => Action::Refuse(ErrorReply::UNMATCHED_TOPIC),
            };
        }
        let id = codec::document_id(&message.topic);
        let joined = self.list.iter().position(|channel| Some(channel.channel_ref.document.as_str()) == id);
        if joined.is_some_and(|at| matches!(self.list[at].delivery, Delivery::Joining)) {
            return Action::Defer;
        }
        match (message.event.as_ref(), joined) {
            ("phx_join", joined) => self.join(message, joined, max_topics),
            ("phx_leave", None) => Action::Leave { closed: None },
            (_, None) => Action::Refuse(ErrorReply::UNMATCHED_TOPIC),
            (_, Some(at)) if self.list[at].channel_ref.join_ref.as_deref() != message.join_ref.as_deref() => {
                Action::Ignore
            }
            ("phx_leave", Some(at)) => Action::Leave { closed: Some(self.list.remove(at)) },
            (_, Some(at)) => {
                let channel = &self.list[at];
                if commands.contains(&message.event) {
                    let channel = channel.presence.then(|| channel.channel_ref.clone());
                    return channel.map_or(Action::Refuse(ErrorReply::no_participant()), |channel| {
                        Action::Request { channel }
                    });
                }
                match request::draft(message, &channel.channel_ref.document, identity, channel.session) {
                    Ok(draft) => {
                        Action::Publish { channel: channel.channel_ref.clone(), draft: Box::new(draft) }
                    }
                    Err(refusal) => Action::Refuse(refusal),
                }
            }
        }
    }

    fn join(&mut self, message: &ClientMessage<'_>, joined: Option<usize>, max_topics: usize) -> Action {
        let wanted = request::document(&message.topic)
            .and_then(|document| Ok((document, request::join_request(message.payload)?)));
        let (document, request) = match wanted {
            Ok(wanted) => wanted,
            Err(refusal) => return Action::Refuse(refusal),
        };
        if joined.is_none() && self.list.len() >= max_topics {
            return Action::Refuse(ErrorReply::too_many_channels(max_topics));
        }
        let replaced = joined.map(|at| self.list.remove(at));
        let channel_ref = ChannelRef { document, join_ref: message.join_ref.as_deref().map(Arc::from) };
        // Most connections join one topic, and thousands of them should not pay for room that they do not use.
        self.list.reserve_exact(1);
        self.list.push(Channel {
            channel_ref: channel_ref.clone(),
            presence: request.presence,
            session: None,
            delivery: Delivery::Joining,
        });
        Action::Join { channel: channel_ref, request: Box::new(request), replaced }
    }

    /// The join of `name` was made: its channel goes on from `feed`, as part of `session`.
    pub(crate) fn join_succeeded(
        &mut self,
        channel_ref: &ChannelRef,
        session: Option<SessionId>,
        stream: DocumentStream,
    ) {
        if let Some(channel) = self.list.iter_mut().find(|one| one.channel_ref == *channel_ref) {
            channel.session = session;
            channel.delivery = Delivery::CatchingUp(stream);
        }
    }

    /// The join of `name` failed.
    pub(crate) fn join_failed(&mut self, channel_ref: &ChannelRef) {
        self.list.retain(|one| one.channel_ref != *channel_ref);
    }

    /// The next thing that a channel with a place of its own has, each in its turn. A channel that has nothing more is
    /// offered to its room, which it enters if it is level.
    pub(crate) fn poll_catch_up(
        &mut self,
        cx: &mut Context<'_>,
        rooms: &mut Rooms,
        connection: usize,
    ) -> Option<(usize, StreamItem)> {
        for step in 0..self.list.len() {
            let at = (self.next_index + step) % self.list.len();
            let channel = &mut self.list[at];
            let Delivery::CatchingUp(stream) = &mut channel.delivery else { continue };
            if let Poll::Ready(item) = stream.poll_next(cx) {
                self.next_index = at + 1;
                return Some((at, item));
            }
            let Delivery::CatchingUp(stream) = std::mem::replace(&mut channel.delivery, Delivery::Joining)
            else {
                continue;
            };
            let key = RoomKey { document: channel.channel_ref.document.clone(), presence: channel.presence };
            channel.delivery = match rooms.enter(&key, connection, stream) {
                Ok(room) => {
                    channel.channel_ref.document = rooms.document(room).clone();
                    Delivery::Room(room)
                }
                Err(stream) => Delivery::CatchingUp(stream),
            };
        }
        None
    }

    /// The channel at `index`.
    pub(crate) fn at(&self, index: usize) -> &Channel {
        &self.list[index]
    }

    /// Takes out the channel at `index`, whose feed is over.
    pub(crate) fn remove(&mut self, index: usize) -> Channel {
        self.list.remove(index)
    }

    /// The index of the channel that is in `room`.
    pub(crate) fn in_room(&self, room: RoomId) -> Option<usize> {
        self.list.iter().position(|channel| matches!(channel.delivery, Delivery::Room(id) if id == room))
    }

    /// The channel in `room` goes on from a place of its own.
    pub(crate) fn left_room(&mut self, room: RoomId, stream: DocumentStream) {
        if let Some(index) = self.in_room(room) {
            self.list[index].delivery = Delivery::CatchingUp(stream);
        }
    }

    /// The joined channels.
    pub(crate) fn joined(&self) -> impl Iterator<Item = &Channel> {
        self.list.iter().filter(|channel| !matches!(channel.delivery, Delivery::Joining))
    }

    /// Takes out all of them.
    pub(crate) fn drain(&mut self) -> Vec<Channel> {
        std::mem::take(&mut self.list)
    }
}
