//! `GET /v1/documents/{id}/events/stream`: server-sent events, which browsers reconnect by themselves.
//!
//! Every durable event has the id `<epoch>:<seq>`, and so has the ack that comes first. A client that comes back
//! sends the last one it got as `Last-Event-ID`, and gets exactly what it missed.

use std::future::poll_fn;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use relay_core::{Epoch, Event, EventStream, Seq, StartPosition, SubscribeAck};
use relay_events::json;
use serde::Deserialize;
use tokio::time::{Instant, Interval, interval_at};
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::{Api, Document};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamQuery {
    after_seq: Option<Seq>,
}

pub(crate) async fn stream(
    State(api): State<Api>,
    Document(document): Document,
    query: Result<Query<StreamQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let start = start(&headers, query.after_seq)?;
    if api.closing.is_cancelled() {
        return Err(Problem::stopping());
    }
    let (ack, events) = api.source.subscribe(&document, start).await?;
    let feed = Feed {
        ack: Some(ack),
        events: Some(events),
        closing: api.closing.clone(),
        keep_alive: keep_alive(api.config.keep_alive),
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

/// `Last-Event-ID` comes from a client that reconnects, with the URL that it began with, so it goes first.
fn start(headers: &HeaderMap, after_seq: Option<Seq>) -> Result<StartPosition, Problem> {
    let Some(id) = headers.get("last-event-id").filter(|id| !id.is_empty()) else {
        return Ok(after_seq.map_or(StartPosition::Live, |seq| StartPosition::After { epoch: None, seq }));
    };
    let parsed = id.to_str().ok().and_then(|id| id.split_once(':')).and_then(|(epoch, seq)| {
        Some(StartPosition::After { epoch: Some(epoch.parse().ok()?), seq: Seq::new(seq.parse().ok()?) })
    });
    parsed.ok_or_else(|| {
        let id: String = String::from_utf8_lossy(id.as_bytes()).chars().take(64).collect();
        Problem::invalid_request(format!(
            "`Last-Event-ID` is `{id}`; it must be an `id` of this stream, `<epoch>:<seq>`"
        ))
    })
}

fn keep_alive(every: Duration) -> Interval {
    interval_at(Instant::now() + every, every)
}

/// One client's stream: what it gets next.
struct Feed {
    ack: Option<SubscribeAck>,
    /// None once the stream is over.
    events: Option<Box<dyn EventStream>>,
    closing: CancellationToken,
    keep_alive: Interval,
}

impl Feed {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(ack) = self.ack.take() {
            return Some(ack_frame(&ack));
        }
        let events = self.events.as_mut()?;
        let next = tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            next = poll_fn(|cx| events.poll_next(cx)) => next,
            _ = self.keep_alive.tick() => return Some(Bytes::from_static(b": keep-alive\n\n")),
        };
        self.keep_alive.reset();
        match next {
            Some(Ok(event)) => Some(event_frame(&event)),
            Some(Err(error)) => {
                self.events = None;
                Some(end_frame(error.code().as_str(), &error.to_string()))
            }
            None => {
                self.events = None;
                Some(end_frame("closed", "the server is stopping; connect again"))
            }
        }
    }
}

fn ack_frame(ack: &SubscribeAck) -> Bytes {
    let id = (ack.head.epoch, ack.position);
    frame(Some(id), "relay.opening", &serde_json::to_vec(ack).unwrap_or_default())
}

fn event_frame(event: &Event) -> Bytes {
    frame(event.seq.map(|seq| (event.epoch, seq)), event.kind.as_str(), &json::encode(event))
}

fn end_frame(reason: &'static str, message: &str) -> Bytes {
    let body = serde_json::json!({"reason": reason, "message": message}).to_string();
    frame(None, "relay.ended", body.as_bytes())
}

/// One event of the stream. A line end inside JSON is white space between two tokens (inside a text it is escaped),
/// so it may be written as a space, and `data` needs one line.
fn frame(id: Option<(Epoch, Seq)>, name: &str, json: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(json.len() + name.len() + 64);
    if let Some((epoch, seq)) = id {
        frame.extend_from_slice(format!("id: {epoch}:{seq}\n").as_bytes());
    }
    frame.extend_from_slice(b"event: ");
    frame.extend_from_slice(name.as_bytes());
    frame.extend_from_slice(b"\ndata: ");
    frame.extend(json.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconnecting_client_is_continued_where_its_last_event_id_says_whatever_the_url_says() {
        let mut headers = HeaderMap::new();
        assert_eq!(start(&headers, None).unwrap(), StartPosition::Live);
        assert_eq!(
            start(&headers, Some(Seq::new(3))).unwrap(),
            StartPosition::After { epoch: None, seq: Seq::new(3) }
        );
        headers.insert("last-event-id", HeaderValue::from_static("00c0ffee00c0ffee:7"));
        let epoch = "00c0ffee00c0ffee".parse().ok();
        assert_eq!(
            start(&headers, Some(Seq::new(3))).unwrap(),
            StartPosition::After { epoch, seq: Seq::new(7) }
        );
        for malformed in ["7", "00c0ffee00c0ffee:", ":7", "00c0ffee00c0ffee:-1", "é:1"] {
            headers.insert("last-event-id", HeaderValue::from_bytes(malformed.as_bytes()).unwrap());
            assert!(start(&headers, None).is_err(), "{malformed}");
        }
    }

    #[test]
    fn line_ends_inside_json_do_not_end_the_frame() {
        let frame = frame(Some((Epoch::from_u64(1), Seq::new(2))), "x-note", b"{\"a\":\r\n1}");
        assert_eq!(frame, "id: 0000000000000001:2\nevent: x-note\ndata: {\"a\":  1}\n\n");
    }
}
