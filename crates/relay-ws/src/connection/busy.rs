//! What a connection has under way: joins, publishes, requests. Boxed and made when it is needed, since most connections
//! have nothing under way most of the time.

use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use relay_core::{Draft, ErrorCode, EventStream, Joined, SubscribeAck, SubscribeError};
use serde::Serialize;

use super::{Connection, Env};
use crate::channels::ChannelRef;
use crate::codec::{self, ClientMessage, ClientPayload, Frame, Status};
use crate::feed::Feed;
use crate::request::{Identity, JoinReply, JoinWish, Refusal};

/// A subscription that was asked for.
pub(super) struct SubscribeResult {
    channel: ChannelRef,
    reference: Option<Arc<str>>,
    wish: Box<JoinWish>,
    result: Result<(SubscribeAck, Box<dyn EventStream>), SubscribeError>,
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
    joins: FuturesUnordered<BoxFuture<'static, SubscribeResult>>,
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

    /// Subscribes to what `channel` is to give.
    pub(super) fn join(&mut self, channel: ChannelRef, reference: Option<&str>, wish: Box<JoinWish>) {
        let source = Arc::clone(&self.shared.backend.source);
        let reference = reference.map(Arc::from);
        let joining = async move {
            let result = source.subscribe(&channel.document, wish.start).await;
            SubscribeResult { channel, reference, wish, result }
        };
        self.busy().joins.push(joining.boxed());
    }

    fn finish_join(&mut self, joined: SubscribeResult, env: &mut Env<'_>) {
        let SubscribeResult { channel, reference, wish, result } = joined;
        let joined = result.map_err(|error| {
            let refusal = Refusal::from(&error);
            if error.code() == ErrorCode::LogFailed {
                tracing::warn!(document = %channel.document, %error, "a join failed: the history cannot be read");
            }
            refusal
        });
        let joined = joined.and_then(|(ack, events)| Ok((ack, events, self.attend(&channel, *wish)?)));
        let (join_ref, reference) = (channel.join_ref.as_deref(), reference.as_deref());
        match joined {
            Ok((ack, events, joined)) => {
                self.shared.counters.joins.increment();
                self.shared.directory.enter(&channel.document);
                let Identity { user, connection, .. } = &self.identity;
                let reply = JoinReply {
                    ack,
                    user,
                    connection: *connection,
                    session: joined.as_ref().map(|joined| joined.session),
                    locks: joined.as_ref().map(|joined| &joined.locks),
                };
                let frame = codec::encode_reply(join_ref, reference, &channel.topic(), Status::Ok, &reply);
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

    /// Takes a membership in the document, if that is wanted and there are any.
    fn attend(&self, channel: &ChannelRef, wish: JoinWish) -> Result<Option<Joined>, Refusal> {
        match &self.shared.backend.presence {
            Some(presence) if wish.presence => {
                Ok(Some(presence.join(&self.membership(&channel.document), wish.options)?))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn publish(
        &mut self,
        channel: ChannelRef,
        reference: Option<&str>,
        draft: Draft,
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
                    codec::encode_reply(join_ref, reference.as_deref(), &topic, Status::Ok, &ack)
                }
                Err(error) => {
                    let refusal = Refusal::from(&error);
                    if error.code() == ErrorCode::LogFailed {
                        tracing::warn!(%topic, %error, "a push failed: the log did not take it");
                    }
                    counters.errors.increment(refusal.reason);
                    codec::encode_reply(join_ref, reference.as_deref(), &topic, Status::Error, &refusal)
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

    /// Asks whoever knows of participants. `None` when nobody knows such a request.
    pub(super) fn request(
        &mut self,
        channel: ChannelRef,
        message: &ClientMessage<'_>,
        env: &mut Env<'_>,
        cx: &mut Context<'_>,
    ) {
        let (join_ref, reference) = (message.join_ref.as_deref(), message.reference.as_deref());
        let topic = channel.topic();
        let (Some(presence), ClientPayload::Json(_)) = (&self.shared.backend.presence, message.payload)
        else {
            let refusal = Refusal::unknown_event(&message.event);
            let frame = self.refusal(join_ref, reference, &topic, &refusal);
            return self.answer(frame, env);
        };
        let (presence, counters) = (Arc::clone(presence), Arc::clone(&self.shared.counters));
        let payload = message.payload.to_json();
        let membership = self.membership(&channel.document);
        let name = message.event.as_ref().to_owned();
        let reference: Option<Arc<str>> = reference.map(Arc::from);
        let request = async move {
            let outcome = match presence.request(&membership, &name, &payload).await {
                Some(outcome) => outcome.map_err(Refusal::from),
                None => Err(Refusal::unknown_event(&name)),
            };
            let (join_ref, reference) = (channel.join_ref.as_deref(), reference.as_deref());
            let frame = match outcome {
                Ok(response) => {
                    counters.requests.increment();
                    codec::encode_reply(join_ref, reference, &topic, Status::Ok, &response)
                }
                Err(refusal) => {
                    counters.errors.increment(refusal.reason);
                    codec::encode_reply(join_ref, reference, &topic, Status::Error, &refusal)
                }
            };
            Answer { frame, released: 0 }
        };
        let mut request = request.boxed();
        match request.poll_unpin(cx) {
            Poll::Ready(Answer { frame, .. }) => self.answer(frame, env),
            Poll::Pending => self.busy().requests.push(request),
        }
    }

    pub(super) fn refusal(
        &self,
        join_ref: Option<&str>,
        reference: Option<&str>,
        topic: &str,
        refusal: &Refusal,
    ) -> Frame {
        self.shared.counters.errors.increment(refusal.reason);
        codec::encode_reply(join_ref, reference, topic, Status::Error, refusal)
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
