//! Taking part without a socket: joining, staying, leaving, and reading presence.
//!
//! A participant from which no request comes for a minute is removed, as one whose socket is silent. A client stays by
//! sending a request in time.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use relay_core::{
    Activity, CommandHandler, ConnectionId, JoinOptions, JsonObject, LeaveReason, Membership, Presence,
    StartPosition, UserId,
};
use relay_events::JoinReply;
use relay_presence::UpdateState;
use relay_ws::codec::encode_participants;
use serde::Deserialize;

use super::api::Api;
use super::extract::{DocumentPath, JsonBody, RequestMemory};
use super::problem::Problem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JoinBody {
    user: UserId,
    state: Option<JsonObject>,
    resume: Option<ConnectionId>,
}

pub(super) async fn join(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    memory: RequestMemory,
    JsonBody(body): JsonBody<JoinBody>,
) -> Result<Response, Problem> {
    let JoinBody { user, state, resume } = body;
    let membership = Membership { document, user, connection: ConnectionId::new() };
    let mut options = JoinOptions::default();
    (options.resume, options.state) = (resume, state);
    options.memory = Some(memory.outliving(&api));
    // While the document has a subscriber, its events take their places in the order in which they are published.
    let (_, _subscription) = api.source.subscribe(&membership.document, StartPosition::Live).await?;
    let joined = api.presence().join(&membership, options).await?;
    let reply = JoinReply::new(membership.connection, Some(&joined));
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StayBody {
    user: UserId,
    state: Option<JsonObject>,
}

#[derive(Deserialize)]
pub(super) struct MembershipPath {
    connection: ConnectionId,
}

pub(super) async fn stay(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    path: Result<Path<MembershipPath>, PathRejection>,
    JsonBody(body): JsonBody<StayBody>,
) -> Result<StatusCode, Problem> {
    let (Path(MembershipPath { connection }), StayBody { user, state }) = (path?, body);
    let membership = Membership { document, user, connection };
    let Some(change) = state else {
        if !api.presence().is_joined(&membership) {
            let message = format!(
                "connection {connection} is not in the document, or was silent for too long; join again"
            );
            return Err(Problem::new(StatusCode::NOT_FOUND, "not_joined", message));
        }
        api.presence().touch(&membership, Activity::Alive);
        return Ok(StatusCode::NO_CONTENT);
    };
    api.presence().handle(&membership.into(), UpdateState(change)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeaveQuery {
    user: UserId,
}

pub(super) async fn leave(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    path: Result<Path<MembershipPath>, PathRejection>,
    query: Result<Query<LeaveQuery>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    let (Path(MembershipPath { connection }), Query(LeaveQuery { user })) = (path?, query?);
    api.presence().leave(&Membership { document, user, connection }, LeaveReason::Left);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn presence(State(api): State<Api>, DocumentPath(document): DocumentPath) -> Response {
    let participants = encode_participants(&api.presence().snapshot(&document));
    ([(CONTENT_TYPE, "application/json")], participants).into_response()
}
