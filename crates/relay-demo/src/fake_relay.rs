//! A relay for the tests of services, with registration, one document and signed deliveries.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, State};
use axum::routing::{post, put};
use axum::{Json, Router};
use http::StatusCode;
use parking_lot::Mutex;
use relay_core::{EventId, ServiceName};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Profile, RunningService, SERVICES};

pub(super) const SECRET: &str = "whsec_c2VjcmV0IG9mIHRoZSByZWxheSBpbiB0ZXN0cw==";
const EPOCH: &str = "00c0ffee00c0ffee";
/// The time after which a waiting test fails. No test asserts a time.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The requests of the services so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Requests {
    pub(super) registrations: Vec<Value>,
    pub(super) heartbeats: Vec<Value>,
    pub(super) deregistrations: usize,
    pub(super) pages: usize,
    pub(super) publications: usize,
}

#[derive(Default)]
struct Document {
    events: Vec<Value>,
    /// The relay answers a publication with 503.
    is_overloaded: bool,
    /// The relay knows no lease.
    has_forgotten: bool,
}

pub(super) struct FakeRelay {
    pub(super) url: String,
    document: Mutex<Document>,
    asked: watch::Sender<Requests>,
}

impl FakeRelay {
    pub(super) async fn start() -> (Arc<Self>, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = watch::Sender::new(Requests::default());
        let relay = Arc::new(Self { url, document: Mutex::default(), asked });
        let routes = Router::new()
            .route("/v1/services/{name}", put(register).delete(deregister).get(service))
            .route("/v1/services/{name}/heartbeat", post(heartbeat))
            .route("/v1/documents/{id}/events", post(publish).get(history))
            .with_state(Arc::clone(&relay));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (relay, AbortOnDropHandle::new(server))
    }

    /// Starts a service of the four and waits until it has registered.
    pub(super) async fn service(&self, name: &str) -> RunningService {
        let profile: &Profile = SERVICES.iter().find(|profile| profile.name == name).unwrap();
        let registered = self.asked.borrow().registrations.len();
        let running = RunningService::start(profile, &self.url, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .await
            .unwrap();
        self.until(|asked| asked.registrations.len() > registered).await;
        running
    }

    /// Waits until `is_so` holds for the requests of the services.
    pub(super) async fn until(&self, is_so: impl FnMut(&Requests) -> bool) -> Requests {
        let mut asked = self.asked.subscribe();
        timeout(TEST_TIMEOUT, asked.wait_for(is_so)).await.unwrap().unwrap().clone()
    }

    pub(super) fn asked(&self) -> Requests {
        self.asked.borrow().clone()
    }

    /// Appends an event to the document and returns it.
    pub(super) fn append(&self, kind: &str, actor: &str, payload: &Value) -> Value {
        let mut document = self.document.lock();
        let seq = document.events.len() + 1;
        let event = json!({
            "id": EventId::from_name(&seq.to_string()), "document": "notes", "kind": kind, "seq": seq, "epoch": EPOCH,
            "offset": seq, "time": "2026-01-02T03:04:05.000006Z", "actor": actor, "payload": payload,
        });
        document.events.push(event.clone());
        event
    }

    /// Returns the events of `kind`.
    pub(super) fn published(&self, kind: &str) -> Vec<Value> {
        let document = self.document.lock();
        document.events.iter().filter(|event| event["kind"] == kind).cloned().collect()
    }

    pub(super) fn overload(&self, is_overloaded: bool) {
        self.document.lock().is_overloaded = is_overloaded;
    }

    pub(super) fn forget(&self, has_forgotten: bool) {
        self.document.lock().has_forgotten = has_forgotten;
    }
}

/// Delivers `event` as the relay does, and returns the status of the answer.
pub(super) async fn deliver(to: &RunningService, event: &Value) -> StatusCode {
    let mut event = relay_events::json::decode(event.to_string().as_bytes()).unwrap();
    event.metadata.insert("relay.causes", "quality").unwrap();
    let body = relay_events::cloudevents::encode(&event);
    send(to, &body, SECRET, relay_events::cloudevents::MEDIA_TYPE).await
}

/// Sends a body that is signed with `secret`, and returns the status of the answer.
pub(super) async fn send(to: &RunningService, body: &[u8], secret: &str, media_type: &str) -> StatusCode {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let signature = Webhook::new(secret).unwrap().sign("id", now.try_into().unwrap(), body).unwrap();
    // Installs the provider that the HTTP client needs.
    super::client::RelayClient::new("http://127.0.0.1:1", ServiceName::new("test").unwrap()).unwrap();
    let request =
        reqwest::Client::builder().no_proxy().build().unwrap().post(format!("http://{}/events", to.address));
    let request = request
        .header("content-type", media_type)
        .header("webhook-id", "id")
        .header("webhook-timestamp", now.to_string())
        .header("webhook-signature", signature)
        .body(body.to_vec());
    timeout(TEST_TIMEOUT, request.send()).await.unwrap().unwrap().status()
}

type Relay = State<Arc<FakeRelay>>;

async fn register(State(relay): Relay, Json(registration): Json<Value>) -> (StatusCode, Json<Value>) {
    relay.asked.send_modify(|asked| asked.registrations.push(registration));
    let lease = json!({"id": "7", "ttl_ms": 30_000, "heartbeat_every_ms": 20});
    (StatusCode::CREATED, Json(json!({"service": {}, "lease": lease, "secret": SECRET})))
}

async fn heartbeat(State(relay): Relay, Json(beat): Json<Value>) -> (StatusCode, Json<Value>) {
    relay.asked.send_modify(|asked| asked.heartbeats.push(beat));
    if relay.document.lock().has_forgotten {
        let problem = json!({"reason": "unknown_service", "message": "register again"});
        return (StatusCode::NOT_FOUND, Json(problem));
    }
    (StatusCode::OK, Json(json!({"ttl_ms": 30_000})))
}

async fn deregister(State(relay): Relay) -> StatusCode {
    relay.asked.send_modify(|asked| asked.deregistrations += 1);
    StatusCode::ACCEPTED
}

/// A service that has left is gone as soon as its queue is empty.
async fn service() -> Json<Value> {
    Json(json!({"state": "gone"}))
}

#[derive(serde::Deserialize)]
struct After {
    after_seq: usize,
    limit: usize,
}

async fn history(State(relay): Relay, Query(After { after_seq, limit }): Query<After>) -> Json<Value> {
    relay.asked.send_modify(|asked| asked.pages += 1);
    let document = relay.document.lock();
    // Pages of three events, so that a test reads several.
    let events: Vec<_> = document.events.iter().skip(after_seq).take(limit.min(3)).collect();
    Json(json!({
        "epoch": EPOCH, "first_seq": 1, "last_seq": document.events.len(), "events": events,
        "next_after_seq": after_seq + events.len(),
    }))
}

async fn publish(
    State(relay): Relay,
    Path(_): Path<String>,
    Json(draft): Json<Value>,
) -> (StatusCode, Json<Value>) {
    relay.asked.send_modify(|asked| asked.publications += 1);
    let mut document = relay.document.lock();
    if document.is_overloaded {
        let problem = json!({"reason": "overloaded", "message": "try again"});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(problem));
    }
    if document.events.iter().any(|event| event["id"] == draft["id"]) {
        return (StatusCode::OK, Json(json!({"duplicate": true})));
    }
    let seq = document.events.len() + 1;
    let mut event = draft;
    for (name, value) in [
        ("document", json!("notes")),
        ("seq", json!(seq)),
        ("epoch", json!(EPOCH)),
        ("offset", json!(seq)),
        ("time", json!("2026-01-02T03:04:05.000006Z")),
    ] {
        event[name] = value;
    }
    document.events.push(event);
    (StatusCode::CREATED, Json(json!({"duplicate": false})))
}
