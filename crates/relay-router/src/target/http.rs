//! Delivery over HTTP: CloudEvents 1.0 in a POST, signed as Standard Webhooks.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use relay_core::{Clock, Delivery, DeliveryError, Event, FailureKind, Target, Timestamp};
use relay_events::cloudevents;
use url::Url;
use xxhash_rust::xxh3::Xxh3;

use super::answer::{causes_of, read_some};
use super::client::Answer;
use super::outbound::{Outbound, OutboundError};
use super::signature::Signer;
use crate::rules::{DeliveryFormat, RetryStatuses};

/// The address of a service and the form of its deliveries.
#[derive(Clone, Default)]
pub(crate) struct HttpTargetConfig {
    /// The address.
    pub(crate) url: String,
    /// The form of deliveries.
    pub(crate) format: DeliveryFormat,
    /// The secrets that sign deliveries, as `whsec_…`. Without secrets deliveries are not signed.
    pub(crate) secrets: Vec<String>,
    /// The statuses after which a delivery is tried again.
    pub(crate) retry_statuses: RetryStatuses,
}

/// A service that takes events over HTTP.
#[derive(Debug)]
pub(crate) struct HttpTarget {
    url: Url,
    format: DeliveryFormat,
    signer: Signer,
    retry_statuses: RetryStatuses,
    outbound: Outbound,
    clock: Arc<dyn Clock>,
}

/// The most bytes of an answer's body that are read, for the error's text.
const MAX_ANSWER: usize = 4 * 1024;

/// A POST that is ready to be signed and sent.
struct Post {
    id: String,
    content_type: String,
    /// The headers of the CloudEvent in the binary form.
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl HttpTarget {
    /// A target that `config` describes.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub(crate) fn new(
        config: HttpTargetConfig,
        outbound: Outbound,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OutboundError> {
        let HttpTargetConfig { url, format, secrets, retry_statuses } = config;
        let url = outbound.check_url(&url)?;
        Ok(Self { url, format, signer: Signer::new(&secrets)?, retry_statuses, outbound, clock })
    }

    async fn send(&self, message: Post, delivery: &Delivery) -> Result<(), DeliveryError> {
        let headers = self.headers(&message, delivery)?;
        let sent = self.outbound.client().send(Method::POST, self.url.clone(), headers, message.body).await;
        let answer = sent.map_err(|error| DeliveryError::new(FailureKind::Retry, causes_of(&error)))?;
        let (status, retry_after) = (answer.status(), self.retry_after(&answer));
        // The body of a success is read too: an answer that breaks off may not have been done.
        let body = read_some(answer, MAX_ANSWER).await;
        let body = body.map_err(|error| {
            DeliveryError::new(FailureKind::Retry, format!("the answer broke off: {}", causes_of(&error)))
                .status(status.as_u16())
        })?;
        if status.is_success() {
            return Ok(());
        }
        let kind = match status.as_u16() {
            410 => FailureKind::Gone,
            status if self.retry_statuses.contains(status) => FailureKind::Retry,
            _ => FailureKind::Reject,
        };
        let body = String::from_utf8_lossy(&body);
        let detail = match body.trim() {
            "" => status.canonical_reason().unwrap_or("no reason given").to_owned(),
            body => body.chars().take(512).collect(),
        };
        let error = DeliveryError::new(kind, detail).status(status.as_u16());
        Err(match retry_after {
            Some(time) => error.retry_after(time),
            None => error,
        })
    }

    fn headers(&self, message: &Post, delivery: &Delivery) -> Result<HeaderMap, DeliveryError> {
        let timestamp = self.clock.wall().as_micros().div_euclid(1_000_000);
        let signature = self.signer.sign(&message.id, timestamp, &message.body);
        let signature =
            signature.map_err(|error| DeliveryError::new(FailureKind::Retry, error.to_string()))?;
        let trace = match &delivery.events[..] {
            [event] => event.trace.as_ref(),
            _ => None,
        };
        let mut headers = HeaderMap::new();
        let mut put = |name: &str, value: &str| {
            let name = HeaderName::try_from(name).map_err(|error| unsendable(name, &error))?;
            let value = HeaderValue::try_from(value).map_err(|error| unsendable(name.as_str(), &error))?;
            headers.insert(name, value);
            Ok::<_, DeliveryError>(())
        };
        put(CONTENT_TYPE.as_str(), &message.content_type)?;
        for (name, value) in &message.headers {
            put(name, value)?;
        }
        put("webhook-id", &message.id)?;
        put("webhook-timestamp", &timestamp.to_string())?;
        if let Some(signature) = signature {
            put("webhook-signature", &signature)?;
        }
        put("relay-attempt", &delivery.attempt.to_string())?;
        if delivery.is_replay {
            put("relay-replay", "true")?;
        }
        if let Some(trace) = trace {
            put("traceparent", trace.traceparent())?;
            if let Some(state) = trace.tracestate() {
                put("tracestate", state)?;
            }
        }
        Ok(headers)
    }

    /// The pause that the service asks for, in seconds or until a date.
    fn retry_after(&self, answer: &Answer) -> Option<Duration> {
        let value = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
        if let Ok(seconds) = value.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = httpdate::parse_http_date(value).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        let date = Timestamp::from_micros(i64::try_from(date.as_micros()).ok()?);
        Some(date.since(self.clock.wall()))
    }
}

fn unsendable(name: &str, error: &dyn std::error::Error) -> DeliveryError {
    DeliveryError::new(FailureKind::Reject, format!("header `{name}` cannot be sent: {error}"))
}

#[async_trait]
impl Target for HttpTarget {
    /// Posts the events, one by one unless the format is batch.
    async fn deliver(&self, delivery: Delivery) -> Result<(), DeliveryError> {
        if self.format == DeliveryFormat::Batch {
            return self.send(batch(&delivery.events), &delivery).await;
        }
        for event in &delivery.events {
            let message = match self.format {
                DeliveryFormat::Binary => binary(event),
                _ => structured(event),
            };
            self.send(message, &delivery).await?;
        }
        Ok(())
    }
}

fn structured(event: &Event) -> Post {
    Post {
        id: event.id.to_string(),
        content_type: cloudevents::MEDIA_TYPE.to_owned(),
        headers: Vec::new(),
        body: cloudevents::encode(event),
    }
}

fn binary(event: &Event) -> Post {
    let cloudevents::http::Message { mut headers, body } = cloudevents::http::encode(event);
    let content_type = headers.iter().position(|(name, _)| name == CONTENT_TYPE.as_str());
    let content_type = content_type.map(|at| headers.swap_remove(at).1);
    let content_type = content_type.unwrap_or_else(|| "application/json".to_owned());
    Post { id: event.id.to_string(), content_type, headers, body }
}

/// A batch, whose id is a hash of its events' ids, so that a repeated delivery has the same id.
fn batch(events: &[Arc<Event>]) -> Post {
    let mut hash = Xxh3::new();
    for event in events {
        hash.update(&event.id.as_u128().to_be_bytes());
    }
    Post {
        id: format!("batch_{:032x}", hash.digest128()),
        content_type: cloudevents::BATCH_MEDIA_TYPE.to_owned(),
        headers: Vec::new(),
        body: cloudevents::encode_batch(events.iter().map(|event| &**event)),
    }
}
