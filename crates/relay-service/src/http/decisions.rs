//! The decisions about events: queried, and followed as server-sent events.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{Response, sse};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use relay_core::{DocumentId, EventId, ServiceName, Timestamp};
use relay_router::decisions::{
    DecisionFilter, DecisionLogError, DecisionRecord, DecisionStreamItem, Outcome,
};
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::problem::Problem;
use super::routing::router;
use super::sse::response;

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
    Ok(Json(router(&api)?.decisions().query(query.filter(), limit).await?))
}

async fn follow(
    State(api): State<Api>,
    query: Result<Query<DecisionQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    if api.closing.is_cancelled() {
        return Err(Problem::stopping());
    }
    let decisions = router(&api)?.decisions().follow(query.filter());
    let events = stream::unfold(decisions, async |mut decisions| {
        let event = match decisions.next().await? {
            DecisionStreamItem::Decision(decision) => {
                sse::Event::default().event("decision").json_data(&*decision)
            }
            DecisionStreamItem::Missed(count) => {
                sse::Event::default().event("missed").json_data(Missed { count })
            }
        };
        Some((event, decisions))
    });
    let closing = api.closing.clone().cancelled_owned();
    Ok(response(events.take_until(closing), api.config.keep_alive))
}

/// The data of a `missed` event: the number of decisions that the client was too slow for.
#[derive(Serialize)]
struct Missed {
    count: u64,
}

impl From<DecisionLogError> for Problem {
    fn from(error: DecisionLogError) -> Self {
        Self::store_failed(&error)
    }
}
