//! The HTTP server and the registration that all services share, and the checks of each delivery: its signature, its id
//! and its form.
//!
//! A delivery is answered with 2xx only after the event's result has been published. A service that ends in between gets
//! the event again, and publishes under the same id, so that the document has the result once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use relay_core::{Event, ServiceName};
use relay_events::cloudevents;
use serde_json::json;
use standardwebhooks::Webhook;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::client::{Registered, Registration, RelayClient, ServiceLease};
use super::recent_ids::RecentIds;
use super::{HandleError, Profile, Service};

/// The number of handled events whose ids are remembered.
const REMEMBERED_EVENTS: usize = 10_000;
/// The most deliveries that are handled at once. Further ones are refused with `Retry-After`.
const CONCURRENT: usize = 64;
/// The largest delivery.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// The first and the longest pause before another attempt to register.
const REGISTER_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// The time that the relay has to deliver queued events to a service that stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval at which a service that stops asks for the relay's progress.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// The time that open requests have when the service stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A service that is registered with a relay. [`RunningService::stop`] ends it in order; when it is dropped, it ends
/// without deregistering.
pub struct RunningService {
    /// The address at which the service listens.
    pub address: SocketAddr,
    leaving: CancellationToken,
    closing: CancellationToken,
    registration: AbortOnDropHandle<()>,
    server: AbortOnDropHandle<std::io::Result<()>>,
}

/// The state that requests share.
struct ServerState {
    name: ServiceName,
    service: Arc<dyn Service>,
    /// The check of signatures; none until the service has registered.
    webhook: watch::Receiver<Option<Arc<Webhook>>>,
    /// The ids of the latest handled events.
    handled: Mutex<RecentIds>,
    slots: Semaphore,
    /// The error of the last event, until an event is handled.
    trouble: watch::Sender<Option<String>>,
}

impl RunningService {
    /// Starts the service that `profile` describes for the relay at `relay`, listening at `listen`.
    ///
    /// # Errors
    /// When the service cannot listen there, or the HTTP client cannot be made.
    pub async fn start(profile: &Profile, relay: &str, listen: SocketAddr) -> anyhow::Result<Self> {
        let relay = RelayClient::new(relay, ServiceName::new(profile.name)?)?;
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("cannot listen at {listen}"))?;
        let address = listener.local_addr()?;
        let (webhook, current) = watch::channel(None);
        let (trouble, troubles) = watch::channel(None);
        let state = Arc::new(ServerState {
            name: relay.service().clone(),
            service: (profile.service)(relay.clone()),
            webhook: current,
            handled: Mutex::new(RecentIds::new(REMEMBERED_EVENTS)),
            slots: Semaphore::new(CONCURRENT),
            trouble,
        });
        let routes = Router::new()
            .route("/events", post(deliver))
            .route("/health", get(async || "ok"))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(state);
        let (leaving, closing) = (CancellationToken::new(), CancellationToken::new());
        let closed = closing.clone().cancelled_owned();
        let server =
            tokio::spawn(async move { axum::serve(listener, routes).with_graceful_shutdown(closed).await });
        let registration = Registration {
            url: format!("http://{address}/events"),
            version: env!("CARGO_PKG_VERSION"),
            capabilities: vec![profile.capability],
            probe: json!({"type": "http", "path": "/health", "status": 200, "body": "ok", "interval": "5s", "rise": 1}),
        };
        let registering =
            tokio::spawn(keep_registered(relay, registration, webhook, troubles, leaving.clone()));
        Ok(Self {
            address,
            leaving,
            closing,
            registration: AbortOnDropHandle::new(registering),
            server: AbortOnDropHandle::new(server),
        })
    }

    /// Deregisters, takes the queued events, and ends.
    ///
    /// # Errors
    /// When a task of the service panicked, or its server failed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.leaving.cancel();
        self.registration.await.context("the registration task panicked")?;
        self.closing.cancel();
        match timeout(CLOSE_TIMEOUT, self.server).await {
            Ok(ended) => Ok(ended.context("the server task panicked")??),
            // The remaining connections are idle ones that clients keep open.
            Err(_) => Ok(()),
        }
    }
}

/// Registers and sends heartbeats until `leaving` is cancelled, then deregisters.
async fn keep_registered(
    relay: RelayClient,
    registration: Registration,
    webhook: watch::Sender<Option<Arc<Webhook>>>,
    trouble: watch::Receiver<Option<String>>,
    leaving: CancellationToken,
) {
    loop {
        let Some(lease) = leaving.run_until_cancelled(register(&relay, &registration, &webhook)).await else {
            return;
        };
        if leaving.run_until_cancelled(heartbeats(&relay, &lease, &trouble)).await.is_none() {
            return deregister(&relay, &lease).await;
        }
    }
}

async fn register(
    relay: &RelayClient,
    registration: &Registration,
    webhook: &watch::Sender<Option<Arc<Webhook>>>,
) -> ServiceLease {
    let [mut pause, longest] = REGISTER_PAUSES;
    loop {
        match relay.register(registration).await {
            Ok(Registered { lease, secret }) => match Webhook::new(&secret) {
                Ok(new) => {
                    webhook.send_replace(Some(Arc::new(new)));
                    tracing::info!(service = %relay.service(), url = registration.url, "registered");
                    return lease;
                }
                Err(error) => {
                    tracing::warn!(service = %relay.service(), %error, "the relay's secret is invalid");
                }
            },
            Err(error) => {
                tracing::warn!(service = %relay.service(), %error, "registration failed; trying again");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Sends heartbeats until the relay no longer knows the registration.
async fn heartbeats(relay: &RelayClient, lease: &ServiceLease, trouble: &watch::Receiver<Option<String>>) {
    loop {
        sleep(Duration::from_millis(lease.heartbeat_every_ms)).await;
        let reason = trouble.borrow().clone();
        match relay.heartbeat(lease, reason.as_deref()).await {
            Ok(()) => {}
            Err(error) if error.is_lease_gone() => {
                tracing::warn!(service = %relay.service(), %error, "registering again");
                return;
            }
            Err(error) => tracing::warn!(service = %relay.service(), %error, "heartbeat failed"),
        }
    }
}

async fn deregister(relay: &RelayClient, lease: &ServiceLease) {
    if let Err(error) = relay.deregister(lease).await {
        tracing::warn!(service = %relay.service(), %error, "deregistration failed; the lease expires by itself");
        return;
    }
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    while Instant::now() < deadline {
        match relay.is_drained().await {
            Ok(true) => {
                tracing::info!(service = %relay.service(), "deregistered");
                return;
            }
            Ok(false) => sleep(DRAIN_POLL).await,
            Err(error) => {
                tracing::warn!(service = %relay.service(), %error, "deregistered, but the relay does not answer");
                return;
            }
        }
    }
    tracing::warn!(service = %relay.service(), "deregistered; queued events were not delivered within {DRAIN_TIMEOUT:?}");
}

/// The reason why a delivery is refused.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error("the service has not registered yet and has no secret")]
    NoSecret,
    #[error("{0}; deliveries are signed with the secret that the relay gave at registration")]
    Signature(#[from] standardwebhooks::WebhookError),
    #[error("the content type is `{0}`; the service registered for `application/cloudevents+json`")]
    MediaType(String),
    #[error("the body is no CloudEvent of Relay: {0}")]
    Malformed(String),
    #[error("{CONCURRENT} deliveries are being handled; try again later")]
    Busy,
    #[error(transparent)]
    NotHandled(#[from] HandleError),
}

impl IntoResponse for DeliveryError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Signature(_) => StatusCode::UNAUTHORIZED,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            // The same event would be refused again.
            Self::NotHandled(HandleError::Relay(error)) if error.is_final() => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::NoSecret | Self::Busy | Self::NotHandled(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let body = Json(json!({"message": self.to_string()}));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            (status, [(RETRY_AFTER, "1")], body).into_response()
        } else {
            (status, body).into_response()
        }
    }
}

async fn deliver(
    State(state): State<Arc<ServerState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, DeliveryError> {
    let handled = handle(&state, &headers, &body).await;
    match &handled {
        Ok(()) => drop(state.trouble.send_if_modified(|trouble| trouble.take().is_some())),
        Err(error) => {
            // Anybody can send deliveries that are refused. What the service itself cannot do is a warning when it begins.
            let trouble = match error {
                DeliveryError::NotHandled(error) => {
                    state.trouble.send_replace(Some(error.to_string())).is_none()
                }
                _ => false,
            };
            if trouble {
                tracing::warn!(service = %state.name, %error, "delivery refused");
            } else {
                tracing::debug!(service = %state.name, %error, "delivery refused");
            }
        }
    }
    handled.map(|()| StatusCode::NO_CONTENT)
}

async fn handle(state: &ServerState, headers: &HeaderMap, body: &[u8]) -> Result<(), DeliveryError> {
    let event = verify(state, headers, body)?;
    if state.handled.lock().contains(event.id) {
        return Ok(());
    }
    let _slot = state.slots.try_acquire().map_err(|_| DeliveryError::Busy)?;
    let id = event.id;
    state.service.handle(event).await?;
    state.handled.lock().insert(id);
    Ok(())
}

/// Returns the event of a delivery after checking its signature and media type.
fn verify(state: &ServerState, headers: &HeaderMap, body: &[u8]) -> Result<Event, DeliveryError> {
    let webhook = state.webhook.borrow().clone().ok_or(DeliveryError::NoSecret)?;
    webhook.verify(body, headers)?;
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if media_type.split(';').next().map(str::trim) != Some(cloudevents::MEDIA_TYPE) {
        return Err(DeliveryError::MediaType(media_type.chars().take(64).collect()));
    }
    cloudevents::decode(body).map_err(|error| DeliveryError::Malformed(error.to_string()))
}
