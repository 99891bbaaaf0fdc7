//! [`MessageHandler`]: it acts on the messages of a client, and keeps its topics and pending operations.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use relay_core::{CheckedDraft, DocumentId, ErrorCode, JsonText, LeaveReason};
use relay_events::{ErrorBody, JoinReply, NoticeLevel, SYSTEM_NOTICE, SystemNotice};

use super::client::Client;
use super::deferred::DeferredMessage;
use super::end::End;
use super::link::Link;
use super::pending::{
    Abandoned, Completed, JoinResult, OPERATION_BYTES, Pending, ReadyReply, RequestRef, Subscribed,
};
use super::reply::{Empty, ReplyTo};
use crate::close::CloseReason;
use crate::codec::{self, ClientMessage, DecodeError, Frame};
use crate::config::WsConfig;
use crate::document_stream::{DocumentStream, StreamItem};
use crate::framing::{Message, OpCode};
use crate::handshake::Protocol;
use crate::joined_topics::{Action, DeliverySource, JoinedTopic, JoinedTopics, TopicRef};
use crate::refusal;
use crate::request::{Identity, TopicJoinReply};
use crate::room::RoomId;
use crate::shard_context::ShardContext;

/// The handler of a client's messages. Dropping it releases all memberships, after a panic too.
pub(super) struct MessageHandler {
    protocol: Protocol,
    client: Client,
    topics: JoinedTopics,
    pending: Pending,
    /// The bytes of deferred messages that were handled. They are work a second time: the reads were in earlier turns.
    deferred_bytes: u64,
    /// The reason with which the client leaves its documents when the connection ends.
    leave_reason: LeaveReason,
}

impl MessageHandler {
    pub(super) fn new(protocol: Protocol, client: Client) -> Self {
        Self {
            protocol,
            client,
            topics: JoinedTopics::default(),
            pending: Pending::default(),
            deferred_bytes: 0,
            leave_reason: LeaveReason::Lost,
        }
    }

    /// Acts on a message that has just arrived.
    pub(super) fn handle(
        &mut self,
        message: Message<'_>,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        match (message, self.protocol) {
            (Message::Close(close), _) => return Err(End::by_client(close)),
            (Message::Ping(payload), _) => shard.writer.control(OpCode::Pong, payload),
            (Message::Pong(_), _) => {}
            (Message::Text(text), Protocol::Phoenix) => {
                return self.receive(codec::decode_text(text), link, shard, cx);
            }
            (Message::Binary(bytes), Protocol::Phoenix) => {
                return self.receive(codec::decode_binary(bytes), link, shard, cx);
            }
            (Message::TooLarge { head, is_text }, Protocol::Phoenix) => {
                return self.refuse_too_large(head, is_text, link, shard);
            }
            (Message::TooLarge { .. }, Protocol::Echo) => return Err(End::Close(CloseReason::TooLarge)),
            (Message::Text(text), Protocol::Echo) => {
                link.send(&Frame::Text(Bytes::copy_from_slice(text.as_bytes())), shard);
            }
            (Message::Binary(bytes), Protocol::Echo) => {
                link.send(&Frame::Binary(Bytes::copy_from_slice(bytes)), shard);
            }
        }
        Ok(())
    }

    /// Acts on the deferred message, unless it still has to wait. Returns true when it was handled.
    pub(super) fn handle_deferred(
        &mut self,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(deferred) = self.pending.take_deferred() else { return false };
        let message = deferred.message();
        if self.must_wait(&message) {
            self.pending.defer(deferred);
            return false;
        }
        self.deferred_bytes += deferred.bytes() as u64;
        self.receive_now(&message, link, shard, cx);
        true
    }

    /// Sends the replies of completed operations. Returns true when there were any.
    pub(super) fn poll_pending(
        &mut self,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> bool {
        let mut any = false;
        while let Some(completed) = self.pending.poll(cx) {
            any = true;
            match completed {
                Completed::Reply(frame) => link.send(&frame, shard),
                Completed::Join(join) => self.finish_join(join, link, shard),
            }
        }
        any
    }

    /// Sends the next item of a topic that catches up. Returns false when there is none.
    pub(super) fn send_catch_up(
        &mut self,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some((index, item)) = self.topics.poll_catch_up(cx, shard.rooms, shard.key) else {
            return false;
        };
        self.deliver(index, item, link, shard);
        true
    }

    /// Sends the next item of the topic that waits for `room`. Returns false when there is none.
    pub(super) fn send_rejoin(
        &mut self,
        room: RoomId,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some((index, item)) = self.topics.poll_rejoin(room, cx, shard.rooms, shard.key) else {
            return false;
        };
        self.deliver(index, item, link, shard);
        true
    }

    /// Sends an item of the topic at `index`.
    fn deliver(&mut self, index: usize, item: StreamItem, link: &mut Link, shard: &mut ShardContext<'_>) {
        match item {
            StreamItem::Event(event) => {
                shard.deps.counters.deliveries.increment();
                link.send_shared(&codec::encode_broadcast(&event), shard);
            }
            StreamItem::Presence(change) => {
                let document = &self.topics.at(index).id.document;
                link.send_shared(&codec::encode_presence(document, &change), shard);
            }
            StreamItem::Ended(cause) => {
                let reason = refusal::end_reason(cause.as_ref(), &self.topics.at(index).id.document);
                self.topic_ended(index, reason, link, shard);
            }
        }
    }

    /// The bytes of deferred messages that were handled so far.
    pub(super) fn deferred_bytes(&self) -> u64 {
        self.deferred_bytes
    }

    /// The bytes of the pending operations.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.bytes()
    }

    /// True while operations are pending.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// True when another message may be read.
    pub(super) fn has_capacity(&self, config: &WsConfig) -> bool {
        self.pending.has_capacity(config)
    }

    /// Gives up the pending operations, except publishes and replies, since the server stops. Each is answered with `closed`.
    pub(super) fn stop_pending(&mut self, link: &mut Link, shard: &mut ShardContext<'_>) {
        let Abandoned { joins, commands, deferred } = self.pending.stop();
        for RequestRef { topic, reference } in joins {
            let result = Err(refusal::closed());
            self.finish_join(JoinResult { topic, reference, result, bytes: 0 }, link, shard);
        }
        for RequestRef { topic, reference } in commands {
            let closed = refusal::closed();
            shard.deps.counters.errors.increment(closed.reason);
            link.send(&topic.reply_to(&topic.name(), reference.as_deref()).error(&closed), shard);
        }
        if let Some(deferred) = deferred {
            self.refuse(ReplyTo::message(&deferred.message()), &refusal::closed(), link, shard);
        }
    }

    /// Replaces the room of the topic in `room` by a stream of its own.
    pub(super) fn left_room(&mut self, room: RoomId, stream: DocumentStream) {
        self.topics.left_room(room, stream);
    }

    /// Ends the join whose topic is in `room`. The room has ended for `reason`.
    pub(super) fn room_ended(
        &mut self,
        room: RoomId,
        reason: ErrorCode,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
    ) {
        if let Some(index) = self.topics.in_room(room) {
            self.topic_ended(index, reason, link, shard);
        }
    }

    /// Leaves all topics and ends the pending operations, since the connection ends.
    pub(super) fn end(&mut self, reason: LeaveReason, shard: &mut ShardContext<'_>) {
        self.leave_reason = reason;
        self.leave_all_rooms(shard);
        self.pending.clear();
    }

    /// Leaves all topics.
    pub(super) fn leave_all_rooms(&mut self, shard: &mut ShardContext<'_>) {
        for topic in self.topics.drain() {
            self.leave_topic(&topic, self.leave_reason, shard);
        }
    }

    /// Asks the client, on every topic, to connect again after `return_after`.
    pub(super) fn send_restart_notices(
        &self,
        return_after: Duration,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
    ) {
        let notice = SystemNotice {
            level: NoticeLevel::Info,
            code: "reconnect".to_owned(),
            message: "the server restarts; connect again".to_owned(),
            reconnect_after_ms: u64::try_from(return_after.as_millis()).ok(),
        };
        for topic in self.topics.active() {
            let TopicRef { join_ref, .. } = &topic.id;
            let name = topic.id.name();
            match codec::encode_push(join_ref.as_deref(), &name, SYSTEM_NOTICE.as_str(), &notice) {
                Ok(frame) => link.send(&frame, shard),
                Err(error) => tracing::error!(%error, "a notice cannot be encoded"),
            }
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.client.identity
    }

    /// The documents that the client has joined.
    pub(super) fn documents(&self) -> impl Iterator<Item = &DocumentId> {
        self.topics.active().map(|topic| &topic.id.document)
    }

    fn receive(
        &mut self,
        decoded: Result<ClientMessage<'_>, DecodeError>,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        let message = decoded.map_err(|error| {
            tracing::debug!(connection = %self.client.identity.connection, %error, "a message is malformed");
            End::Close(CloseReason::Malformed)
        })?;
        if self.must_wait(&message) {
            self.pending.defer(DeferredMessage::new(&message));
        } else {
            self.receive_now(&message, link, shard, cx);
        }
        Ok(())
    }

    /// True while `message` waits for the join of its topic. A join also waits for the replies before it, which its own
    /// reply follows.
    fn must_wait(&self, message: &ClientMessage<'_>) -> bool {
        self.topics.is_joining(&message.topic)
            || (message.event == "phx_join" && self.pending.awaits_replies())
    }

    fn receive_now(
        &mut self,
        message: &ClientMessage<'_>,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) {
        let (commands, max_topics) = (&shard.deps.parts.commands, shard.deps.config.max_topics);
        let action = self.topics.receive(message, &self.client.identity, commands, max_topics);
        self.act(action, message, link, shard, cx);
    }

    /// Answers a message that was discarded since it is too large.
    fn refuse_too_large(
        &mut self,
        head: &[u8],
        is_text: bool,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
    ) -> Result<(), End> {
        // Without a ref its sender cannot be answered.
        let head = codec::decode_head(head, is_text).filter(|head| head.reference.is_some());
        let head = head.ok_or(End::Close(CloseReason::TooLarge))?;
        let (join_ref, reference) = (head.join_ref.as_deref(), head.reference.as_deref());
        let to = ReplyTo { join_ref, reference, topic: &head.topic };
        let error = refusal::message_too_large(&head.event, shard.deps.config.max_frame_bytes);
        if head.event == "phx_join" && !self.topics.is_joining(&head.topic) {
            let replaced = self.topics.take_replaced(&head.topic);
            self.close(replaced, LeaveReason::Lost, link, shard);
        }
        self.refuse(to, &error, link, shard);
        Ok(())
    }

    fn act(
        &mut self,
        action: Action,
        message: &ClientMessage<'_>,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) {
        match action {
            Action::Heartbeat => {
                shard.deps.counters.heartbeats.increment();
                link.send(&ReplyTo::message(message).ok(&Empty {}), shard);
            }
            Action::Join { replaced, requested } => {
                self.close(replaced, LeaveReason::Lost, link, shard);
                match requested {
                    Ok((topic, request)) => {
                        let to = RequestRef { topic: topic.clone(), reference: reference_of(message) };
                        let bytes = OPERATION_BYTES + message.payload.len();
                        let (reference, joined) = (message.reference.as_deref(), self.topics.len());
                        let join = self.client.join(topic, reference, *request, bytes, joined);
                        self.pending.push_join(join, to, bytes);
                    }
                    Err(error) => self.refuse(ReplyTo::message(message), &error, link, shard),
                }
            }
            Action::Leave { closed } => {
                self.reply_in_order(ReplyTo::message(message).ok(&Empty {}), link, shard);
                self.close(closed, LeaveReason::Left, link, shard);
            }
            Action::Publish { topic, draft } => {
                self.report_activity(&topic.document);
                self.publish(topic, message.reference.as_deref(), *draft, link, shard, cx);
            }
            Action::Command { topic, arguments } => {
                self.command(topic, message, arguments, link, shard, cx);
            }
            Action::Refuse(error) => self.refuse(ReplyTo::message(message), &error, link, shard),
        }
    }

    fn finish_join(&mut self, join: JoinResult, link: &mut Link, shard: &mut ShardContext<'_>) {
        let JoinResult { topic, reference, result, .. } = join;
        let topic_name = topic.name();
        let to = topic.reply_to(&topic_name, reference.as_deref());
        match result {
            Ok(Subscribed { ack, events, joined, place }) => {
                shard.deps.counters.joins.increment();
                self.client.count_membership(&topic.document);
                let Identity { user, connection, .. } = &self.client.identity;
                let session = joined.as_ref().map(|joined| joined.session);
                let join = JoinReply::new(*connection, joined.as_ref());
                let response = TopicJoinReply { ack, user, join };
                let reply = to.ok(&response);
                let stream = DocumentStream::new(events, joined.map(|joined| joined.presence));
                // Before the reply, so that a panic while it is sent leaves no membership behind.
                self.topics.join_succeeded(&topic, session, stream, place);
                link.send(&reply, shard);
            }
            Err(error) => {
                shard.deps.counters.errors.increment(error.reason);
                link.send(&to.error(&error), shard);
                self.topics.join_failed(&topic);
            }
        }
    }

    fn publish(
        &mut self,
        topic: TopicRef,
        reference: Option<&str>,
        draft: CheckedDraft,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) {
        let bytes = OPERATION_BYTES + draft.approx_bytes();
        let mut publish = self.client.publish(topic, reference, draft, bytes);
        // The first poll puts the draft into the sink's queue, behind the drafts of the pushes before it.
        match publish.poll_unpin(cx) {
            Poll::Pending => self.pending.push_publish(publish, bytes),
            Poll::Ready(ReadyReply { frame, .. }) => self.reply_in_order(frame, link, shard),
        }
    }

    fn command(
        &mut self,
        topic: TopicRef,
        message: &ClientMessage<'_>,
        arguments: JsonText,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) {
        let (reference, name) = (message.reference.as_deref(), message.event.as_ref().to_owned());
        let bytes = OPERATION_BYTES + arguments.as_bytes().len();
        let mut command = self.client.command(topic.clone(), reference, name, arguments, bytes);
        match command.poll_unpin(cx) {
            Poll::Ready(ReadyReply { frame, .. }) => self.reply_in_order(frame, link, shard),
            Poll::Pending => {
                let to = RequestRef { topic, reference: reference_of(message) };
                self.pending.push_command(command, to, bytes);
            }
        }
    }

    fn refuse(&mut self, to: ReplyTo<'_>, error: &ErrorBody, link: &mut Link, shard: &mut ShardContext<'_>) {
        shard.deps.counters.errors.increment(error.reason);
        self.reply_in_order(to.error(error), link, shard);
    }

    /// Sends `frame` after the pending replies.
    fn reply_in_order(&mut self, frame: Frame, link: &mut Link, shard: &mut ShardContext<'_>) {
        if self.pending.awaits_replies() {
            self.pending.push_reply(frame);
        } else {
            link.send(&frame, shard);
        }
    }

    /// Ends the join of a topic by a failure.
    fn topic_ended(
        &mut self,
        index: usize,
        reason: ErrorCode,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
    ) {
        let topic = self.topics.end(index);
        shard.deps.counters.channel_errors.increment(reason.as_str());
        let (join_ref, name) = (topic.id.join_ref.as_deref(), topic.id.name());
        link.send(&codec::encode_error(join_ref, &name, reason.as_str()), shard);
        self.leave_topic(&topic, LeaveReason::Lost, shard);
    }

    /// Closes the channel of a topic that the client has left, or has joined again. A new join takes the membership of one that
    /// is [`Lost`](LeaveReason::Lost).
    fn close(
        &mut self,
        closed: Option<JoinedTopic>,
        reason: LeaveReason,
        link: &mut Link,
        shard: &mut ShardContext<'_>,
    ) {
        let Some(topic) = closed else { return };
        let TopicRef { join_ref, .. } = &topic.id;
        self.reply_in_order(codec::encode_close(join_ref.as_deref(), &topic.id.name()), link, shard);
        self.leave_topic(&topic, reason, shard);
    }

    fn leave_topic(&self, topic: &JoinedTopic, reason: LeaveReason, shard: &mut ShardContext<'_>) {
        if let DeliverySource::Room(member) = topic.delivery {
            shard.rooms.leave(member);
        }
        self.client.release_membership(topic, reason);
    }

    /// Reports to the presence that the client acts in `document`.
    fn report_activity(&self, document: &DocumentId) {
        let mut active = self.topics.active();
        if let Some(topic) = active.find(|topic| topic.id.document == *document) {
            self.client.report_activity(topic);
        }
    }
}

impl Drop for MessageHandler {
    fn drop(&mut self) {
        for topic in self.topics.drain() {
            self.client.release_membership(&topic, self.leave_reason);
        }
    }
}

fn reference_of(message: &ClientMessage<'_>) -> Option<Arc<str>> {
    message.reference.as_deref().map(Arc::from)
}
