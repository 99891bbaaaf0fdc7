//! `GET /v1/documents/{id}/events`: the kept events, page by page.

use std::sync::Arc;

use axum::extract::Query;
use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use relay_core::{Epoch, Event, ReadLimit, Recovery, ResetReason, Seq, StartPosition, SubscribeAck};
use relay_events::json;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::extract::DocumentPath;
use super::problem::Problem;

const DEFAULT_PAGE_EVENTS: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    #[serde(default)]
    after_seq: Seq,
    limit: Option<usize>,
}

/// A page without its events.
#[derive(Serialize)]
struct HistoryPage {
    epoch: Epoch,
    first_seq: Seq,
    last_seq: Seq,
    next_after_seq: Seq,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_reason: Option<ResetReason>,
}

impl HistoryPage {
    /// Serialises the page with `events` as its last field. Their JSON is copied as it is, and not parsed.
    fn to_json(&self, events: &[Arc<Event>]) -> serde_json::Result<Vec<u8>> {
        let mut body = serde_json::to_vec(self)?;
        body.pop(); // the closing brace
        body.extend_from_slice(b",\"events\":[");
        for (index, event) in events.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&json::encode(event));
        }
        body.extend_from_slice(b"]}");
        Ok(body)
    }
}

pub(super) async fn history(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let max = api.config.max_page_events;
    let events = query.limit.unwrap_or(DEFAULT_PAGE_EVENTS.min(max));
    if !(1..=max).contains(&events) {
        return Err(Problem::invalid_request(format!("`limit` is {events}; it must be 1 to {max}")));
    }
    let limit = ReadLimit { events, ..ReadLimit::default() };
    let (head, events) = api.source.history(&document, query.after_seq, limit).await?;
    let start = StartPosition::After { epoch: None, seq: query.after_seq };
    let reset_reason = match SubscribeAck::decide(start, head).recovery {
        Recovery::Reset(reason) => Some(reason),
        _ => None,
    };
    let page = HistoryPage {
        epoch: head.epoch,
        first_seq: head.first,
        last_seq: head.last,
        next_after_seq: events.last().and_then(|event| event.seq).unwrap_or(query.after_seq.min(head.last)),
        reset_reason,
    };
    let body = page.to_json(&events).map_err(Problem::internal)?;
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}
