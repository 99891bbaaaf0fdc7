//! `POST /v1/documents/{id}/events`: one draft, or a batch of them.
//!
//! The content type says the form: `application/json`, `application/cloudevents+json`, or
//! `application/cloudevents-batch+json`. Requiring one of them also keeps foreign web pages from publishing with a
//! plain form, which browsers send without asking.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use relay_core::{CheckedDraft, DocumentId, PublishAck};
use relay_events::{cloudevents, json};
use serde::Serialize;
use serde_json::value::RawValue;

use super::problem::Problem;
use super::{Api, Document};
use crate::config::HttpConfig;

pub(crate) async fn publish(
    State(api): State<Api>,
    Document(document): Document,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let form = Form::of(&headers)?;
    let body = read(body, &api.config).await?;
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

/// Publishes in order, without waiting for each to be durable before the next is handed in: drafts of one document
/// take their places in the order in which publishing them is begun. The first is waited for alone, so that the
/// document is open for the others.
async fn publish_all(api: &Api, drafts: Vec<Result<CheckedDraft, Problem>>) -> Vec<Outcome> {
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

async fn publish_one(api: &Api, draft: Result<CheckedDraft, Problem>) -> Outcome {
    let draft = match draft {
        Ok(draft) => draft,
        Err(problem) => return Outcome::Refused(problem),
    };
    match api.sink.publish(draft).await {
        Ok(ack) => Outcome::Kept(ack),
        Err(error) => Outcome::Refused(error.into()),
    }
}

/// What became of one draft of a batch.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Kept(PublishAck),
    Refused(Problem),
}

/// How a body says what is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
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

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let given = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let given = given.as_deref().unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            cloudevents::MEDIA_TYPE => Ok(Self::CloudEvent),
            cloudevents::BATCH_MEDIA_TYPE => Ok(Self::CloudEvents),
            _ => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                format!(
                    "the content type is `{}`; send `content-type: application/json` with a draft or an array of drafts",
                    given.chars().take(64).collect::<String>()
                ),
            )),
        }
    }

    fn split(self, body: &Bytes, max_batch_events: usize) -> Result<Drafts<'_>, Problem> {
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

/// The whole body, within the limits of size and time.
pub(crate) async fn read(body: Body, config: &HttpConfig) -> Result<Bytes, Problem> {
    let max = config.max_body_bytes;
    match tokio::time::timeout(config.body_timeout, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::too_large(format!(
            "the body has more than {max} bytes; send several smaller batches"
        ))),
        Ok(Err(error)) => Err(Problem::invalid_request(format!("the body did not arrive whole: {error}"))),
        Err(_elapsed) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not arrive within {} s", config.body_timeout.as_secs_f64()),
        )),
    }
}
