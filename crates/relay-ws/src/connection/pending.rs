//! What a connection has under way: joins, publishes, requests. Boxed and made when it is needed, since most connections
//! have nothing under way most of the time.

use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use relay_core::{CheckedDraft, ErrorCode, EventStream, Joined, SubscribeAck};
use serde::Serialize;

use super::Connection;
use crate::channels::ChannelRef;
use crate::codec::{self, ClientMessage, ClientPayload, Frame, Status};
use crate::document_stream::DocumentStream;
use crate::error_reply::ErrorReply;
use crate::request::{Identity, JoinReply, JoinRequest};
use crate::shard_context::ShardContext;

/// The outcome of a join.
pub(super) struct JoinResult {
    channel: ChannelRef,
    reference: Option<Arc<str>>,
    /// The stream of events, and the membership where one was wanted.
    result: Result<(SubscribeAck, Box<dyn EventStream>, Option<Joined>), ErrorReply>,
}

/// An answer that waits for its turn, so that answers come in the order of what they answer.
pub(super) struct ReadyReply {
    frame: Frame,
    /// Bytes of the payload whose publishing is over now.
    released: usize,
}

/// A message whose turn has not come: one for a topic whose join is still being made, or a join while answers are awaited.
/// Nothing is read until it is dealt with.
pub(super) enum Deferred {
    Text(String),
    Binary(Vec<u8>),
}

#[derive(Default)]
pub(super) struct Pending {
    joins: FuturesUnordered<BoxFuture<'static, JoinResult>>,
    replies: FuturesOrdered<BoxFuture<'static, ReadyReply>>,
    /// Requests that wait for something, a lock for instance. They keep no order: their answers may take long.
    requests: FuturesUnordered<BoxFuture<'static, ReadyReply>>,
    /// Bytes of the payloads that are being published.
    pending_bytes: usize,
    pub(super) deferred: Option<Deferred>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.joins.is_empty()
            && self.replies.is_empty()
            && self.requests.is_empty()
            && self.deferred.is_none()
    }

    /// Whether answers are awaited that keep their order.
    pub(super) fn awaits_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// How many things are under way, and the bytes of what is being published.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.joins.len() + self.replies.len() + self.requests.len(), self.pending_bytes)
    }

    /// The server stops: what has not begun does not begin any more.
    pub(super) fn stop(&mut self) {
        self.deferred = None;
        self.joins.clear();
        self.requests.clear();
    }
}

/// The response of replies that have nothing to say.
#[derive(Serialize)]
pub(super) struct Empty {}

impl Connection {
    pub(super) fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_default()
    }

    /// Writes the answers that are there now. Returns whether there were any.
    pub(super) fn poll_replies(&mut self, shard: &mut ShardContext<'_>, cx: &mut Context<'_>) -> bool {
        let Some(mut pending) = self.pending.take() else { return false };
        let mut any = false;
        while let Poll::Ready(Some(reply)) = pending.replies.poll_next_unpin(cx) {
            pending.pending_bytes -= reply.released;
            self.send(&reply.frame, shard.writer);
            any = true;
        }
        while let Poll::Ready(Some(reply)) = pending.requests.poll_next_unpin(cx) {
            self.send(&reply.frame, shard.writer);
            any = true;
        }
        while let Poll::Ready(Some(joined)) = pending.joins.poll_next_unpin(cx) {
            self.finish_join(joined, shard);
            any = true;
        }
        if !pending.is_empty() {
            self.pending = Some(pending);
        }
        any
    }

    /// Subscribes to the document of `channel`, and takes a membership in it if that is wanted.
    pub(super) fn join(&mut self, channel: ChannelRef, reference: Option<&str>, request: Box<JoinRequest>) {
        let source = Arc::clone(&self.deps.parts.source);
        let presence = self.deps.parts.presence.clone().filter(|_| request.presence);
        let membership = self.membership(&channel.document);
        let reference = reference.map(Arc::from);
        let joining = async move {
            let outcome = async {
                let (ack, events) = source.subscribe(&channel.document, request.start).await.map_err(|error| {
                    if error.code() == ErrorCode::LogFailed {
                        tracing::warn!(document = %channel.document, %error, "a join failed: the history cannot be read");
                    }
                    ErrorReply::from(&error)
                })?;
                let joined = match presence {
                    Some(presence) => Some(presence.join(&membership, request.options).await?),
                    None => None,
                };
                Ok((ack, events, joined))
            };
            let result = outcome.await;
            JoinResult { channel, reference, result }
        };
        self.pending().joins.push(joining.boxed());
    }

    fn finish_join(&mut self, joined: JoinResult, shard: &mut ShardContext<'_>) {
        let JoinResult { channel, reference, result } = joined;
        let (join_ref, reference) = (channel.join_ref.as_deref(), reference.as_deref());
        match result {
            Ok((ack, events, joined)) => {
                self.deps.counters.joins.increment();
                self.deps.membership_counts.increment(&channel.document);
                let Identity { user, connection, .. } = &self.identity;
                let response = JoinReply {
                    ack,
                    user,
                    connection: *connection,
                    session: joined.as_ref().map(|joined| joined.session),
                    locks: joined.as_ref().map(|joined| &*joined.locks),
                };
                let frame = reply(join_ref, reference, &channel.topic(), &Ok::<_, ErrorReply>(response));
                self.send(&frame, shard.writer);
                let session = joined.as_ref().map(|joined| joined.session);
                let presence = joined.map(|joined| joined.presence);
                self.channels.join_succeeded(&channel, session, DocumentStream::new(events, presence));
            }
            Err(refusal) => {
                let frame = self.refusal(join_ref, reference, &channel.topic(), &refusal);
                self.send(&frame, shard.writer);
                self.channels.join_failed(&channel);
            }
        }
    }

    pub(super) fn publish(
        &mut self,
        channel: ChannelRef,
        reference: Option<&str>,
        draft: CheckedDraft,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) {
        let (sink, counters) = (Arc::clone(&self.deps.parts.sink), Arc::clone(&self.deps.counters));
        let reference: Option<Arc<str>> = reference.map(Arc::from);
        let released = draft.payload.len();
        let replying = async move {
            let result = sink.publish(draft).await;
            let (topic, join_ref) = (channel.topic(), channel.join_ref.as_deref());
            let frame = match result {
                Ok(ack) => {
                    counters.pushes.increment();
                    reply(join_ref, reference.as_deref(), &topic, &Ok::<_, ErrorReply>(ack))
                }
                Err(error) => {
                    let refusal = ErrorReply::from(&error);
                    if error.code() == ErrorCode::LogFailed {
                        tracing::warn!(%topic, %error, "a push failed: the log did not take it");
                    }
                    counters.errors.increment(refusal.reason());
                    reply(join_ref, reference.as_deref(), &topic, &Err::<Empty, _>(refusal))
                }
            };
            ReadyReply { frame, released }
        };
        let mut replying = replying.boxed();
        // The first poll puts the draft into the sink's queue, behind those of the pushes before it.
        match replying.poll_unpin(cx) {
            Poll::Pending => {
                let pending = self.pending();
                pending.pending_bytes += released;
                pending.replies.push_back(replying);
            }
            Poll::Ready(ReadyReply { frame, .. }) => self.reply_in_order(frame, shard),
        }
    }

    /// Carries out a command of the participant, whose arguments are the payload of `message`.
    pub(super) fn command(
        &mut self,
        channel: ChannelRef,
        message: &ClientMessage<'_>,
        shard: &mut ShardContext<'_>,
        cx: &mut Context<'_>,
    ) {
        if matches!(message.payload, ClientPayload::Binary(_)) {
            let refusal = ErrorReply::unknown_event(&message.event);
            let (join_ref, reference) = (message.join_ref.as_deref(), message.reference.as_deref());
            let frame = self.refusal(join_ref, reference, &channel.topic(), &refusal);
            return self.reply_in_order(frame, shard);
        }
        let commands = Arc::clone(&self.deps.parts.commands);
        let counters = Arc::clone(&self.deps.counters);
        let arguments = message.payload.to_json();
        let membership = self.membership(&channel.document);
        let name = message.event.as_ref().to_owned();
        let reference: Option<Arc<str>> = message.reference.as_deref().map(Arc::from);
        let command = async move {
            let mut arguments = serde_json::Deserializer::from_str(arguments.as_str());
            let outcome = match commands.run(&name, &membership, &mut arguments) {
                Some(running) => running.await.map_err(ErrorReply::from),
                None => Err(ErrorReply::unknown_event(&name)),
            };
            match &outcome {
                Ok(_) => counters.requests.increment(),
                Err(refusal) => counters.errors.increment(refusal.reason()),
            }
            let frame = reply(channel.join_ref.as_deref(), reference.as_deref(), &channel.topic(), &outcome);
            ReadyReply { frame, released: 0 }
        };
        let mut command = command.boxed();
        match command.poll_unpin(cx) {
            Poll::Ready(ReadyReply { frame, .. }) => self.reply_in_order(frame, shard),
            Poll::Pending => self.pending().requests.push(command),
        }
    }

    pub(super) fn refusal(
        &self,
        join_ref: Option<&str>,
        reference: Option<&str>,
        topic: &str,
        refusal: &ErrorReply,
    ) -> Frame {
        self.deps.counters.errors.increment(refusal.reason());
        reply(join_ref, reference, topic, &Err::<Empty, _>(refusal))
    }

    /// Sends `frame` after the answers that are still awaited.
    pub(super) fn reply_in_order(&mut self, frame: Frame, shard: &mut ShardContext<'_>) {
        match &mut self.pending {
            Some(pending) if pending.awaits_replies() => {
                pending.replies.push_back(ready(ReadyReply { frame, released: 0 }).boxed());
            }
            _ => self.send(&frame, shard.writer),
        }
    }
}

/// The reply to a message. A response that cannot be JSON is a defect of what made it: the client is told that the server
/// failed.
pub(super) fn reply(
    join_ref: Option<&str>,
    reference: Option<&str>,
    topic: &str,
    outcome: &Result<impl Serialize, impl Serialize>,
) -> Frame {
    let encoded = match outcome {
        Ok(response) => codec::encode_reply(join_ref, reference, topic, Status::Ok, response),
        Err(refusal) => codec::encode_reply(join_ref, reference, topic, Status::Error, refusal),
    };
    encoded.unwrap_or_else(|error| {
        tracing::error!(%topic, %error, "a reply cannot be encoded");
        let refusal = ErrorReply::internal();
        codec::encode_reply(join_ref, reference, topic, Status::Error, &refusal)
            .unwrap_or_else(|error| unreachable!("texts are JSON: {error}"))
    })
}
