//! Probes of services: real servers for HTTP, TCP and gRPC, and probes that hang or panic.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::HealthMonitor;
use crate::health::HealthConfig;
use crate::registry::Registration;
use crate::rules::{ProbeCheck, ProbeSpec};
use crate::target::{Outbound, OutboundPolicy};
use crate::test_support::{name, paused_clock};
use async_trait::async_trait;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use relay_core::{Clock, HealthProbe, ProbeFailure, SystemClock};
use relay_events::ServiceState;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// The answers of an HTTP server, and the number of its requests.
#[derive(Clone)]
struct Answers {
    next: Arc<Mutex<(u16, String)>>,
    asked: watch::Sender<usize>,
    last_path: Arc<Mutex<String>>,
}

impl Answers {
    fn set(&self, status: u16, body: &str) {
        *self.next.lock() = (status, body.to_owned());
    }
}

/// Starts a server on this machine, and returns its answers.
async fn http_server(tasks: &mut JoinSet<()>) -> (SocketAddr, Answers) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers = Answers {
        next: Arc::new(Mutex::new((200, "ok".to_owned()))),
        asked: watch::Sender::new(0),
        last_path: Arc::default(),
    };
    let told = answers.clone();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let told = told.clone();
            connections.spawn(async move {
                let answer = service_fn(|request: Request<Incoming>| {
                    *told.last_path.lock() = request.uri().to_string();
                    let (status, body) = told.next.lock().clone();
                    told.asked.send_modify(|asked| *asked += 1);
                    async move { Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap()) }
                });
                // The connection ends with an error when the monitor closes it.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    (address, answers)
}

fn start(config: HealthConfig, clock: Arc<dyn Clock>, networks: &[&str]) -> HealthMonitor {
    let policy = OutboundPolicy {
        allow_networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        ..OutboundPolicy::default()
    };
    HealthMonitor::start(
        config,
        Outbound::new(policy).unwrap(),
        clock,
        relay_tasks::Supervisor::default().group(),
        |_| {},
    )
}

fn monitor() -> HealthMonitor {
    start(HealthConfig::default(), Arc::new(SystemClock::new()), &["127.0.0.0/8"])
}

/// Registers a service that is probed ten times a second, with thresholds of 1.
fn register(monitor: &HealthMonitor, service: &str, url: String, check: ProbeCheck) {
    let mut registration = Registration::new(url);
    registration.probe = ProbeSpec::new(check);
    registration.probe.interval = *ProbeSpec::INTERVAL.start();
    (registration.probe.rise, registration.probe.fall) = (NonZeroU32::MIN, NonZeroU32::MIN);
    monitor.register(name(service), registration, None).unwrap();
}

fn http(path: &str, body: Option<&str>) -> ProbeCheck {
    ProbeCheck::Http { path: path.to_owned(), status: 200, body: body.map(str::to_owned) }
}

/// Waits until the service is in `state`, and returns the reason.
async fn becomes(monitor: &HealthMonitor, service: &str, state: ServiceState) -> String {
    let mut changes = monitor.changes();
    let wait = async {
        loop {
            let found = monitor.service(&name(service)).unwrap();
            if found.state == state {
                return found.reason.unwrap_or_default();
            }
            changes.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    waited.unwrap_or_else(|_| panic!("{service} is not {state:?}: {:?}", monitor.service(&name(service))))
}

#[tokio::test]
async fn an_http_service_works_when_status_and_body_are_as_expected() {
    let mut tasks = JoinSet::new();
    let (address, answers) = http_server(&mut tasks).await;
    let monitor = monitor();
    let url = format!("http://{address}/events");
    register(&monitor, "sift", url, http("/health?deep=1", Some("ok")));
    becomes(&monitor, "sift", ServiceState::Healthy).await;
    assert_eq!(*answers.last_path.lock(), "/health?deep=1");
    answers.set(503, "ok");
    let reason = becomes(&monitor, "sift", ServiceState::Unhealthy).await;
    assert_eq!(reason, "probe: status 503 instead of 200");
    answers.set(200, "all is ok");
    becomes(&monitor, "sift", ServiceState::Healthy).await;
    answers.set(200, "no");
    let reason = becomes(&monitor, "sift", ServiceState::Unhealthy).await;
    assert_eq!(reason, "probe: `ok` is not in the first 65536 bytes of the body");
    monitor.shutdown().await;
}

#[tokio::test]
async fn of_a_long_body_the_first_64_kib_alone_are_read() {
    let mut tasks = JoinSet::new();
    let (address, answers) = http_server(&mut tasks).await;
    let monitor = monitor();
    answers.set(200, &format!("{}ok", "x".repeat(64 * 1024)));
    register(&monitor, "sift", format!("http://{address}"), http("/", Some("ok")));
    becomes(&monitor, "sift", ServiceState::Unhealthy).await;
    answers.set(200, &format!("{}ok", "x".repeat(64 * 1024 - 2)));
    becomes(&monitor, "sift", ServiceState::Healthy).await;
    monitor.shutdown().await;
}

#[tokio::test]
async fn a_path_that_leads_to_another_host_is_not_asked_for() {
    let mut tasks = JoinSet::new();
    let (address, _) = http_server(&mut tasks).await;
    let (other, answers) = http_server(&mut tasks).await;
    let monitor = monitor();
    for (service, path) in [("slashes", format!("//{other}/")), ("backslash", format!("/\\{other}/"))] {
        register(&monitor, service, format!("http://{address}"), http(&path, None));
        let reason = becomes(&monitor, service, ServiceState::Unhealthy).await;
        assert_eq!(reason, format!("probe: path `{path}` leads to another host"));
    }
    assert_eq!(*answers.asked.borrow(), 0);
    monitor.shutdown().await;
}

#[tokio::test]
async fn a_service_on_this_machine_is_not_asked_unless_that_is_allowed() {
    let mut tasks = JoinSet::new();
    let (address, answers) = http_server(&mut tasks).await;
    let monitor = start(HealthConfig::default(), Arc::new(SystemClock::new()), &[]);
    let grpc = ProbeCheck::Grpc { service: String::new() };
    for (service, check) in [("http", http("/", None)), ("tcp", ProbeCheck::Tcp), ("grpc", grpc)] {
        register(&monitor, service, format!("http://{address}"), check);
        let reason = becomes(&monitor, service, ServiceState::Unhealthy).await;
        assert!(reason.contains("127.0.0.1, which is not on the public internet"), "{reason}");
    }
    assert_eq!(*answers.asked.borrow(), 0);
    monitor.shutdown().await;
}

#[tokio::test]
async fn a_tcp_service_works_as_long_as_it_takes_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let monitor = monitor();
    register(&monitor, "spawn", format!("http://{address}"), ProbeCheck::Tcp);
    becomes(&monitor, "spawn", ServiceState::Healthy).await;
    drop(listener);
    let reason = becomes(&monitor, "spawn", ServiceState::Unhealthy).await;
    assert!(reason.contains("cannot connect to"), "{reason}");
    monitor.shutdown().await;
}

#[tokio::test]
async fn a_grpc_service_works_when_it_says_that_it_serves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("stitch", tonic_health::ServingStatus::Serving).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming).await.unwrap();
    });
    let monitor = monitor();
    let asked_for = |service: &str| ProbeCheck::Grpc { service: service.to_owned() };
    register(&monitor, "server", format!("http://{address}"), asked_for(""));
    register(&monitor, "stitch", format!("http://{address}"), asked_for("stitch"));
    register(&monitor, "other", format!("http://{address}"), asked_for("other"));
    becomes(&monitor, "server", ServiceState::Healthy).await;
    becomes(&monitor, "stitch", ServiceState::Healthy).await;
    let reason = becomes(&monitor, "other", ServiceState::Unhealthy).await;
    assert!(reason.starts_with("probe: it answers NotFound"), "{reason}");
    reporter.set_service_status("stitch", tonic_health::ServingStatus::NotServing).await;
    let reason = becomes(&monitor, "stitch", ServiceState::Unhealthy).await;
    assert_eq!(reason, "probe: it says NOT_SERVING");
    monitor.shutdown().await;
}

#[tokio::test]
async fn a_gone_service_is_not_probed() {
    let mut tasks = JoinSet::new();
    let (address, answers) = http_server(&mut tasks).await;
    let (other, later) = http_server(&mut tasks).await;
    let mut config = HealthConfig::default();
    (config.lease, config.heartbeat_every) = (Duration::from_millis(500), Duration::from_millis(250));
    config.tick = Duration::from_millis(20);
    let monitor = start(config, Arc::new(SystemClock::new()), &["127.0.0.0/8"]);
    register(&monitor, "sift", format!("http://{address}"), http("/", None));
    becomes(&monitor, "sift", ServiceState::Healthy).await;
    becomes(&monitor, "sift", ServiceState::Gone).await;
    // One probe may have been in flight. After two probes of another monitor's service it has arrived.
    let meanwhile = self::monitor();
    register(&meanwhile, "other", format!("http://{other}"), http("/", None));
    let asked_by_then = async |times: usize| {
        later.asked.subscribe().wait_for(|asked| *asked >= times).await.unwrap();
        *answers.asked.borrow()
    };
    let at_the_end = asked_by_then(2).await;
    assert_eq!(asked_by_then(6).await, at_the_end);
    meanwhile.shutdown().await;
    monitor.shutdown().await;
}

/// A probe as a library's user writes it.
struct Custom {
    asked: Arc<AtomicUsize>,
    does: fn(usize) -> Does,
}

enum Does {
    Work,
    Hang,
    Panic,
}

#[async_trait]
impl HealthProbe for Custom {
    async fn check(&self) -> Result<(), ProbeFailure> {
        match (self.does)(self.asked.fetch_add(1, Ordering::Relaxed)) {
            Does::Work => Ok(()),
            Does::Hang => std::future::pending().await,
            Does::Panic => panic!("this probe breaks"),
        }
    }
}

/// Attaches a target whose probe does as `does` says, and returns the number of its probes.
fn attach(monitor: &HealthMonitor, service: &str, does: fn(usize) -> Does) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let probe = Custom { asked: Arc::clone(&asked), does };
    monitor.attach(name(service), Vec::new(), Some(Arc::new(probe)));
    asked
}

fn on_paused_time() -> HealthMonitor {
    start(HealthConfig::default(), paused_clock(), &[])
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_delays_no_other() {
    let monitor = on_paused_time();
    let hung: Vec<_> = (0..50).map(|n| attach(&monitor, &format!("hung-{n}"), |_| Does::Hang)).collect();
    let asked = attach(&monitor, "sift", |_| Does::Work);
    sleep(Duration::from_secs(600)).await;
    // The interval is 27 to 33 seconds, and the first probe comes within one second.
    let times = asked.load(Ordering::Relaxed);
    assert!((19..=23).contains(&times), "{times}");
    assert_eq!(monitor.state(&name("sift")), ServiceState::Healthy);
    for (n, asked) in hung.iter().enumerate() {
        assert!(asked.load(Ordering::Relaxed) >= 15);
        let found = monitor.service(&name(&format!("hung-{n}"))).unwrap();
        let reason = Some("probe: no answer within 5000 ms");
        assert_eq!((found.state, found.reason.as_deref()), (ServiceState::Unhealthy, reason));
    }
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_has_failed_and_is_asked_again() {
    let monitor = on_paused_time();
    attach(&monitor, "sift", |asked| if asked < 3 { Does::Panic } else { Does::Work });
    let reason = becomes_in_time(&monitor, "sift", ServiceState::Unhealthy).await;
    assert_eq!(reason, "probe: the probe has panicked");
    becomes_in_time(&monitor, "sift", ServiceState::Healthy).await;
    monitor.shutdown().await;
}

/// Waits as [`becomes`] does, for a service that is probed every half minute.
async fn becomes_in_time(monitor: &HealthMonitor, service: &str, state: ServiceState) -> String {
    let mut changes = monitor.changes();
    loop {
        let found = monitor.service(&name(service)).unwrap();
        if found.state == state {
            return found.reason.unwrap_or_default();
        }
        tokio::time::timeout(Duration::from_secs(300), changes.changed()).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn services_that_come_together_are_not_asked_together() {
    let monitor = on_paused_time();
    let asked: Vec<_> = (0..100).map(|n| attach(&monitor, &format!("s-{n}"), |_| Does::Work)).collect();
    sleep(Duration::from_millis(500)).await;
    let by_then = asked.iter().filter(|asked| asked.load(Ordering::Relaxed) > 0).count();
    assert!((10..=90).contains(&by_then), "{by_then}");
    monitor.shutdown().await;
}
