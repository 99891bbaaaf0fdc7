//! `GET /v1/sessions` and `GET /v1/documents/{id}/session`: the live sessions.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use relay_core::{DocumentId, UserId};
use relay_presence::{SessionInfo, SessionQuery, SessionState};
use serde::Deserialize;

use super::api::Api;
use super::extract::DocumentPath;
use super::problem::Problem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    document: Option<DocumentId>,
    user: Option<UserId>,
    state: Option<String>,
}

pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<SessionInfo>>, Problem> {
    let Query(ListQuery { document, user, state }) = query?;
    let state = state.as_deref().map(state_of).transpose()?;
    let mut query = SessionQuery::default();
    (query.document, query.user, query.state) = (document, user, state);
    Ok(Json(api.presence().sessions(&query)))
}

fn state_of(name: &str) -> Result<SessionState, Problem> {
    SessionState::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| {
        let names: Vec<&str> = SessionState::ALL.into_iter().map(SessionState::as_str).collect();
        let name: String = name.chars().take(32).collect();
        Problem::invalid_request(format!("there is no state `{name}`; known are {}", names.join(", ")))
    })
}

pub(super) async fn of_document(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
) -> Result<Json<SessionInfo>, Problem> {
    let no_session = || {
        let message = format!("nobody is in `{document}`, so it has no session");
        Problem::new(StatusCode::NOT_FOUND, "no_session", message)
    };
    api.presence().session(&document).map(Json).ok_or_else(no_session)
}
