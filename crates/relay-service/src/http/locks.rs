//! Locks over HTTP: the requests of the WebSocket protocol, and taking a lock away.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use relay_core::{ConnectionId, DocumentId, FencingToken, JsonText, Membership, UserId};
use relay_presence::held_json;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::problem::Problem;
use super::{Api, Document, JsonBody};

/// Who asks, and what the WebSocket request of the same name takes.
#[derive(Deserialize)]
pub(crate) struct Body {
    user: UserId,
    #[serde(flatten)]
    request: Map<String, Value>,
}

pub(crate) async fn held(State(api): State<Api>, Document(document): Document) -> Response {
    json(&held_json(api.presence.locks(), &document))
}

pub(crate) async fn acquire(
    State(api): State<Api>,
    Document(document): Document,
    JsonBody(body): JsonBody<Body>,
) -> Result<Response, Problem> {
    let Body { user, request } = body;
    let lease = ask(&api, document, user, "lock:acquire", request).await?;
    Ok((StatusCode::CREATED, lease).into_response())
}

#[derive(Deserialize)]
pub(crate) struct TokenPath {
    token: FencingToken,
}

pub(crate) async fn renew(
    State(api): State<Api>,
    Document(document): Document,
    path: Result<Path<TokenPath>, PathRejection>,
    JsonBody(body): JsonBody<Body>,
) -> Result<Response, Problem> {
    let (Path(TokenPath { token }), Body { user, mut request }) = (path?, body);
    request.insert("token".to_owned(), token.get().into());
    ask(&api, document, user, "lock:renew", request).await
}

/// Whose lock is released: one's own, or, by an administrator, anybody's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseQuery {
    user: Option<UserId>,
    #[serde(default)]
    force: bool,
}

pub(crate) async fn release(
    State(api): State<Api>,
    Document(document): Document,
    path: Result<Path<TokenPath>, PathRejection>,
    query: Result<Query<ReleaseQuery>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    let (Path(TokenPath { token }), Query(query)) = (path?, query?);
    let locks = api.presence.locks();
    let released = match query {
        ReleaseQuery { force: true, .. } => locks.force_release(&document, token).await,
        ReleaseQuery { user: Some(user), .. } => locks.release(&document, &user, token).await,
        ReleaseQuery { .. } => {
            let message = "say whose lock it is with `?user=`, or take it away with `?force=true`";
            return Err(Problem::invalid_request(message));
        }
    };
    released.map_err(relay_core::CommandError::from)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn ask(
    api: &Api,
    document: DocumentId,
    user: UserId,
    name: &str,
    request: Map<String, Value>,
) -> Result<Response, Problem> {
    let text = JsonText::parse(Value::Object(request).to_string().into());
    let text = text.map_err(|error| Problem::invalid_request(error.to_string()))?;
    // Locks belong to users, not to connections.
    let membership = Membership { document, user, connection: ConnectionId::new() };
    match relay_presence::request(api.presence.locks(), &membership, name, &text).await {
        Some(Ok(lease)) => Ok(json(&lease)),
        Some(Err(error)) => Err(error.into()),
        None => Err(Problem::invalid_request(format!("there is no request `{name}`"))),
    }
}

fn json(text: &JsonText) -> Response {
    ([(CONTENT_TYPE, "application/json")], text.as_bytes().clone()).into_response()
}
