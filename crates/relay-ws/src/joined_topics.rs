//! [`JoinedTopics`]: the state machine of the topics that one connection has joined. It takes a message and returns the
//! action that is due. It does no I/O.
//!
//! Phoenix calls a joined topic a channel, and so do the texts for clients. In the code a channel is a document's ordered
//! stream.

use std::sync::Arc;
use std::task::{Context, Poll};

use relay_core::{CheckedDraft, Commands, DocumentId, DocumentPermit, JsonText, Reservation, SessionId};
use relay_events::ErrorBody;

use crate::codec::{self, ClientMessage, ClientPayload};
use crate::document_stream::{DocumentStream, StreamItem};
use crate::refusal;
use crate::request::{self, Identity, JoinRequest};
use crate::room::{RoomId, RoomKey, RoomMember, Rooms};

/// The document of a joined topic, and the `ref` of the join. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicRef {
    pub(crate) document: DocumentId,
    pub(crate) join_ref: Option<Arc<str>>,
}

impl TopicRef {
    /// The topic's name in messages.
    pub(crate) fn name(&self) -> String {
        codec::topic(&self.document)
    }
}

/// A topic that a connection has joined, or is joining.
pub(crate) struct JoinedTopic {
    pub(crate) id: TopicRef,
    /// True when the member takes part in presence: it is a participant, and gets the changes of participants.
    pub(crate) presence: bool,
    /// The document's session at the join. `None` for members that take no part in presence.
    session: Option<SessionId>,
    pub(crate) delivery: DeliverySource,
    /// The place of the topic, once the join is done.
    place: Option<TopicPlace>,
}

/// The place that a topic takes while the connection has joined it.
#[derive(Debug)]
pub(crate) struct TopicPlace {
    /// The topic's count among the documents of the client's address.
    _permit: DocumentPermit,
    _memory: Reservation,
}

impl TopicPlace {
    pub(crate) fn new(permit: DocumentPermit, memory: Reservation) -> Self {
        Self { _permit: permit, _memory: memory }
    }
}

/// The source of a topic's events.
pub(crate) enum DeliverySource {
    /// None yet: the join is not done.
    Joining,
    /// A stream for this topic alone, until it has caught up with the room.
    CatchingUp(DocumentStream),
    /// The room.
    Room(RoomMember),
    /// None any more: the stream has ended by a failure, and the client was told. It may still publish until it joins again.
    Ended,
}

/// The action that is due for a message.
pub(crate) enum Action {
    /// Reply to a heartbeat.
    Heartbeat,
    /// End the earlier join of the topic, which is `replaced`. Then subscribe to the document and reply, or refuse the join.
    Join { replaced: Option<JoinedTopic>, requested: Result<(TopicRef, Box<JoinRequest>), ErrorBody> },
    /// Reply ok, then leave the topic. `None` when this join of it has ended already, or never was.
    Leave { closed: Option<JoinedTopic> },
    /// Publish the draft and reply with the outcome.
    Publish { topic: TopicRef, draft: Box<CheckedDraft> },
    /// Run the command that the message names, and reply with the outcome.
    Command { topic: TopicRef, arguments: JsonText },
    /// Reply with an error.
    Refuse(ErrorBody),
}

/// The topics of one connection.
#[derive(Default)]
pub(crate) struct JoinedTopics {
    list: Vec<JoinedTopic>,
    /// The index of the topic that delivers next.
    next_index: usize,
}

impl JoinedTopics {
    /// The number of topics that are joined, or are being joined.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// True while the join of `topic` is not done. Messages on the topic wait for it.
    pub(crate) fn is_joining(&self, topic: &str) -> bool {
        let joined = self.index_of(topic);
        joined.is_some_and(|index| matches!(self.list[index].delivery, DeliverySource::Joining))
    }

    fn index_of(&self, topic: &str) -> Option<usize> {
        let id = codec::document_id(topic)?;
        self.list.iter().position(|topic| topic.id.document.as_str() == id)
    }

    /// Returns the action that is due for `message`, whose topic is not being joined. It adds the topic of a join, and removes
    /// that of a leave.
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
                _ => Action::Refuse(refusal::UNMATCHED_TOPIC),
            };
        }
        match (message.event.as_ref(), self.index_of(&message.topic)) {
            ("phx_join", _) => Action::Join {
                replaced: self.take_replaced(&message.topic),
                requested: self.join(message, max_topics),
            },
            (event, Some(index)) if self.list[index].is_addressed_by(message) => match event {
                "phx_leave" => Action::Leave { closed: Some(self.list.remove(index)) },
                _ => self.list[index].receive(message, identity, commands),
            },
            // The join that the message belongs to has ended while the message was on its way, or there was none.
            ("phx_leave", _) => Action::Leave { closed: None },
            _ => Action::Refuse(refusal::UNMATCHED_TOPIC),
        }
    }

    /// Removes the join of `topic`, since a message that joins the topic has arrived. It ends even if that message is refused,
    /// as in Phoenix: the client has given it up. Returns the join if its client is to be told.
    pub(crate) fn take_replaced(&mut self, topic: &str) -> Option<JoinedTopic> {
        let index = self.index_of(topic)?;
        Some(self.list.remove(index)).filter(JoinedTopic::is_active)
    }

    /// Adds the topic of a join, unless the join is refused.
    fn join(
        &mut self,
        message: &ClientMessage<'_>,
        max_topics: usize,
    ) -> Result<(TopicRef, Box<JoinRequest>), ErrorBody> {
        let document = request::document(&message.topic)?;
        let request = request::join_request(message.payload)?;
        if self.list.len() >= max_topics {
            return Err(refusal::too_many_topics(max_topics));
        }
        let topic_ref = TopicRef { document, join_ref: message.join_ref.as_deref().map(Arc::from) };
        // Most connections join one topic, so memory for further topics would be wasted.
        self.list.reserve_exact(1);
        self.list.push(JoinedTopic {
            id: topic_ref.clone(),
            presence: request.presence,
            session: None,
            delivery: DeliverySource::Joining,
            place: None,
        });
        Ok((topic_ref, Box::new(request)))
    }

    /// Gives the topic whose join succeeded its `stream`, its `place`, and the document's `session`.
    pub(crate) fn join_succeeded(
        &mut self,
        topic_ref: &TopicRef,
        session: Option<SessionId>,
        stream: DocumentStream,
        place: TopicPlace,
    ) {
        if let Some(topic) = self.list.iter_mut().find(|one| one.id == *topic_ref) {
            topic.session = session;
            topic.place = Some(place);
            topic.delivery = DeliverySource::CatchingUp(stream);
        }
    }

    /// Removes the topic whose join failed.
    pub(crate) fn join_failed(&mut self, topic_ref: &TopicRef) {
        self.list.retain(|one| one.id != *topic_ref);
    }

    /// Polls the topics that catch up, each in its turn. Returns the next item and the index of its topic. A topic without
    /// an item enters its room if it has caught up.
    pub(crate) fn poll_catch_up(
        &mut self,
        cx: &mut Context<'_>,
        rooms: &mut Rooms,
        connection: usize,
    ) -> Option<(usize, StreamItem)> {
        for step in 0..self.list.len() {
            let index = (self.next_index + step) % self.list.len();
            if let Some(item) = self.list[index].poll_catch_up(cx, rooms, connection) {
                self.next_index = index + 1;
                return Some((index, item));
            }
        }
        None
    }

    /// Polls the topic that waits for `room` alone. Returns as [`JoinedTopics::poll_catch_up`] does.
    pub(crate) fn poll_rejoin(
        &mut self,
        room: RoomId,
        cx: &mut Context<'_>,
        rooms: &mut Rooms,
        connection: usize,
    ) -> Option<(usize, StreamItem)> {
        let key = rooms.key(room)?;
        let index = self.list.iter().position(|topic| topic.is_of(key))?;
        self.list[index].poll_catch_up(cx, rooms, connection).map(|item| (index, item))
    }

    /// The topic at `index`.
    pub(crate) fn at(&self, index: usize) -> &JoinedTopic {
        &self.list[index]
    }

    /// Ends the deliveries of the topic at `index`. Returns the topic as it was, whose membership the caller releases.
    pub(crate) fn end(&mut self, index: usize) -> JoinedTopic {
        let topic = &mut self.list[index];
        let delivery = std::mem::replace(&mut topic.delivery, DeliverySource::Ended);
        let (id, place) = (topic.id.clone(), topic.place.take());
        JoinedTopic { id, presence: topic.presence, session: topic.session, place, delivery }
    }

    /// The index of the topic that is in `room`.
    pub(crate) fn in_room(&self, room: RoomId) -> Option<usize> {
        self.list
            .iter()
            .position(|topic| matches!(topic.delivery, DeliverySource::Room(member) if member.room == room))
    }

    /// Replaces the room of the topic in `room` by `stream`.
    pub(crate) fn left_room(&mut self, room: RoomId, stream: DocumentStream) {
        if let Some(index) = self.in_room(room) {
            self.list[index].delivery = DeliverySource::CatchingUp(stream);
        }
    }

    /// The topics whose join is done and has not ended.
    pub(crate) fn active(&self) -> impl Iterator<Item = &JoinedTopic> {
        self.list.iter().filter(|topic| topic.is_active())
    }

    /// Removes and returns all topics.
    pub(crate) fn drain(&mut self) -> Vec<JoinedTopic> {
        std::mem::take(&mut self.list)
    }
}

impl JoinedTopic {
    /// True when the join is done and has not ended.
    pub(crate) fn is_active(&self) -> bool {
        !matches!(self.delivery, DeliverySource::Joining | DeliverySource::Ended)
    }

    /// True when `message` belongs to this join, and not to an earlier one. A join without a reference takes all messages, as in
    /// Phoenix.
    fn is_addressed_by(&self, message: &ClientMessage<'_>) -> bool {
        self.id.join_ref.is_none() || self.id.join_ref.as_deref() == message.join_ref.as_deref()
    }

    /// Returns the action that is due for a command or a push.
    fn receive(&self, message: &ClientMessage<'_>, identity: &Identity, commands: &Commands) -> Action {
        let topic = &self.id;
        if commands.contains(&message.event) {
            return match message.payload {
                _ if !self.is_active() => Action::Refuse(refusal::join_ended()),
                _ if !self.presence => Action::Refuse(refusal::no_participant()),
                ClientPayload::Json(arguments) => {
                    Action::Command { topic: topic.clone(), arguments: JsonText::from_raw(arguments) }
                }
                ClientPayload::Binary(_) => Action::Refuse(refusal::unknown_event(&message.event)),
            };
        }
        match request::draft(message, &topic.document, identity, self.session) {
            Ok(draft) => Action::Publish { topic: topic.clone(), draft: Box::new(draft) },
            Err(error) => Action::Refuse(error),
        }
    }

    /// True for the topic of the members of the room with `key`.
    fn is_of(&self, key: &RoomKey) -> bool {
        self.id.document == key.document && self.presence == key.presence
    }

    /// Polls a topic that catches up for its next item. A topic without an item enters its room if it has caught up.
    fn poll_catch_up(
        &mut self,
        cx: &mut Context<'_>,
        rooms: &mut Rooms,
        connection: usize,
    ) -> Option<StreamItem> {
        let DeliverySource::CatchingUp(stream) = &mut self.delivery else { return None };
        if let Poll::Ready(item) = stream.poll_next(cx) {
            return Some(item);
        }
        self.enter_room(rooms, connection);
        None
    }

    /// Enters the room of the document, if the topic has caught up with it.
    fn enter_room(&mut self, rooms: &mut Rooms, connection: usize) {
        let key = RoomKey { document: self.id.document.clone(), presence: self.presence };
        // `Joining` stands in while the rooms decide about the stream.
        let DeliverySource::CatchingUp(stream) =
            std::mem::replace(&mut self.delivery, DeliverySource::Joining)
        else {
            return;
        };
        self.delivery = match rooms.enter(&key, connection, stream) {
            Ok(member) => {
                self.id.document = rooms.document(member.room).clone();
                DeliverySource::Room(member)
            }
            Err(stream) => DeliverySource::CatchingUp(stream),
        };
    }
}
