//! The death of each task in turn: it is noticed, and the service goes on or says what is missing. What the task held is free
//! again as far as the next round of work needs it; nothing else of it is compared.
//!
//! Parts that announce nothing to wait for are asked again after a pause, and a round that failed is repeated after one.
//!
//! Tasks are made by `relay-tasks` alone, so the names in the sources are all tasks that there are. The first test compares
//! them with the tasks that this file ends.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect by unwrapping it")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{SinkExt as _, StreamExt as _};
use relay_bus::{BlockingHandler, EventHandler, Filter, HandlerError, MailboxConfig};
use relay_core::{
    Delivery, DeliveryError, DocumentId, Draft, Event, EventId, HealthProbe, Offset, Payload, ProbeFailure,
    ServiceName, StartPosition, Target, UserId,
};
use relay_events::ServiceState;
use relay_log::LogConfig;
use relay_presence::{AcquireLock, ReleaseLock, UpdateState};
use relay_router::decisions::DecisionFilter;
use relay_router::rules::{RuleDocument, RuleFormat};
use relay_router::target::InProcessTarget;
use relay_router::{ReplayRequest, ReplayStart, ReplayState, RouterConfig};
use relay_service::{RelayService, ServiceConfig, Storage};
use relay_tasks::{Supervisor, TaskName};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Answer, PATIENCE, try_request};

/// The tasks that run, or are started by a round of work, while a service serves.
const SERVING: &[&str] = &[
    "bus.duplicates",
    "bus.handler",
    "bus.handler-feed",
    "bus.handler-thread",
    "bus.sweeper",
    "bus.writer",
    "http.acceptor",
    "http.connection",
    "log.read",
    "presence.checkpoint",
    "presence.flush",
    "presence.locks",
    "presence.publisher",
    "presence.sweep",
    "router.attempt",
    "router.decisions",
    "router.dispatcher",
    "router.health-ticks",
    "router.log-follower",
    "router.operation",
    "router.probe",
    "router.replay",
    "router.scheduler",
    "router.service-changes",
    "ws.shard",
    "ws.upgrade",
];
/// The tasks without which the service cannot go on: it says so until it is restarted.
const VITAL: &[&str] = &["log.writer", "router.store-writer"];
/// The tasks of a stop.
const STOPPING: &[&str] = &["bus.handler-join", "log.close"];
/// The tasks of the program, which have a test beside them.
const OF_PROGRAM: &[&str] = &["program.log-output"];

const RULES: &str = r#"
    [[rules]]
    name = "notes"
    kinds = ["x-note"]
    targets = ["recorder"]
"#;

/// The events of a document that are in memory.
const CACHED: usize = 32;

/// The payloads that have reached a part.
#[derive(Clone)]
struct Reached(watch::Sender<Vec<Payload>>);

impl Reached {
    fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    fn add(&self, event: &Event) {
        self.0.send_modify(|seen| seen.push(event.payload.clone()));
    }

    /// Waits until `payload` has come.
    async fn by(&self, payload: &Payload) {
        self.0.subscribe().wait_for(|seen| seen.contains(payload)).await.unwrap();
    }
}

#[async_trait]
impl Target for Reached {
    async fn deliver(&self, delivery: Delivery) -> Result<(), DeliveryError> {
        delivery.events.iter().for_each(|event| self.add(event));
        Ok(())
    }
}

#[async_trait]
impl EventHandler for Reached {
    async fn handle(&self, event: Arc<Event>) -> Result<(), HandlerError> {
        self.add(&event);
        Ok(())
    }
}

impl BlockingHandler for Reached {
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        self.add(event);
        Ok(())
    }
}

struct Healthy;

#[async_trait]
impl HealthProbe for Healthy {
    async fn check(&self) -> Result<(), ProbeFailure> {
        Ok(())
    }
}

/// A service with work for each kind of task.
struct World {
    service: RelayService,
    supervisor: Supervisor,
    address: SocketAddr,
    target: Reached,
    handler: Reached,
    blocking: Reached,
    /// Makes the payload of each round another one.
    rounds: AtomicUsize,
}

fn service_name(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

impl World {
    async fn start(directory: &Path) -> Self {
        let (supervisor, target) = (Supervisor::default(), Reached::new());
        let mut router = RouterConfig::new(directory.join("router"));
        router.rules = RuleDocument { text: RULES.to_owned(), format: RuleFormat::Toml };
        let recorder = InProcessTarget::new(service_name("recorder"), Arc::new(target.clone()));
        router.targets = vec![recorder.probe(Arc::new(Healthy))];
        let mut config = ServiceConfig::in_process();
        config.storage = Storage::Embedded(LogConfig::new(directory.join("log")));
        config.router = Some(router);
        config.bus.cache_events = CACHED;
        config.bus.preload_events = CACHED;
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        config.supervisor = supervisor.clone();
        let service = RelayService::start(config).await.unwrap();
        let (handler, blocking) = (Reached::new(), Reached::new());
        let (filter, mailbox) = (Filter::all(), MailboxConfig::default());
        service.bus().handle("async", filter.clone(), mailbox, PATIENCE, Arc::new(handler.clone()));
        let threads: Arc<dyn BlockingHandler> = Arc::new(blocking.clone());
        service.bus().handle_blocking("threads", filter, mailbox, NonZeroUsize::MIN, &threads).unwrap();
        let address = service.address().unwrap();
        Self { service, supervisor, address, target, handler, blocking, rounds: AtomicUsize::new(0) }
    }

    fn panicked(&self, name: &'static str) -> u64 {
        self.supervisor.stats().get(&TaskName::new(name)).map_or(0, |stats| stats.panicked)
    }

    /// Uses each part of the service once. An error says which part did not work.
    async fn round(&self) -> Result<(), String> {
        let document = DocumentId::new("notes").unwrap();
        let failed = |part: &'static str| move |error: &dyn std::fmt::Display| format!("{part}: {error}");
        // Presence and locks.
        let user = UserId::new("ada").unwrap();
        let ada = self.service.join(document.clone(), user, StartPosition::Live).await;
        let ada = ada.map_err(|error| failed("join")(&error))?;
        let acquire = AcquireLock { region: None, ttl: None, wait: None };
        let lease = ada.command(acquire).await.map_err(|error| failed("lock")(&error))?;
        let state = serde_json::from_value(json!({"at": 1})).unwrap();
        ada.command(UpdateState(state)).await.map_err(|error| failed("update")(&error))?;
        // Publishing, handlers and routing.
        let payload = Payload::json(&self.rounds.fetch_add(1, Ordering::SeqCst)).unwrap();
        let published = ada.publish(relay_events::kind("x-note").unwrap(), payload.clone()).await;
        published.map_err(|error| failed("publish")(&error))?;
        let released = ada.command(ReleaseLock { token: lease.token }).await;
        released.map_err(|error| failed("release")(&error))?;
        tokio::join!(self.target.by(&payload), self.handler.by(&payload), self.blocking.by(&payload));
        // A draft whose event is in the log alone is sent again.
        let unread = DocumentId::new(format!("unread-{}", self.rounds.load(Ordering::SeqCst))).unwrap();
        let draft = || {
            let payload = Payload::json(&"again").unwrap();
            Draft::new(unread.clone(), relay_events::kind("x-again").unwrap(), payload)
        };
        let again = EventId::new();
        let others = (0..CACHED).map(|_| (draft(), false));
        let drafts =
            std::iter::once((draft().id(again), false)).chain(others).chain([(draft().id(again), true)]);
        for (draft, is_duplicate) in drafts {
            let ack = self.service.publish(draft).await.map_err(|error| failed("publish again")(&error))?;
            if ack.duplicate != is_duplicate {
                return Err(format!("publish again: {ack:?}"));
            }
        }
        // The events of the session.
        while self.service.stats().presence.waiting_events > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The history, from the log.
        let read = self.service.subscribe(&unread, StartPosition::Live).await;
        read.map_err(|error| failed("history")(&error))?;
        // HTTP and WebSocket.
        let answer = ready(self.address).await.ok_or("http: no answer")?;
        if answer.status != 200 {
            return Err(format!("http: {}", answer.body));
        }
        self.push_over_websocket().await.map_err(|error| format!("websocket: {error}"))?;
        self.use_router().await
    }

    async fn push_over_websocket(&self) -> Result<(), Box<dyn std::error::Error>> {
        let stream = TcpStream::connect(self.address).await?;
        let url = format!("ws://{}/socket/websocket?vsn=2.0.0&user_id=bob", self.address);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
        let join = json!(["1", "1", "document:notes", "phx_join", {}]);
        socket.send(Message::text(join.to_string())).await?;
        loop {
            let message = socket.next().await.ok_or("the connection ended")??;
            let Ok(text) = message.to_text() else { continue };
            if text.contains("phx_reply") {
                return if text.contains("\"ok\"") { Ok(()) } else { Err(text.to_owned().into()) };
            }
        }
    }

    async fn use_router(&self) -> Result<(), String> {
        let router = self.service.router().unwrap().clone();
        let recorder = service_name("recorder");
        if let Some(failure) = router.failure() {
            return Err(format!("router: {failure}"));
        }
        let (changing, name) = (router.clone(), recorder.clone());
        // The panic of an operation is its caller's.
        let replay = tokio::spawn(async move {
            changing.replay(&name, ReplayRequest::new(ReplayStart::Offset(Offset::new(1)))).await
        });
        let replay = replay.await.map_err(|error| format!("operation: {error}"))?;
        let replay = replay.map_err(|error| format!("replay: {error}"))?;
        let is_running = |id| {
            router.replays(&recorder).iter().any(|one| one.id == id && one.state == ReplayState::Running)
        };
        while is_running(replay.id) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let kept = router.decisions().query(DecisionFilter::default(), 1).await;
        if kept.map_err(|error| format!("decisions: {error}"))?.is_empty() {
            return Err("decisions: none".to_owned());
        }
        // A change of a service becomes an event.
        let healthy = router.target(&recorder).is_some_and(|one| one.state == ServiceState::Healthy);
        if healthy { Ok(()) } else { Err("probe: the service is not healthy".to_owned()) }
    }

    /// Repeats the round until it succeeds.
    async fn works(&self, name: &str) {
        let mut last = String::new();
        let working = async {
            loop {
                match tokio::time::timeout(Duration::from_secs(5), self.round()).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => last = error,
                    Err(_elapsed) => "a part of the round does not end".clone_into(&mut last),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let worked = tokio::time::timeout(PATIENCE, working).await;
        assert!(worked.is_ok(), "after the death of {name}: {last}");
    }
}

/// Asks the server if it is ready. `None` without a whole answer.
async fn ready(address: SocketAddr) -> Option<Answer> {
    let asking = tokio::task::spawn_blocking(move || try_request(address, "GET", "/health/ready", &[], b""));
    asking.await.unwrap()
}

#[test]
fn every_task_of_the_sources_is_ended_by_a_test() {
    fn names(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let calls = text.split("= TaskName::new(\"").skip(1);
                found.extend(calls.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    let mut found = BTreeSet::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for one in std::fs::read_dir(crates).unwrap() {
        let source = one.unwrap().path().join("src");
        if source.is_dir() {
            names(&source, &mut found);
        }
    }
    let ended = [SERVING, VITAL, STOPPING, OF_PROGRAM].concat();
    assert_eq!(found, ended.iter().map(|name| (*name).to_owned()).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_goes_on_after_the_death_of_each_of_its_tasks() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::start(directory.path()).await;
    world.works("none").await;
    for name in SERVING {
        world.supervisor.kill(TaskName::new(name));
        let dying = async {
            while world.panicked(name) == 0 {
                let _ = tokio::time::timeout(Duration::from_millis(500), world.round()).await;
            }
        };
        let died = tokio::time::timeout(PATIENCE, dying).await;
        assert!(died.is_ok(), "no task {name} was there to be ended");
        world.works(name).await;
        assert_eq!(world.panicked(name), 1, "{name}");
        assert_eq!(world.supervisor.failures(), [], "{name}");
    }
    assert!(world.service.stop().await.unwrap().complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_cannot_go_on_says_why() {
    for name in VITAL {
        let directory = tempfile::tempdir().unwrap();
        let world = World::start(directory.path()).await;
        world.works("none").await;
        world.supervisor.kill(TaskName::new(name));
        let address = world.address;
        let failing = async {
            loop {
                let _ = tokio::time::timeout(Duration::from_millis(500), world.round()).await;
                if let Some(answer) = ready(address).await.filter(|answer| answer.status == 503) {
                    return answer;
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, failing).await.unwrap_or_else(|_| panic!("{name}"));
        let reason = answer.json()["reason"].clone();
        assert!(["log_failed", "store_failed", "task_failed"].iter().any(|one| reason == *one), "{answer:?}");
        // It stops in time all the same.
        let stopped = tokio::time::timeout(PATIENCE, world.service.stop()).await;
        assert!(stopped.is_ok(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_ends_although_a_task_of_its_stop_dies() {
    for name in STOPPING {
        let directory = tempfile::tempdir().unwrap();
        let world = World::start(directory.path()).await;
        world.works("none").await;
        world.supervisor.kill(TaskName::new(name));
        let (service, supervisor) = (world.service, world.supervisor);
        let stopped = tokio::time::timeout(PATIENCE, service.stop()).await;
        assert!(stopped.is_ok(), "{name}");
        assert_eq!(supervisor.stats()[&TaskName::new(name)].panicked, 1, "{name}");
    }
}
