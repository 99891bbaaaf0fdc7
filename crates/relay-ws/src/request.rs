//! What a client asks for on a topic, parsed: the document, where a join starts, the draft of a push; and the
//! bodies of the answers. Pure: values in, values out.

use relay_core::{
    Actor, CheckedDraft, CommandError, ConnectionId, DocumentId, Draft, Epoch, ErrorCode, JoinError,
    JoinOptions, JsonText, Lease, PublishError, Seq, SessionId, StartPosition, SubscribeAck, SubscribeError,
    UserId,
};
use relay_events::json::{self, JsonError};
use relay_events::{PayloadError, check, kind};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::codec::{ClientMessage, ClientPayload};

/// How the topics of documents begin.
pub(crate) const TOPIC_PREFIX: &str = "document:";
/// The event whose payload is a whole draft.
const PUBLISH: &str = "publish";

/// The most characters of an error's message, which may quote what the client sent.
const MAX_MESSAGE_CHARS: usize = 512;

/// The first characters of a text that came from outside.
pub(crate) fn excerpt(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) connection: ConnectionId,
    pub(crate) user: UserId,
}

/// Why something that was asked for is not done: the body of an error reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Refusal {
    /// A short stable name, documented in the protocol.
    pub(crate) reason: &'static str,
    /// What was wrong, with which value, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// The user who stands in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) holder: Option<UserId>,
}

impl Refusal {
    pub(crate) const UNMATCHED_TOPIC: Self = Self { reason: "unmatched topic", message: None, holder: None };

    fn new(reason: &'static str, message: &impl ToString) -> Self {
        Self { reason, message: Some(excerpt(&message.to_string(), MAX_MESSAGE_CHARS)), holder: None }
    }

    fn invalid_request(message: &impl ToString) -> Self {
        Self::new(ErrorCode::InvalidRequest.as_str(), message)
    }

    pub(crate) fn unknown_event(name: &str) -> Self {
        let name = excerpt(name, 64);
        Self::new(ErrorCode::UnknownEvent.as_str(), &format!("there is no request `{name}` on this topic"))
    }

    /// Who takes no part in presence has nothing to ask of it.
    pub(crate) fn no_participant() -> Self {
        Self::new(
            ErrorCode::NotJoined.as_str(),
            &"this member takes no part in presence; join without `presence: false` to ask for this",
        )
    }

    /// A defect of the server; its log says which.
    pub(crate) fn internal() -> Self {
        Self::new(
            ErrorCode::Internal.as_str(),
            &"the server failed to answer; try again, or ask its operator",
        )
    }

    pub(crate) fn too_many_channels(max: usize) -> Self {
        Self::new(
            "too many channels joined",
            &format!("this connection has joined {max} topics, the most it may; leave one first"),
        )
    }
}

/// What the log says about its disk is for operators; clients learn that it failed.
const LOG_FAILED: &str = "the log does not take or give events at the moment; try again later";

impl From<&PublishError> for Refusal {
    fn from(error: &PublishError) -> Self {
        match error.code() {
            code @ ErrorCode::LogFailed => Self::new(code.as_str(), &LOG_FAILED),
            code => Self { holder: error.holder().cloned(), ..Self::new(code.as_str(), error) },
        }
    }
}

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Refused(error) => error.into(),
            error => Self::new(error.code().as_str(), &error),
        }
    }
}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        Self { holder: error.holder.clone(), ..Self::new(error.code.as_str(), &error) }
    }
}

impl From<&SubscribeError> for Refusal {
    fn from(error: &SubscribeError) -> Self {
        match error.code() {
            code @ ErrorCode::LogFailed => Self::new(code.as_str(), &LOG_FAILED),
            code => Self::new(code.as_str(), error),
        }
    }
}

impl From<PayloadError> for Refusal {
    fn from(error: PayloadError) -> Self {
        Self::new(error.code().as_str(), &error)
    }
}

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Self {
        Self::new(error.code().as_str(), &error)
    }
}

/// The topic of a document.
pub(crate) fn topic(document: &DocumentId) -> String {
    format!("{TOPIC_PREFIX}{document}")
}

/// The id in a document's topic, whether it is valid or not.
pub(crate) fn document_id(topic: &str) -> Option<&str> {
    topic.strip_prefix(TOPIC_PREFIX)
}

/// The document that `topic` names.
pub(crate) fn document(topic: &str) -> Result<DocumentId, Refusal> {
    let id = document_id(topic).ok_or(Refusal::UNMATCHED_TOPIC)?;
    DocumentId::new(id).map_err(|error| Refusal::invalid_request(&error))
}

/// What a join wants.
#[derive(Debug)]
pub(crate) struct JoinWish {
    pub(crate) start: StartPosition,
    pub(crate) presence: bool,
    pub(crate) options: JoinOptions,
}

/// What a join wants, by its payload.
pub(crate) fn join_wish(payload: ClientPayload<'_>) -> Result<JoinWish, Refusal> {
    #[derive(Deserialize)]
    struct Params<'a> {
        #[serde(default)]
        epoch: Option<Epoch>,
        #[serde(default)]
        seq: Option<Seq>,
        #[serde(default)]
        presence: Option<bool>,
        #[serde(default)]
        resume: Option<ConnectionId>,
        #[serde(default, borrow)]
        state: Option<&'a RawValue>,
    }
    let ClientPayload::Json(raw) = payload else {
        return Err(Refusal::invalid_request(&"the payload of a join is a JSON object, not binary data"));
    };
    let params: Params<'_> = serde_json::from_str(raw.get())
        .map_err(|error| Refusal::invalid_request(&format!("join payload: {error}")))?;
    let start = match (params.epoch, params.seq) {
        (None, None) => StartPosition::Live,
        (epoch, Some(seq)) => StartPosition::After { epoch, seq },
        (Some(_), None) => {
            return Err(Refusal::invalid_request(
                &"join payload: `epoch` without `seq`; give both, or neither for live events alone",
            ));
        }
    };
    let options = JoinOptions {
        resume: params.resume,
        state: params.state.map(JsonText::from_raw),
        exempt_from_timeout: false,
    };
    Ok(JoinWish { start, presence: params.presence.unwrap_or(true), options })
}

/// The draft that a push on the topic of `document` is, by the connection's user, as part of `session`.
pub(crate) fn draft(
    message: &ClientMessage<'_>,
    document: &DocumentId,
    identity: &Identity,
    session: Option<SessionId>,
) -> Result<CheckedDraft, Refusal> {
    let draft = match message.payload {
        ClientPayload::Json(raw) if message.event == PUBLISH => {
            json::decode_draft(document, raw.get().as_bytes())?
        }
        payload => check(Draft::new(document.clone(), kind(&message.event)?, payload.to_payload()))?,
    };
    let mut draft = draft.actor(Actor::User(identity.user.clone()));
    if let Some(session) = session {
        draft = draft.session(session);
    }
    if !draft.kind.is_durable() && draft.key.is_none() {
        draft = draft.key(identity.connection.to_string());
    }
    Ok(draft)
}

/// The body of the reply to a join.
#[derive(Debug, Serialize)]
pub(crate) struct JoinReply<'a> {
    #[serde(flatten)]
    pub(crate) ack: SubscribeAck,
    pub(crate) user: &'a UserId,
    pub(crate) connection: ConnectionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) locks: Option<&'a [Lease]>,
}
