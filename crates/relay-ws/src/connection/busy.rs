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

use super::{Connection, Env};
use crate::channels::ChannelRef;
use crate::codec::{self, ClientMessage, ClientPayload, Frame, Status};
use crate::error_reply::ErrorReply;
use crate::feed::Feed;
use crate::request::{Identity, JoinReply, JoinWish};

/// The outcome of a join.
pub(super) struct JoinResult {
    channel: ChannelRef,
    reference: Option<Arc<str>>,
    /// The stream of events, and the membership where one was wanted.
    result: Result<(SubscribeAck, Box<dyn EventStream>, Option<Joined>), ErrorReply>,
}

/// An answer that waits for its turn, so that answers come in the order of what they answer.
pub(super) struct Answer {
    frame: Frame,
    /// Bytes of the payload whose publishing is over now.
    released: usize,
}

/// A message whose turn has not come: one for a topic whose join is still being made, or a join while answers are awaited.
/// Nothing is read until it is dealt with.
pub(super) enum Parked {
    Text(String),
    Binary(Vec<u8>),
}

#[derive(Default)]
pub(super) struct Busy {
    joins: FuturesUnordered<BoxFuture<'static, JoinResult>>,
    answers: FuturesOrdered<BoxFuture<'static, Answer>>,
    /// Requests that wait for something, a lock for instance. They keep no order: their answers may take long.
    requests: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Bytes of the payloads that are being published.
    pending_bytes: usize,
    pub(super) parked: Option<Parked>,
}

impl Busy {
    fn is_over(&self) -> bool {
        self.joins.is_empty() && self.answers.is_empty() && self.requests.is_empty() && self.parked.is_none()
    }

    /// Whether answers are awaited that keep their order.
    pub(super) fn awaits_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// How many things are under way, and the bytes of what is being published.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.joins.len() + self.answers.len() + self.requests.len(), self.pending_bytes)
    }

    /// The server stops: what has not begun does not begin any more.
    pub(super) fn stop(&mut self) {
        self.parked = None;
        self.joins.clear();
        self.requests.clear();
    }
}

/// The response of replies that have nothing to say.
#[derive(Serialize)]
pub(super) struct Empty {}

impl Connection {
    pub(super) fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Writes the answers that are there now. Returns whether there were any.
    pub(super) fn collect_answers(&mut self, env: &mut Env<'_>, cx: &mut Context<'_>) -> bool {
        let Some(mut busy) = self.busy.take() else { return false };
        let mut any = false;
        while let Poll::Ready(Some(answer)) = busy.answers.poll_next_unpin(cx) {
            busy.pending_bytes -= answer.released;
            self.send(&answer.frame, env.pen);
            any = true;
        }
        while let Poll::Ready(Some(answer)) = busy.requests.poll_next_unpin(cx) {
            self.send(&answer.frame, env.pen);
            any = true;
        }
        while let Poll::Ready(Some(joined)) = busy.joins.poll_next_unpin(cx) {
            self.finish_join(joined, env);
            any = true;
        }
        if !busy.is_over() {
            self.busy = Some(busy);
        }
        any
    }

    /// Subscribes to the document of `channel`, and takes a membership in it if that is wanted.
    pub(super) fn join(&mut self, channel: ChannelRef, reference: Option<&str>, wish: Box<JoinWish>) {
        let source = Arc::clone(&self.shared.backend.source);
        let presence = self.shared.backend.presence.clone().filter(|_| wish.presence);
        let membership = self.membership(&channel.document);
        let reference = reference.map(Arc::from);
        let joining = async move {
            let outcome = async {
                let (ack, events) = source.subscribe(&channel.document, wish.start).await.map_err(|error| {
                    if error.code() == ErrorCode::LogFailed {
                        tracing::warn!(document = %channel.document, %error, "a join failed: the history cannot be read");
                    }
                    ErrorReply::from(&error)
                })?;
                let joined = match presence {
                    Some(presence) => Some(presence.join(&membership, wish.options).await?),
                    None => None,
                };
                Ok((ack, events, joined))
            };
            let result = outcome.await;
            JoinResult { channel, reference, result }
        };
        self.busy().joins.push(joining.boxed());
    }

    fn finish_join(&mut self, joined: JoinResult, env: &mut Env<'_>) {
        let JoinResult { channel, reference, result } = joined;
        let (join_ref, reference) = (channel.join_ref.as_deref(), reference.as_deref());
        match result {
            Ok((ack, events, joined)) => {
                self.shared.counters.joins.increment();
                self.shared.directory.enter(&channel.document);
                let Identity { user, connection, .. } = &self.identity;
                let response = JoinReply {
                    ack,
                    user,
                    connection: *connection,
                    session: joined.as_ref().map(|joined| joined.session),
                    locks: joined.as_ref().map(|joined| &*joined.locks),
                };
                let frame = reply(join_ref, reference, &channel.topic(), &Ok::<_, ErrorReply>(response));
                self.send(&frame, env.pen);
                let session = joined.as_ref().map(|joined| joined.session);
                let presence = joined.map(|joined| joined.presence);
                self.channels.opened(&channel, session, Feed::new(events, presence));
            }
            Err(refusal) => {
                let frame = self.refusal(join_ref, reference, &channel.topic(), &refusal);
                self.send(&frame, env.pen);
                self.channels.failed(&channel);
            }
        }
    }

    pub(super) fn publish(
        &mut self,
        channel: ChannelRef,
        reference: Option<&str>,
        draft: CheckedDraft,
        env: &mut Env<'_>,
        cx: &mut Context<'_>,
    ) {
        let (sink, counters) = (Arc::clone(&self.shared.backend.sink), Arc::clone(&self.shared.counters));
        let reference: Option<Arc<str>> = reference.map(Arc::from);
        let released = draft.payload.len();
        let answer = async move {
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
            Answer { frame, released }
        };
        let mut answer = answer.boxed();
        // The first poll puts the draft into the sink's queue, behind those of the pushes before it.
        match answer.poll_unpin(cx) {
            Poll::Pending => {
                let busy = self.busy();
                busy.pending_bytes += released;
                busy.answers.push_back(answer);
            }
            Poll::Ready(Answer { frame, .. }) => self.answer(frame, env),
        }
    }

    /// Carries out a command of the participant, whose arguments are the payload of `message`.
    pub(super) fn command(
        &mut self,
        channel: ChannelRef,
        message: &ClientMessage<'_>,
        env: &mut Env<'_>,
        cx: &mut Context<'_>,
    ) {
        if matches!(message.payload, ClientPayload::Binary(_)) {
            let refusal = ErrorReply::unknown_event(&message.event);
            let (join_ref, reference) = (message.join_ref.as_deref(), message.reference.as_deref());
            let frame = self.refusal(join_ref, reference, &channel.topic(), &refusal);
            return self.answer(frame, env);
        }
        let commands = Arc::clone(&self.shared.backend.commands);
        let counters = Arc::clone(&self.shared.counters);
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
            Answer { frame, released: 0 }
        };
        let mut command = command.boxed();
        match command.poll_unpin(cx) {
            Poll::Ready(Answer { frame, .. }) => self.answer(frame, env),
            Poll::Pending => self.busy().requests.push(command),
        }
    }

    pub(super) fn refusal(
        &self,
        join_ref: Option<&str>,
        reference: Option<&str>,
        topic: &str,
        refusal: &ErrorReply,
    ) -> Frame {
        self.shared.counters.errors.increment(refusal.reason());
        reply(join_ref, reference, topic, &Err::<Empty, _>(refusal))
    }

    /// Sends `frame` after the answers that are still awaited.
    pub(super) fn answer(&mut self, frame: Frame, env: &mut Env<'_>) {
        match &mut self.busy {
            Some(busy) if busy.awaits_answers() => {
                busy.answers.push_back(ready(Answer { frame, released: 0 }).boxed());
            }
            _ => self.send(&frame, env.pen),
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
