//! The client of a relay's HTTP interface: the few requests that a service makes, and their errors.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use relay_core::{DocumentId, Event, EventId, ServiceName};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The metadata key under which a delivered event names the rules that led to it. A result of the event carries the same
/// value, so that the relay detects loops.
const CAUSES: &str = "relay.causes";

/// The time limit of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The most events that are requested at once.
const PAGE_EVENTS: u32 = 500;
/// The largest answer. Pages end at 1 MiB, and a single event may be larger than that.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// The characters that are escaped in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The failure of a request to the relay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// The relay did not answer.
    #[error("the relay at {url} cannot be reached: {source}; is `relay serve` running there?")]
    Unreachable { url: String, source: reqwest::Error },
    /// The relay refused the request.
    #[error("the relay answered {status} to {request}: {reason}: {message}")]
    Refused { request: String, status: StatusCode, reason: String, message: String },
    /// The answer is not in the relay's form.
    #[error("the relay's answer to {request} cannot be read: {detail}; does its version fit this service's?")]
    Unreadable { request: String, detail: String },
}

impl RelayError {
    /// Tells if a repeated request would fail again.
    pub(crate) fn is_final(&self) -> bool {
        let passing = [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::CONFLICT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        matches!(self, Self::Refused { status, .. } if status.is_client_error() && !passing.contains(status))
    }

    /// Tells if the relay no longer knows this registration, so that the service has to register again.
    pub(crate) fn is_lease_gone(&self) -> bool {
        matches!(self, Self::Refused { status, .. }
            if matches!(*status, StatusCode::NOT_FOUND | StatusCode::CONFLICT))
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// The body of a registration.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Registration {
    /// The address to which events are delivered.
    pub(crate) url: String,
    pub(crate) version: &'static str,
    pub(crate) capabilities: Vec<&'static str>,
    pub(crate) probe: Value,
}

/// The answer to a registration.
#[derive(Debug, Deserialize)]
pub(crate) struct Registered {
    pub(crate) lease: ServiceLease,
    /// The secret with which deliveries are signed.
    pub(crate) secret: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServiceLease {
    pub(crate) id: Value,
    pub(crate) heartbeat_every_ms: u64,
}

/// A page of a document's history.
#[derive(Debug)]
pub(crate) enum History {
    /// The next events, possibly none.
    Page { epoch: String, events: Vec<Event>, next_after_seq: u64, last_seq: u64 },
    /// The requested events have been trimmed; the earliest remaining one has this seq.
    Trimmed { first_seq: u64 },
}

/// A client of the relay at an address, for the service of a name.
#[derive(Debug, Clone)]
pub(crate) struct RelayClient {
    http: reqwest::Client,
    /// The relay's address without a slash at its end.
    url: String,
    service: ServiceName,
}

impl RelayClient {
    /// Creates a client of the relay at `url`, for instance `http://127.0.0.1:7400`.
    pub(crate) fn new(url: &str, service: ServiceName) -> anyhow::Result<Self> {
        // The HTTP client needs a provider even for plain HTTP. An error means that one is installed already.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), service })
    }

    /// Returns the name of the service.
    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Registers the service, and replaces the registration of an earlier run.
    pub(crate) async fn register(&self, registration: &Registration) -> Result<Registered, RelayError> {
        self.ask(Method::PUT, &self.service_path(), |request| request.json(registration)).await
    }

    /// Sends a heartbeat. With `trouble` the service reports itself as degraded for that reason.
    pub(crate) async fn heartbeat(
        &self,
        lease: &ServiceLease,
        trouble: Option<&str>,
    ) -> Result<(), RelayError> {
        let path = format!("{}/heartbeat", self.service_path());
        let body = match trouble {
            None => json!({"lease": lease.id, "state": "healthy"}),
            Some(reason) => json!({"lease": lease.id, "state": "degraded", "reason": reason}),
        };
        self.ask::<Value>(Method::POST, &path, |request| request.json(&body)).await.map(drop)
    }

    /// Ends the registration. Events that are queued for the service are still delivered; see [`RelayClient::is_drained`].
    pub(crate) async fn deregister(&self, lease: &ServiceLease) -> Result<(), RelayError> {
        let id = lease.id.as_str().map_or_else(|| lease.id.to_string(), str::to_owned);
        let path = format!("{}?lease={}", self.service_path(), utf8_percent_encode(&id, SEGMENT));
        self.send(Method::DELETE, &path, |request| request).await.map(drop)
    }

    /// Tells if the relay has delivered all queued events after [`RelayClient::deregister`]. The service is gone then.
    pub(crate) async fn is_drained(&self) -> Result<bool, RelayError> {
        match self.ask::<Value>(Method::GET, &self.service_path(), |request| request).await {
            Ok(service) => Ok(service["state"] == "gone"),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Publishes a result as `service:<name>`.
    ///
    /// `because` is the event that was delivered. `covers` is the newest event that the result is made from; its id gives
    /// the result's id, so that a repeated result is a duplicate.
    pub(crate) async fn publish(
        &self,
        kind: &str,
        payload: &Value,
        because: &Event,
        covers: EventId,
    ) -> Result<(), RelayError> {
        let mut draft = json!({
            "id": EventId::from_name(&format!("{}:{covers}:{kind}", self.service)),
            "kind": kind,
            "actor": format!("service:{}", self.service),
            "payload": payload,
        });
        if let Some(causes) = because.metadata.get(CAUSES) {
            draft["metadata"] = json!({ CAUSES: causes });
        }
        self.ask::<Value>(Method::POST, &events_path(&because.document), |request| request.json(&draft))
            .await
            .map(drop)
    }

    /// Returns a page of the events of `document` after `after_seq`.
    pub(crate) async fn history(&self, document: &DocumentId, after_seq: u64) -> Result<History, RelayError> {
        #[derive(Deserialize)]
        struct Page {
            epoch: String,
            last_seq: u64,
            next_after_seq: u64,
            events: Vec<Box<RawValue>>,
        }
        let path = format!("{}?after_seq={after_seq}&limit={PAGE_EVENTS}", events_path(document));
        let (status, body) = self.answer(Method::GET, &path, |request| request).await?;
        if status == StatusCode::GONE {
            #[derive(Deserialize)]
            struct Trimmed {
                first_seq: u64,
            }
            let Trimmed { first_seq } = read(&Method::GET, &path, &body)?;
            return Ok(History::Trimmed { first_seq });
        }
        let body = accepted(&Method::GET, &path, status, body)?;
        let page: Page = read(&Method::GET, &path, &body)?;
        let events = page.events.iter().map(|event| relay_events::json::decode(event.get().as_bytes()));
        let events = events.collect::<Result<_, _>>().map_err(|error| RelayError::Unreadable {
            request: format!("GET {path}"),
            detail: error.to_string(),
        })?;
        let Page { epoch, last_seq, next_after_seq, .. } = page;
        Ok(History::Page { epoch, events, next_after_seq, last_seq })
    }

    fn service_path(&self) -> String {
        format!("/v1/services/{}", utf8_percent_encode(self.service.as_str(), SEGMENT))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<T, RelayError> {
        let body = self.send(method.clone(), path, complete).await?;
        read(&method, path, &body)
    }

    /// Sends a request and returns the body of a successful answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Vec<u8>, RelayError> {
        let (status, body) = self.answer(method.clone(), path, complete).await?;
        accepted(&method, path, status, body)
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<(StatusCode, Vec<u8>), RelayError> {
        let unreachable = |source| RelayError::Unreachable { url: self.url.clone(), source };
        let request = complete(self.http.request(method.clone(), format!("{}{path}", self.url)));
        let mut response: Response = request.send().await.map_err(unreachable)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                let detail = format!("it has more than {MAX_ANSWER_BYTES} bytes");
                return Err(RelayError::Unreadable { request: format!("{method} {path}"), detail });
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }
}

fn events_path(document: &DocumentId) -> String {
    format!("/v1/documents/{}/events", utf8_percent_encode(document.as_str(), SEGMENT))
}

fn read<T: DeserializeOwned>(method: &Method, path: &str, body: &[u8]) -> Result<T, RelayError> {
    serde_json::from_slice(body).map_err(|error| RelayError::Unreadable {
        request: format!("{method} {path}"),
        detail: error.to_string(),
    })
}

/// Returns the body of a successful answer, or the error that the answer describes.
fn accepted(method: &Method, path: &str, status: StatusCode, body: Vec<u8>) -> Result<Vec<u8>, RelayError> {
    #[derive(Deserialize)]
    struct Problem {
        reason: String,
        message: String,
    }
    if status.is_success() {
        return Ok(body);
    }
    let Problem { reason, message } = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
        reason: "unknown".to_owned(),
        message: "the answer has no reason; is it a Relay server?".to_owned(),
    });
    Err(RelayError::Refused { request: format!("{method} {path}"), status, reason, message })
}
