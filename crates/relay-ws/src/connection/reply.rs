//! The replies to a client's messages.

use relay_core::ErrorCode;
use relay_events::ErrorBody;
use serde::Serialize;

use crate::codec::{self, ClientMessage, Frame, Status};

/// The response of a reply without content.
#[derive(Serialize)]
pub(super) struct Empty {}

/// The fields by which a client finds the message that a reply belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyTo<'a> {
    pub(super) join_ref: Option<&'a str>,
    pub(super) reference: Option<&'a str>,
    pub(super) topic: &'a str,
}

impl<'a> ReplyTo<'a> {
    /// The address of a reply to `message`.
    pub(super) fn message(message: &'a ClientMessage<'_>) -> Self {
        Self {
            join_ref: message.join_ref.as_deref(),
            reference: message.reference.as_deref(),
            topic: &message.topic,
        }
    }

    /// Encodes a reply to a request that succeeded.
    pub(super) fn ok(self, response: &impl Serialize) -> Frame {
        self.encode(Status::Ok, response)
    }

    /// Encodes a reply that refuses the request.
    pub(super) fn error(self, error: &ErrorBody) -> Frame {
        self.encode(Status::Error, error)
    }

    /// Encodes a reply. A response that cannot be JSON is a defect of the server, so the client gets an internal error.
    fn encode(self, status: Status, response: &impl Serialize) -> Frame {
        let Self { join_ref, reference, topic } = self;
        codec::encode_reply(join_ref, reference, topic, status, response).unwrap_or_else(|error| {
            tracing::error!(%topic, %error, "a reply cannot be encoded");
            let internal = ErrorBody::from_code(ErrorCode::Internal, error);
            codec::encode_reply(join_ref, reference, topic, Status::Error, &internal)
                .unwrap_or_else(|error| unreachable!("texts are JSON: {error}"))
        })
    }
}
