//! The rules in force: reading them, replacing all of them, and dry runs.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{CONTENT_TYPE, ETAG, IF_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use relay_core::{Actor, DocumentId, Draft, Epoch, Metadata, Seq, Timestamp};
use relay_router::rules::{RuleDocument, RuleFormat, RuleSetError};
use relay_router::{ActiveRules, DryRun, RulesError};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::api::Api;
use super::extract::{JsonBody, RequestMemory, media_type, read_body};
use super::problem::Problem;
use super::routing::router;

const TOML: &str = "application/toml";
const JSON: &str = "application/json";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/rules", get(show).put(replace).delete(reset))
        .route("/v1/rules/dry-run", post(dry_run))
}

async fn show(State(api): State<Api>) -> Result<Response, Problem> {
    respond(router(&api)?.rules())
}

/// Responds with the rules as they were written. The entity tag is their version, with which they can be replaced.
fn respond(rules: ActiveRules) -> Result<Response, Problem> {
    let content_type = match rules.document.format {
        RuleFormat::Json => JSON,
        _ => TOML,
    };
    let mut response = rules.document.text.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let tag = HeaderValue::try_from(format!("\"{}\"", rules.version));
    headers.insert(ETAG, tag.map_err(Problem::internal)?);
    Ok(response)
}

async fn replace(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let expected = expected(request.headers())?;
    let format = match media_type(request.headers()) {
        TOML => RuleFormat::Toml,
        JSON => RuleFormat::Json,
        _ => {
            let message =
                "send the rules as TOML or JSON, with `content-type: application/toml` or `application/json`";
            return Err(Problem::unsupported_media_type(message));
        }
    };
    let memory = RequestMemory::of(request.extensions(), &api);
    let body = read_body(request.into_body(), &api.config, &memory).await?;
    let text = String::from_utf8(body.to_vec());
    let text = text.map_err(|_| Problem::invalid_request("the rules are not UTF-8"))?;
    respond(router(&api)?.put_rules(RuleDocument { text, format }, expected).await?)
}

async fn reset(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Problem> {
    respond(router(&api)?.reset_rules(expected(&headers)?).await?)
}

/// Reads the version that the client wants to replace, where it names one.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(tag) = headers.get(IF_MATCH).filter(|tag| *tag != "*") else { return Ok(None) };
    let version = tag.to_str().ok().and_then(|tag| tag.trim().trim_matches('"').parse().ok());
    version.map(Some).ok_or_else(|| {
        Problem::invalid_request("`If-Match` must be the `ETag` of `GET /v1/rules`, for instance `\"3\"`")
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DryRunBody {
    event: DryEvent,
    /// Rules in TOML that are tried instead of those in force.
    rules: Option<String>,
}

/// A possible event.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DryEvent {
    document: DocumentId,
    kind: String,
    payload: Box<RawValue>,
    #[serde(default)]
    actor: Option<Actor>,
    #[serde(default)]
    metadata: Metadata,
}

async fn dry_run(
    State(api): State<Api>,
    JsonBody(body): JsonBody<DryRunBody>,
) -> Result<Json<DryRun>, Problem> {
    let DryEvent { document, kind, payload, actor, metadata } = body.event;
    let kind = relay_events::kind(&kind)?;
    let payload = relay_core::Payload::json(&payload).map_err(Problem::invalid_request)?;
    let draft = Draft::new(document, kind, payload).actor(actor.unwrap_or(Actor::System)).metadata(metadata);
    let event = draft.into_event(Epoch::from_u64(0), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    let rules = body.rules.map(|text| RuleDocument { text, format: RuleFormat::Toml });
    Ok(Json(router(&api)?.dry_run(&event, rules.as_ref())?))
}

impl From<RuleSetError> for Problem {
    fn from(error: RuleSetError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_rules", error.to_string())
    }
}

impl From<RulesError> for Problem {
    fn from(error: RulesError) -> Self {
        match error {
            RulesError::Invalid(error) => error.into(),
            RulesError::Store(error) => error.into(),
            RulesError::Conflict { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, "version_conflict", error.to_string())
            }
            error => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_rules", error.to_string()),
        }
    }
}
