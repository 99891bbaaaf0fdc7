//! The parsed requests of a client on a topic: the document, the options of a join, and the draft of a push. The response to
//! a join is here too. Nothing here does I/O.

use relay_core::{
    Actor, CheckedDraft, ConnectionId, DocumentId, Draft, Epoch, JoinOptions, JsonObject, Seq, SessionId,
    StartPosition, SubscribeAck, UserId,
};
use relay_events::{ErrorBody, JoinReply, check, json, kind};
use serde::{Deserialize, Serialize};

use crate::codec::{self, ClientMessage, ClientPayload};
use crate::refusal;

/// The event whose payload is a whole draft.
const PUBLISH: &str = "publish";

/// The identity of the client of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) connection: ConnectionId,
    pub(crate) user: UserId,
}

/// The document that `topic` names.
pub(crate) fn document(topic: &str) -> Result<DocumentId, ErrorBody> {
    let id = codec::document_id(topic).ok_or(refusal::UNMATCHED_TOPIC)?;
    DocumentId::new(id).map_err(refusal::invalid_request)
}

/// The options of a join.
#[derive(Debug)]
pub(crate) struct JoinRequest {
    pub(crate) start: StartPosition,
    /// True when the member takes part in presence.
    pub(crate) presence: bool,
    pub(crate) options: JoinOptions,
}

/// Reads the options of a join from its payload.
pub(crate) fn join_request(payload: ClientPayload<'_>) -> Result<JoinRequest, ErrorBody> {
    #[derive(Deserialize)]
    struct Params {
        #[serde(default)]
        epoch: Option<Epoch>,
        #[serde(default)]
        seq: Option<Seq>,
        #[serde(default)]
        presence: Option<bool>,
        #[serde(default)]
        resume: Option<ConnectionId>,
        #[serde(default)]
        state: Option<JsonObject>,
    }
    let ClientPayload::Json(raw) = payload else {
        return Err(refusal::invalid_request("the payload of a join must be a JSON object, not binary data"));
    };
    let params: Params = serde_json::from_str(raw.get())
        .map_err(|error| refusal::invalid_request(format_args!("join payload: {error}")))?;
    let start = match (params.epoch, params.seq) {
        (None, None) => StartPosition::Live,
        (epoch, Some(seq)) => StartPosition::After { epoch, seq },
        (Some(_), None) => {
            return Err(refusal::invalid_request(
                "join payload: `epoch` needs `seq`; give both, or neither for live events alone",
            ));
        }
    };
    let mut options = JoinOptions::default();
    (options.resume, options.state) = (params.resume, params.state);
    // The socket's own timeout finds a silent client. A second one could only disagree with it.
    options.exempt_from_timeout = true;
    Ok(JoinRequest { start, presence: params.presence.unwrap_or(true), options })
}

/// Reads the draft of a push on the topic of `document`. Its actor is the connection's user, and its session `session`.
pub(crate) fn draft(
    message: &ClientMessage<'_>,
    document: &DocumentId,
    identity: &Identity,
    session: Option<SessionId>,
) -> Result<CheckedDraft, ErrorBody> {
    // Before the check, which admits some drafts for their actor.
    let actor = Actor::User(identity.user.clone());
    let mut draft = match message.payload {
        ClientPayload::Json(raw) if message.event == PUBLISH => {
            json::decode_draft_by(actor, document, raw.get().as_bytes())?
        }
        payload => {
            check(Draft::new(document.clone(), kind(&message.event)?, payload.to_payload()).actor(actor))?
        }
    };
    if let Some(session) = session {
        draft = draft.session(session);
    }
    if draft.kind.is_ephemeral() && draft.key.is_none() {
        draft = draft.key(identity.connection.to_string());
    }
    Ok(draft)
}

/// The response to a join of a topic.
#[derive(Debug, Serialize)]
pub(crate) struct TopicJoinReply<'a> {
    #[serde(flatten)]
    pub(crate) ack: SubscribeAck,
    pub(crate) user: &'a UserId,
    #[serde(flatten)]
    pub(crate) join: JoinReply<'a>,
}
