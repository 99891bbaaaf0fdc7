//! `GET /v1/documents/{id}/events/stream`: server-sent events, which browsers reconnect by themselves.
//!
//! Every durable event has the id `<epoch>:<seq>`, and so has the ack that comes first. A client that reconnects sends the
//! last id that it received as `Last-Event-ID`, and gets exactly the events after it.

use std::fmt::Write as _;
use std::future::poll_fn;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::response::sse;
use futures_util::stream;
use http::HeaderMap;
use relay_core::{
    DocumentPermit, Epoch, Event, EventStream, MemoryPurpose, Reservation, Seq, StartPosition, SubscribeAck,
};
use relay_events::json;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::extract::{DocumentPath, RequestMemory};
use super::problem::Problem;
use super::sse::response;

/// The bytes that a stream takes beside its texts: its reader, and its place among the documents of the client's address.
const STREAM_BYTES: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamQuery {
    after_seq: Option<Seq>,
}

pub(super) async fn stream(
    State(api): State<Api>,
    DocumentPath(document): DocumentPath,
    query: Result<Query<StreamQuery>, QueryRejection>,
    memory: RequestMemory,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let start = start(&headers, query.after_seq)?;
    if api.closing.is_cancelled() {
        return Err(Problem::stopping());
    }
    let permit = api.ws().documents().acquire(memory.address(), &document)?;
    let bytes = STREAM_BYTES + document.as_str().len();
    let place = memory.reserve(MemoryPurpose::Subscriptions, bytes)?;
    let (ack, events) = api.source.subscribe(&document, start).await?;
    let follower = EventFollower {
        ack: Some(ack),
        events: Some(events),
        closing: api.closing.clone(),
        memory: memory.outgoing(),
        _permit: permit,
        _place: place,
    };
    let events = stream::unfold(follower, async |mut follower| Some((follower.next().await?, follower)));
    Ok(response(events, api.config.keep_alive))
}

/// Returns the position at which the stream starts. `Last-Event-ID` goes first: a client that reconnects sends it with the
/// URL of its first request.
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

/// One client's stream.
struct EventFollower {
    /// `None` once it is sent.
    ack: Option<SubscribeAck>,
    /// `None` once the stream has ended.
    events: Option<Box<dyn EventStream>>,
    closing: CancellationToken,
    /// The memory of the event that was sent last, until the next one is asked for.
    memory: Reservation,
    _permit: DocumentPermit,
    /// The memory of the stream itself.
    _place: Reservation,
}

impl EventFollower {
    async fn next(&mut self) -> Option<Result<sse::Event, axum::Error>> {
        if let Some(ack) = self.ack.take() {
            return Some(ack_event(&ack));
        }
        let events = self.events.as_mut()?;
        let next = tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            next = poll_fn(|cx| events.poll_next(cx)) => next,
        };
        let problem = match next {
            Some(Ok(event)) => match self.memory.try_resize(2 * json::encode(&event).len()) {
                Ok(()) => return Some(document_event(&event)),
                Err(full) => full.into(),
            },
            Some(Err(error)) => error.into(),
            None => Problem::stopping(),
        };
        self.events = None;
        Some(sse::Event::default().event("relay.ended").json_data(problem.into_body()))
    }
}

fn ack_event(ack: &SubscribeAck) -> Result<sse::Event, axum::Error> {
    with_id((ack.head.epoch, ack.position)).event("relay.opening").json_data(ack)
}

fn document_event(event: &Event) -> Result<sse::Event, axum::Error> {
    let json = json::encode(event);
    let json = std::str::from_utf8(&json).map_err(axum::Error::new)?;
    let sse = event.seq.map_or_else(sse::Event::default, |seq| with_id((event.epoch, seq)));
    Ok(with_data(sse.event(event.kind.as_str()), json))
}

fn with_id((epoch, seq): (Epoch, Seq)) -> sse::Event {
    sse::Event::default().id(format!("{epoch}:{seq}"))
}

/// Adds the event's data in one line. A line end inside JSON is white space between two tokens (inside a text it is
/// escaped), so it may be written as a space.
fn with_data(event: sse::Event, json: &str) -> sse::Event {
    let mut data = event.into_data_writer();
    for (index, line) in json.split(['\r', '\n']).enumerate() {
        // Writing to a buffer in memory does not fail.
        let _ = if index == 0 { data.write_str(line) } else { write!(data, " {line}") };
    }
    data.into_event()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use http::HeaderValue;
    use http_body_util::BodyExt as _;
    use relay_core::{DocumentId, DocumentLimiter, LogError, MemoryBudget, StreamError, StreamPosition};

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

    /// A stream whose history cannot be read.
    struct BrokenStream;

    impl EventStream for BrokenStream {
        fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, StreamError>>> {
            let error = LogError::Corrupt { detail: "/srv/secret/7.log is on fire".to_owned() };
            Poll::Ready(Some(Err(error.into())))
        }

        fn position(&self) -> Option<StreamPosition> {
            None
        }

        fn fork(&self) -> Box<dyn EventStream> {
            Box::new(Self)
        }
    }

    #[tokio::test]
    async fn a_stream_that_fails_ends_with_the_reason_and_without_its_cause() {
        let closing = CancellationToken::new();
        let nothing = |purpose| MemoryBudget::default().total().charge(purpose, 0);
        let mut follower = EventFollower {
            ack: None,
            events: Some(Box::new(BrokenStream)),
            closing,
            memory: nothing(MemoryPurpose::Outgoing),
            _permit: DocumentLimiter::new(None).acquire(None, &DocumentId::new("doc").unwrap()).unwrap(),
            _place: nothing(MemoryPurpose::Subscriptions),
        };
        let last = follower.next().await.unwrap();
        assert!(follower.next().await.is_none());
        let response = response(stream::iter([last]), Duration::from_secs(60));
        let frame = response.into_body().collect().await.unwrap().to_bytes();
        let frame = std::str::from_utf8(&frame).unwrap();
        assert!(frame.starts_with("event: relay.ended\n"), "{frame}");
        assert!(frame.contains("log_failed") && !frame.contains("secret"), "{frame}");
    }

    #[tokio::test]
    async fn line_ends_inside_json_do_not_end_the_frame() {
        let event = with_id((Epoch::from_u64(1), Seq::new(2))).event("x-note");
        let event = with_data(event, "{\"a\":\r\n1}");
        let response = response(stream::iter([Ok(event)]), Duration::from_secs(60));
        let frame = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(frame, "id: 0000000000000001:2\nevent: x-note\ndata: {\"a\":  1}\n\n");
    }
}
