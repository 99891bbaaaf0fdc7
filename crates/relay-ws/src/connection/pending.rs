//! [`Pending`]: the pending operations of a connection, which are joins, publishes and commands.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use relay_core::{EventStream, Joined, SubscribeAck};
use relay_events::ErrorBody;

use super::deferred::DeferredMessage;
use crate::codec::Frame;
use crate::config::WsConfig;
use crate::joined_topics::{TopicPlace, TopicRef};

/// The pending operations of a connection. Most connections have none most of the time. Without operations it holds no
/// memory.
#[derive(Default)]
pub(super) struct Pending(Option<Box<Operations>>);

#[derive(Default)]
struct Operations {
    joins: FuturesUnordered<Operation<JoinResult>>,
    /// Publishes, and replies that follow the replies of publishes.
    replies: FuturesOrdered<BoxFuture<'static, ReadyReply>>,
    /// Commands that wait, for instance for a lock. They may take long, so their replies keep no order.
    commands: FuturesUnordered<Operation<ReadyReply>>,
    /// The bytes of all of them.
    bytes: usize,
    deferred: Option<DeferredMessage>,
}

/// A join or a command under way, with the message that it is the answer to.
struct Operation<T> {
    future: BoxFuture<'static, T>,
    request: RequestRef,
}

impl<T> Future for Operation<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.future.as_mut().poll(cx)
    }
}

/// The topic and the ref of a message that a reply is due to.
pub(super) struct RequestRef {
    pub(super) topic: TopicRef,
    pub(super) reference: Option<Arc<str>>,
}

/// The operations that were given up, whose replies are still due.
#[derive(Default)]
pub(super) struct Abandoned {
    pub(super) joins: Vec<RequestRef>,
    pub(super) commands: Vec<RequestRef>,
    pub(super) deferred: Option<DeferredMessage>,
}

/// The bytes that an operation takes beside its content, roughly.
pub(super) const OPERATION_BYTES: usize = 1024;

/// A reply that is complete.
pub(super) struct ReadyReply {
    pub(super) frame: Frame,
    /// The bytes with which its operation was added.
    pub(super) bytes: usize,
}

/// The outcome of a join.
pub(super) struct JoinResult {
    pub(super) topic: TopicRef,
    pub(super) reference: Option<Arc<str>>,
    pub(super) result: Result<Subscribed, ErrorBody>,
    /// The bytes with which the join was added.
    pub(super) bytes: usize,
}

/// The parts of a join that succeeded.
pub(super) struct Subscribed {
    pub(super) ack: SubscribeAck,
    pub(super) events: Box<dyn EventStream>,
    /// The membership, for members that take part in presence.
    pub(super) joined: Option<Joined>,
    pub(super) place: TopicPlace,
}

/// A completed operation.
pub(super) enum Completed {
    Reply(Frame),
    Join(JoinResult),
}

impl Pending {
    /// True without operations and deferred message.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// True while replies are pending that keep their order.
    pub(super) fn awaits_replies(&self) -> bool {
        self.0.as_ref().is_some_and(|operations| !operations.replies.is_empty())
    }

    /// True when another message may be read.
    pub(super) fn has_capacity(&self, config: &WsConfig) -> bool {
        self.0.as_ref().is_none_or(|operations| {
            operations.deferred.is_none()
                && operations.count() < config.max_pending_pushes
                && operations.bytes < config.max_pending_push_bytes
        })
    }

    /// The bytes of all operations and of the deferred message.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |operations| {
            operations.bytes + operations.deferred.as_ref().map_or(0, DeferredMessage::bytes)
        })
    }

    /// Adds a join of `bytes`, which answers `request`.
    pub(super) fn push_join(
        &mut self,
        join: BoxFuture<'static, JoinResult>,
        request: RequestRef,
        bytes: usize,
    ) {
        let operations = self.operations();
        operations.bytes += bytes;
        operations.joins.push(Operation { future: join, request });
    }

    /// Adds a publish of `bytes`.
    pub(super) fn push_publish(&mut self, publish: BoxFuture<'static, ReadyReply>, bytes: usize) {
        let operations = self.operations();
        operations.bytes += bytes;
        operations.replies.push_back(publish);
    }

    /// Adds a command of `bytes`, which answers `request`.
    pub(super) fn push_command(
        &mut self,
        command: BoxFuture<'static, ReadyReply>,
        request: RequestRef,
        bytes: usize,
    ) {
        let operations = self.operations();
        operations.bytes += bytes;
        operations.commands.push(Operation { future: command, request });
    }

    /// Adds a complete reply behind the pending ones.
    pub(super) fn push_reply(&mut self, frame: Frame) {
        let bytes = OPERATION_BYTES + frame.bytes().len();
        self.push_publish(ready(ReadyReply { frame, bytes }).boxed(), bytes);
    }

    /// Sets the deferred message.
    pub(super) fn defer(&mut self, message: DeferredMessage) {
        self.operations().deferred = Some(message);
    }

    /// Takes the deferred message.
    pub(super) fn take_deferred(&mut self) -> Option<DeferredMessage> {
        self.0.as_mut()?.deferred.take()
    }

    /// Returns a completed operation; `None` when there is none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Completed> {
        let operations = self.0.as_mut()?;
        let completed = operations.poll(cx);
        if completed.is_none() && operations.is_empty() {
            self.0 = None;
        }
        completed
    }

    /// Gives up joins, commands and the deferred message, and returns them. Publishes and replies stay. Nothing more is read, so
    /// the bytes of the others need not be counted back.
    pub(super) fn stop(&mut self) -> Abandoned {
        let Some(operations) = &mut self.0 else { return Abandoned::default() };
        Abandoned {
            joins: requests(&mut operations.joins),
            commands: requests(&mut operations.commands),
            deferred: operations.deferred.take(),
        }
    }

    /// Drops all operations and the deferred message.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    fn operations(&mut self) -> &mut Operations {
        self.0.get_or_insert_default()
    }
}

/// Drops the operations, and returns the messages that they would have answered.
fn requests<T>(operations: &mut FuturesUnordered<Operation<T>>) -> Vec<RequestRef> {
    std::mem::take(operations).into_iter().map(|operation| operation.request).collect()
}

impl Operations {
    fn is_empty(&self) -> bool {
        self.count() == 0 && self.deferred.is_none()
    }

    fn count(&self) -> usize {
        self.joins.len() + self.replies.len() + self.commands.len()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Completed> {
        if let Poll::Ready(Some(reply)) = self.replies.poll_next_unpin(cx) {
            self.bytes -= reply.bytes;
            return Some(Completed::Reply(reply.frame));
        }
        if let Poll::Ready(Some(reply)) = self.commands.poll_next_unpin(cx) {
            self.bytes -= reply.bytes;
            return Some(Completed::Reply(reply.frame));
        }
        match self.joins.poll_next_unpin(cx) {
            Poll::Ready(Some(join)) => {
                self.bytes -= join.bytes;
                Some(Completed::Join(join))
            }
            Poll::Ready(None) | Poll::Pending => None,
        }
    }
}
