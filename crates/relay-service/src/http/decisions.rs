//! What was decided about events, and why: asked for, and followed as server-sent events.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use relay_core::{DocumentId, EventId, ServiceName, Timestamp};
use relay_router::decisions::{
    DecisionFilter, DecisionLogError, DecisionRecord, DecisionStream, DecisionStreamItem, Outcome,
};
use serde::Deserialize;
use tokio::time::{Instant, Interval, interval_at};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::problem::Problem;
use super::routing::routing;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/v1/decisions", get(query)).route("/v1/decisions/stream", get(follow))
}

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionQuery {
    document: Option<DocumentId>,
    event: Option<EventId>,
    target: Option<ServiceName>,
    rule: Option<String>,
    outcome: Option<Outcome>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    limit: Option<usize>,
}

impl DecisionQuery {
    fn filter(self) -> DecisionFilter {
        let mut filter = DecisionFilter::default();
        filter.document = self.document;
        filter.event = self.event;
        filter.target = self.target;
        filter.rule = self.rule;
        filter.outcome = self.outcome;
        filter.from = self.from;
        filter.to = self.to;
        filter
    }
}

async fn query(
    State(api): State<Api>,
    query: Result<Query<DecisionQuery>, QueryRejection>,
) -> Result<Json<Vec<Arc<DecisionRecord>>>, Problem> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Problem::invalid_request(format!("`limit` is {limit}; it must be 1 to {MAX_LIMIT}")));
    }
    Ok(Json(routing(&api)?.decisions().query(query.filter(), limit).await?))
}

async fn follow(
    State(api): State<Api>,
    query: Result<Query<DecisionQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    if api.closing.is_cancelled() {
        return Err(Problem::stopping());
    }
    let every = api.config.keep_alive;
    let feed = Feed {
        decisions: routing(&api)?.decisions().follow(query.filter()),
        closing: api.closing.clone(),
        keep_alive: interval_at(Instant::now() + every, every),
    };
    let frames = stream::unfold(feed, async |mut feed| {
        let frame = feed.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), feed))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(frames)).into_response())
}

/// One follower's stream.
struct Feed {
    decisions: DecisionStream,
    closing: CancellationToken,
    keep_alive: Interval,
}

impl Feed {
    async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            next = self.decisions.next() => match next? {
                DecisionStreamItem::Decision(decision) => {
                    let json = serde_json::to_string(&*decision).ok()?;
                    Some(format!("event: decision\ndata: {json}\n\n").into())
                }
                DecisionStreamItem::Missed(count) => Some(format!("event: missed\ndata: {{\"count\":{count}}}\n\n").into()),
            },
            _ = self.keep_alive.tick() => Some(Bytes::from_static(b": keep-alive\n\n")),
        }
    }
}

impl From<DecisionLogError> for Problem {
    fn from(error: DecisionLogError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_failed", error.to_string())
    }
}
