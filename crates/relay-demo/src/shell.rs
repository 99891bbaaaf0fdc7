//! What all services have in common: an HTTP server of their own, a place at the relay, and the care that each
//! delivery needs before it means anything: is it signed, is it new, can it be read.
//!
//! An event is answered with 2xx only after what follows from it has been published. A service that ends in between
//! gets the event again, and publishes under the same id, so that the result stands once in the document.

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

use super::relay::{Lease, Registered, Registration, Relay};
use super::seen::Seen;
use super::{Profile, Service, TakeError};

/// How many events are remembered as dealt with.
const REMEMBERED: usize = 10_000;
/// How many deliveries are worked on at once; more are asked to come again.
const CONCURRENT: usize = 64;
/// The largest delivery.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// How long to wait before registering is tried again: at first, and at most.
const REGISTER_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// How long the relay may take to deliver what it still has for a service that stops.
const DRAIN: Duration = Duration::from_secs(5);
/// How often a service that stops asks whether the relay is done.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// How long requests that are being answered may take when the service stops.
const CLOSE: Duration = Duration::from_secs(2);

/// A service that works for a relay. Dropped, it ends without a word; [`Running::stop`] is the orderly way.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    leaving: CancellationToken,
    closing: CancellationToken,
    presence: AbortOnDropHandle<()>,
    server: AbortOnDropHandle<std::io::Result<()>>,
}

/// What requests are answered with.
struct Shell {
    name: ServiceName,
    service: Arc<dyn Service>,
    /// Checks signatures; none until the relay has said what it signs with.
    webhook: watch::Receiver<Option<Arc<Webhook>>>,
    seen: Mutex<Seen>,
    slots: Semaphore,
    /// Why the last event could not be dealt with, until one can.
    trouble: watch::Sender<Option<String>>,
}

impl Running {
    /// Starts the service that `profile` describes for the relay at `relay`, listening at `listen`.
    ///
    /// # Errors
    /// When the service cannot listen there, or the HTTP client cannot be made.
    pub async fn start(profile: &Profile, relay: &str, listen: SocketAddr) -> anyhow::Result<Self> {
        let relay = Relay::new(relay, ServiceName::new(profile.name)?)?;
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("cannot listen at {listen}"))?;
        let address = listener.local_addr()?;
        let (webhook, current) = watch::channel(None);
        let (trouble, troubles) = watch::channel(None);
        let shell = Arc::new(Shell {
            name: relay.service().clone(),
            service: (profile.service)(relay.clone()),
            webhook: current,
            seen: Mutex::new(Seen::new(REMEMBERED)),
            slots: Semaphore::new(CONCURRENT),
            trouble,
        });
        let routes = Router::new()
            .route("/events", post(deliver))
            .route("/health", get(async || "ok"))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(shell);
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
        let presence = tokio::spawn(be_there(relay, registration, webhook, troubles, leaving.clone()));
        Ok(Self {
            address,
            leaving,
            closing,
            presence: AbortOnDropHandle::new(presence),
            server: AbortOnDropHandle::new(server),
        })
    }

    /// Leaves the relay, takes what it still delivers, and ends.
    ///
    /// # Errors
    /// When the service or its server ended by itself before.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.leaving.cancel();
        self.presence.await.context("the service's registration ended by a bug")?;
        self.closing.cancel();
        match timeout(CLOSE, self.server).await {
            Ok(ended) => Ok(ended.context("the service's server ended by a bug")??),
            // Connections that somebody keeps open; no request is being answered for longer than that.
            Err(_) => Ok(()),
        }
    }
}

/// Registers, and says again and again that the service is there, until it is told to leave.
async fn be_there(
    relay: Relay,
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
            return leave(&relay, &lease).await;
        }
    }
}

async fn register(
    relay: &Relay,
    registration: &Registration,
    webhook: &watch::Sender<Option<Arc<Webhook>>>,
) -> Lease {
    let [mut pause, longest] = REGISTER_AGAIN;
    loop {
        match relay.register(registration).await {
            Ok(Registered { lease, secret }) => match Webhook::new(&secret) {
                Ok(new) => {
                    webhook.send_replace(Some(Arc::new(new)));
                    tracing::info!(service = %relay.service(), url = registration.url, "registered");
                    return lease;
                }
                Err(error) => {
                    tracing::warn!(service = %relay.service(), %error, "the relay's secret cannot be used");
                }
            },
            Err(error) => tracing::warn!(service = %relay.service(), %error, "not registered; trying again"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Returns when the relay has lost the registration.
async fn heartbeats(relay: &Relay, lease: &Lease, trouble: &watch::Receiver<Option<String>>) {
    loop {
        sleep(Duration::from_millis(lease.heartbeat_every_ms)).await;
        let reason = trouble.borrow().clone();
        match relay.heartbeat(lease, reason.as_deref()).await {
            Ok(()) => {}
            Err(error) if error.is_lease_gone() => {
                tracing::warn!(service = %relay.service(), %error, "registering again");
                return;
            }
            Err(error) => tracing::warn!(service = %relay.service(), %error, "the heartbeat was not heard"),
        }
    }
}

async fn leave(relay: &Relay, lease: &Lease) {
    if let Err(error) = relay.deregister(lease).await {
        tracing::warn!(service = %relay.service(), %error, "not deregistered; the lease will end by itself");
        return;
    }
    let deadline = Instant::now() + DRAIN;
    while Instant::now() < deadline {
        match relay.has_let_go().await {
            Ok(true) => {
                tracing::info!(service = %relay.service(), "deregistered");
                return;
            }
            Ok(false) => sleep(DRAIN_POLL).await,
            Err(error) => {
                tracing::warn!(service = %relay.service(), %error, "deregistered, and the relay is gone");
                return;
            }
        }
    }
    tracing::warn!(service = %relay.service(), "deregistered; the relay has not delivered all within {DRAIN:?}");
}

/// Why a delivery is not taken.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the service has not been told yet what deliveries are signed with")]
    NoSecret,
    #[error("{0}; deliveries are signed with the secret that the relay gave at registration")]
    Signature(#[from] standardwebhooks::WebhookError),
    #[error("the content type is `{0}`; the service registered for `application/cloudevents+json`")]
    MediaType(String),
    #[error("the body is no CloudEvent of Relay: {0}")]
    Malformed(String),
    #[error("{CONCURRENT} deliveries are being worked on; come again")]
    Busy,
    #[error(transparent)]
    NotDone(#[from] TakeError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Signature(_) => StatusCode::UNAUTHORIZED,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            // The same event would be refused again.
            Self::NotDone(TakeError::Relay(error)) if error.is_final() => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoSecret | Self::Busy | Self::NotDone(_) => StatusCode::SERVICE_UNAVAILABLE,
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
    State(shell): State<Arc<Shell>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let taken = take(&shell, &headers, &body).await;
    match &taken {
        Ok(()) => drop(shell.trouble.send_if_modified(|trouble| trouble.take().is_some())),
        Err(refusal) => {
            tracing::warn!(service = %shell.name, error = %refusal, "a delivery was not taken");
            if let Refusal::NotDone(error) = refusal {
                shell.trouble.send_replace(Some(error.to_string()));
            }
        }
    }
    taken.map(|()| StatusCode::NO_CONTENT)
}

async fn take(shell: &Shell, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let event = open(shell, headers, body)?;
    if shell.seen.lock().contains(event.id) {
        return Ok(());
    }
    let _slot = shell.slots.try_acquire().map_err(|_| Refusal::Busy)?;
    let id = event.id;
    shell.service.take(event).await?;
    shell.seen.lock().insert(id);
    Ok(())
}

/// The event of a delivery that is signed by the relay.
fn open(shell: &Shell, headers: &HeaderMap, body: &[u8]) -> Result<Event, Refusal> {
    let webhook = shell.webhook.borrow().clone().ok_or(Refusal::NoSecret)?;
    webhook.verify(body, headers)?;
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if media_type.split(';').next().map(str::trim) != Some(cloudevents::MEDIA_TYPE) {
        return Err(Refusal::MediaType(media_type.chars().take(64).collect()));
    }
    cloudevents::decode(body).map_err(|error| Refusal::Malformed(error.to_string()))
}
