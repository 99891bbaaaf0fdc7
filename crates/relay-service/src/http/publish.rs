//! `POST /v1/documents/{id}/events`: one draft, or a batch of them.
//!
//! The content type names the form: `application/json`, `application/cloudevents+json`, or
//! `application/cloudevents-batch+json`. A plain form is refused, since browsers send it for pages of other sites without
//! asking.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{FuturesOrdered, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use relay_core::{CheckedDraft, DocumentId, PublishAck};
use relay_events::{ErrorBody, cloudevents, json};
use serde::Serialize;
use serde_json::value::RawValue;

use super::api::Api;
use super::extract::{DocumentPath, RequestMemory, media_type, read_body};
use super::problem::Problem;

pub(super) async fn publish(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    memory: RequestMemory,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let form = BodyForm::of(&headers)?;
    let body = read_body(body, &api.config, &memory).await?;
    match form.split(&body, api.config.max_batch_events)? {
        Drafts::One(text) => {
            let draft = form.decode(&document, text)?;
            let ack = api.sink.publish(draft).await?;
            let status = if ack.duplicate { StatusCode::OK } else { StatusCode::CREATED };
            Ok((status, Json(ack)).into_response())
        }
        Drafts::Many(texts) => {
            let drafts = texts.into_iter().map(|text| form.decode(&document, text)).collect();
            Ok(Json(publish_all(&api, drafts).await).into_response())
        }
    }
}

/// Publishes in order. The drafts of one document get their places in the order in which publishing them begins, so the
/// next is handed in before the last is durable. Only the first valid one is awaited alone: it opens the document.
async fn publish_all(api: &Api, drafts: Vec<Result<CheckedDraft, Problem>>) -> Vec<BatchItem> {
    let mut drafts = drafts.into_iter();
    let mut outcomes = Vec::with_capacity(drafts.len());
    for draft in drafts.by_ref() {
        let valid = draft.is_ok();
        outcomes.push(publish_one(api, draft).await);
        if valid {
            break;
        }
    }
    let mut rest: FuturesOrdered<_> = drafts.map(|draft| publish_one(api, draft)).collect();
    while let Some(outcome) = rest.next().await {
        outcomes.push(outcome);
    }
    outcomes
}

async fn publish_one(api: &Api, draft: Result<CheckedDraft, Problem>) -> BatchItem {
    let draft = match draft {
        Ok(draft) => draft,
        Err(problem) => return BatchItem::Refused(problem.into_body()),
    };
    match api.sink.publish(draft).await {
        Ok(ack) => BatchItem::Published(ack),
        Err(error) => BatchItem::Refused(Problem::from(error).into_body()),
    }
}

/// The outcome of one draft of a batch.
#[derive(Serialize)]
#[serde(untagged)]
enum BatchItem {
    Published(PublishAck),
    Refused(ErrorBody),
}

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyForm {
    /// A draft, or an array of drafts.
    Json,
    /// One CloudEvent.
    CloudEvent,
    /// An array of CloudEvents.
    CloudEvents,
}

enum Drafts<'a> {
    One(&'a [u8]),
    Many(Vec<&'a [u8]>),
}

impl BodyForm {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        match media_type(headers).to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Json),
            cloudevents::MEDIA_TYPE => Ok(Self::CloudEvent),
            cloudevents::BATCH_MEDIA_TYPE => Ok(Self::CloudEvents),
            _ => {
                let given = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
                let given: String = String::from_utf8_lossy(given).chars().take(64).collect();
                Err(Problem::unsupported_media_type(format!(
                    "the content type is `{given}`; send `content-type: application/json` with a draft or an array of drafts"
                )))
            }
        }
    }

    fn split(self, body: &[u8], max_batch_events: usize) -> Result<Drafts<'_>, Problem> {
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        let batch = match self {
            Self::Json => first == Some(&b'['),
            Self::CloudEvent => false,
            Self::CloudEvents => true,
        };
        if !batch {
            return Ok(Drafts::One(body));
        }
        let texts: Vec<&RawValue> = serde_json::from_slice(body)
            .map_err(|error| Problem::invalid_request(format!("the body is not a JSON array: {error}")))?;
        if texts.len() > max_batch_events {
            return Err(Problem::too_large(format!(
                "the batch has {} events, at most {max_batch_events} are allowed; send several",
                texts.len()
            )));
        }
        Ok(Drafts::Many(texts.into_iter().map(|text| text.get().as_bytes()).collect()))
    }

    fn decode(self, document: &DocumentId, text: &[u8]) -> Result<CheckedDraft, Problem> {
        match self {
            Self::Json => Ok(json::decode_draft(document, text)?),
            Self::CloudEvent | Self::CloudEvents => Ok(cloudevents::decode_draft(document, text)?),
        }
    }
}
