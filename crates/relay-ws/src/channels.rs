//! The topics that one connection has joined, as a state machine: it is handed a message and says what has to be
//! done. It does no I/O; the connection does what it says.

use std::sync::Arc;
use std::task::{Context, Poll};

use relay_core::{DocumentId, Draft, Event, EventStream, Start, StreamError};

use crate::codec::ClientMessage;
use crate::request::{self, Identity, Refusal};
use crate::rooms::Membership;

/// A topic that was joined, and the `ref` of that join. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelRef {
    pub(crate) topic: Arc<str>,
    pub(crate) join_ref: Option<Arc<str>>,
}

struct Channel {
    name: ChannelRef,
    document: DocumentId,
    /// None while the join is being made.
    live: Option<Live>,
}

/// What a channel has once it is joined. Dropped, it ends the subscription and leaves the room.
pub(crate) struct Live {
    pub(crate) stream: Box<dyn EventStream>,
    pub(crate) _membership: Membership,
}

/// What has to be done for a message.
pub(crate) enum Action {
    /// Reply to a heartbeat.
    Heartbeat,
    /// Subscribe to the document, then reply. `replaced` is the channel that this join closes.
    Join { channel: ChannelRef, document: DocumentId, start: Start, replaced: Option<ChannelRef> },
    /// Reply ok, then close the channel if there was one.
    Leave { closed: Option<ChannelRef> },
    /// Publish the draft and reply how it went.
    Publish { channel: ChannelRef, draft: Box<Draft> },
    /// Reply with an error.
    Refuse(Refusal),
    /// Nothing: the message belongs to a channel that was closed while it was on its way.
    Ignore,
    /// Keep the message until the join of its topic is made, and take no other before.
    Park,
}

/// What a channel's stream gave.
pub(crate) enum Delivery {
    /// An event to send.
    Event(Arc<Event>),
    /// The stream ended, and the channel with it. Without a cause the source is stopping.
    Ended { channel: ChannelRef, cause: Option<StreamError> },
}

#[derive(Default)]
pub(crate) struct Channels {
    list: Vec<Channel>,
    /// Whose turn it is to deliver.
    turn: usize,
}

impl Channels {
    /// What `message` asks for. Closed and new channels are taken note of here.
    pub(crate) fn receive(
        &mut self,
        message: &ClientMessage<'_>,
        identity: &Identity,
        max_topics: usize,
    ) -> Action {
        if message.topic == "phoenix" {
            return match message.event.as_ref() {
                "heartbeat" => Action::Heartbeat,
                _ => Action::Refuse(Refusal::UNMATCHED_TOPIC),
            };
        }
        let joined = self.list.iter().position(|channel| *channel.name.topic == *message.topic);
        if joined.is_some_and(|at| self.list[at].live.is_none()) {
            return Action::Park;
        }
        match (message.event.as_ref(), joined) {
            ("phx_join", joined) => self.join(message, joined, max_topics),
            ("phx_leave", None) => Action::Leave { closed: None },
            (_, None) => Action::Refuse(Refusal::UNMATCHED_TOPIC),
            (_, Some(at)) if self.list[at].name.join_ref.as_deref() != message.join_ref.as_deref() => {
                Action::Ignore
            }
            ("phx_leave", Some(at)) => Action::Leave { closed: Some(self.list.remove(at).name) },
            (_, Some(at)) => {
                let channel = &self.list[at];
                match request::draft(message, &channel.document, identity) {
                    Ok(draft) => Action::Publish { channel: channel.name.clone(), draft: Box::new(draft) },
                    Err(refusal) => Action::Refuse(refusal),
                }
            }
        }
    }

    fn join(&mut self, message: &ClientMessage<'_>, joined: Option<usize>, max_topics: usize) -> Action {
        let wanted = request::document(&message.topic)
            .and_then(|document| Ok((document, request::start(message.payload)?)));
        let (document, start) = match wanted {
            Ok(wanted) => wanted,
            Err(refusal) => return Action::Refuse(refusal),
        };
        if joined.is_none() && self.list.len() >= max_topics {
            return Action::Refuse(Refusal::too_many_channels(max_topics));
        }
        let replaced = joined.map(|at| self.list.remove(at).name);
        let channel = ChannelRef {
            topic: Arc::from(message.topic.as_ref()),
            join_ref: message.join_ref.as_deref().map(Arc::from),
        };
        self.list.push(Channel { name: channel.clone(), document: document.clone(), live: None });
        Action::Join { channel, document, start, replaced }
    }

    /// The join of `channel` was made.
    pub(crate) fn opened(&mut self, channel: &ChannelRef, live: Live) {
        if let Some(channel) = self.list.iter_mut().find(|one| one.name == *channel) {
            channel.live = Some(live);
        }
    }

    /// The join of `channel` failed.
    pub(crate) fn failed(&mut self, channel: &ChannelRef) {
        self.list.retain(|one| one.name != *channel);
    }

    /// The next thing that a joined channel has, each channel in its turn.
    pub(crate) fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Delivery> {
        for step in 0..self.list.len() {
            let at = (self.turn + step) % self.list.len();
            let Some(live) = &mut self.list[at].live else { continue };
            let Poll::Ready(next) = live.stream.poll_next(cx) else { continue };
            self.turn = at + 1;
            let cause = match next {
                Some(Ok(event)) => return Poll::Ready(Delivery::Event(event)),
                Some(Err(error)) => Some(error),
                None => None,
            };
            let channel = self.list.remove(at).name;
            return Poll::Ready(Delivery::Ended { channel, cause });
        }
        Poll::Pending
    }

    /// The joined channels.
    pub(crate) fn joined(&self) -> impl Iterator<Item = &ChannelRef> {
        self.list.iter().filter(|channel| channel.live.is_some()).map(|channel| &channel.name)
    }
}
