//! [`Client`]: the identity of a connection's client, and the calls to other parts of the server in its name.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use relay_core::{
    Activity, Caller, CheckedDraft, DocumentId, ErrorCode, JsonText, LeaveReason, Membership, MemoryPurpose,
    MemoryShare,
};
use relay_events::ErrorBody;

use super::pending::{JoinResult, ReadyReply, Subscribed};
use super::reply::ReplyTo;
use crate::joined_topics::{JoinedTopic, TopicPlace, TopicRef};
use crate::refusal;
use crate::request::{Identity, JoinRequest};
use crate::shard_context::ShardDeps;

/// The bytes that a joined topic takes beside its texts: the topic, its reader, and its place in the room.
const TOPIC_BYTES: usize = 1024;
/// The most topics that a connection may join whatever is left of the memory for all, as with the first bytes of each other
/// purpose.
const SMALL_TOPICS: usize = 4;

/// The client of a connection. Its methods call the sink, the source, the presence and the commands with its identity.
pub(super) struct Client {
    pub(super) identity: Identity,
    /// The connection's share of memory.
    memory: MemoryShare,
    deps: Arc<ShardDeps>,
}

impl Client {
    pub(super) fn new(identity: Identity, memory: MemoryShare, deps: Arc<ShardDeps>) -> Self {
        Self { identity, memory, deps }
    }

    /// Subscribes to the document of `topic`, and joins its presence if the request asks for that. The connection has joined
    /// `joined` topics, this one included.
    pub(super) fn join(
        &self,
        topic: TopicRef,
        reference: Option<&str>,
        request: JoinRequest,
        bytes: usize,
        joined: usize,
    ) -> BoxFuture<'static, JoinResult> {
        let parts = &self.deps.parts;
        let place = self.reserve_place(&topic, joined);
        let source = Arc::clone(&parts.source);
        let presence = parts.presence.clone().filter(|_| request.presence);
        let membership = self.membership(&topic.document);
        let reference = reference.map(Arc::from);
        let mut options = request.options;
        options.memory = Some(self.memory.clone());
        let join = async move {
            let outcome = async {
                let place = place?;
                let subscribed = source.subscribe(&topic.document, request.start).await;
                let (ack, events) = subscribed.map_err(|error| {
                    refusal::log_failure("join", &topic.document, error.code(), &error);
                    ErrorBody::from(&error)
                })?;
                let joined = match presence {
                    Some(presence) => {
                        let joined = presence.join(&membership, options).await;
                        Some(joined.map_err(|error| {
                            refusal::log_failure("join", &topic.document, error.code(), &error);
                            ErrorBody::from(&error)
                        })?)
                    }
                    None => None,
                };
                Ok(Subscribed { ack, events, joined, place })
            };
            let result = outcome.await;
            JoinResult { topic, reference, result, bytes }
        };
        join.boxed()
    }

    /// Reserves the memory of a topic, and its place among the documents of the client's address.
    fn reserve_place(&self, topic: &TopicRef, joined: usize) -> Result<TopicPlace, ErrorBody> {
        let permit = self.deps.documents.acquire(self.memory.address(), &topic.document);
        let permit = permit.map_err(|error| ErrorBody::from_code(error.code(), error))?;
        let reference = topic.join_ref.as_deref().unwrap_or_default();
        let bytes = TOPIC_BYTES + topic.document.as_str().len() + reference.len();
        let memory = if joined <= SMALL_TOPICS {
            self.memory.charge(MemoryPurpose::Subscriptions, bytes)
        } else {
            let reserved = self.memory.try_reserve(MemoryPurpose::Subscriptions, bytes);
            reserved.map_err(|full| ErrorBody::from_code(ErrorCode::Overloaded, full))?
        };
        Ok(TopicPlace::new(permit, memory))
    }

    /// Publishes `draft`. The first poll puts it into the sink's queue.
    pub(super) fn publish(
        &self,
        topic: TopicRef,
        reference: Option<&str>,
        draft: CheckedDraft,
        bytes: usize,
    ) -> BoxFuture<'static, ReadyReply> {
        let (sink, counters) = (Arc::clone(&self.deps.parts.sink), Arc::clone(&self.deps.counters));
        let reference: Option<Arc<str>> = reference.map(Arc::from);
        let publish = async move {
            let result = sink.publish(draft).await;
            let topic_name = topic.name();
            let to = topic.reply_to(&topic_name, reference.as_deref());
            let frame = match result {
                Ok(ack) => {
                    counters.pushes.increment();
                    to.ok(&ack)
                }
                Err(error) => {
                    refusal::log_failure("publish", &topic.document, error.code(), &error);
                    let error = ErrorBody::from(&error);
                    counters.errors.increment(error.reason);
                    to.error(&error)
                }
            };
            ReadyReply { frame, bytes }
        };
        publish.boxed()
    }

    /// Runs the command `name`.
    pub(super) fn command(
        &self,
        topic: TopicRef,
        reference: Option<&str>,
        name: String,
        arguments: JsonText,
        bytes: usize,
    ) -> BoxFuture<'static, ReadyReply> {
        let commands = Arc::clone(&self.deps.parts.commands);
        let counters = Arc::clone(&self.deps.counters);
        let caller = Caller::new(self.membership(&topic.document), Some(self.memory.clone()));
        let reference: Option<Arc<str>> = reference.map(Arc::from);
        let command = async move {
            let running = {
                let mut arguments = serde_json::Deserializer::from_str(arguments.as_str());
                commands.run(&name, &caller, &mut arguments)
            };
            // A command that waits does not keep the text of its arguments.
            drop(arguments);
            let outcome = match running {
                Some(running) => running.await.map_err(|error| {
                    refusal::log_failure(&name, &topic.document, error.code, &error);
                    ErrorBody::from(&error)
                }),
                None => Err(refusal::unknown_event(&name)),
            };
            let topic_name = topic.name();
            let to = topic.reply_to(&topic_name, reference.as_deref());
            let frame = match outcome {
                Ok(reply) => {
                    counters.requests.increment();
                    to.ok(&reply)
                }
                Err(error) => {
                    counters.errors.increment(error.reason);
                    to.error(&error)
                }
            };
            ReadyReply { frame, bytes }
        };
        command.boxed()
    }

    /// Reports to the presence that the client acts in the document of `topic`.
    pub(super) fn report_activity(&self, topic: &JoinedTopic) {
        if let (true, Some(presence)) = (topic.presence, &self.deps.parts.presence) {
            presence.touch(&self.membership(&topic.id.document), Activity::Active);
        }
    }

    /// Counts a document as joined.
    pub(super) fn count_membership(&self, document: &DocumentId) {
        self.deps.membership_counts.increment(document);
    }

    /// Releases the membership of a topic: its count, and its entry in the presence.
    pub(super) fn release_membership(&self, topic: &JoinedTopic, reason: LeaveReason) {
        if !topic.is_active() {
            return;
        }
        let document = &topic.id.document;
        self.deps.membership_counts.decrement(document);
        if let (true, Some(presence)) = (topic.presence, &self.deps.parts.presence) {
            presence.leave(&self.membership(document), reason);
        }
    }

    fn membership(&self, document: &DocumentId) -> Membership {
        let Identity { user, connection, .. } = &self.identity;
        Membership { document: document.clone(), user: user.clone(), connection: *connection }
    }
}

impl TopicRef {
    /// The address of a reply on the topic, whose name is `topic_name`.
    pub(super) fn reply_to<'a>(&'a self, topic_name: &'a str, reference: Option<&'a str>) -> ReplyTo<'a> {
        ReplyTo { join_ref: self.join_ref.as_deref(), reference, topic: topic_name }
    }
}
