//! The processor time of the relay's thread for each probe, by type of probe (Linux).
//!
//! `cargo bench -p relay-router --bench health`. 100 services are each probed about ten times a second. They run
//! on another thread, whose time is not counted. The figure includes the router's other work on its thread. That
//! is little, because there are no events. Probes over HTTP reuse their connections, as they do at the default
//! interval; probes over TCP open one each.

#![allow(clippy::disallowed_methods, reason = "a benchmark ends with its tasks")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up must stop")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use relay_core::testing::{ClosedSink, MemoryLog};
use relay_core::{ServiceName, SystemClock};
use relay_events::ServiceState;
use relay_router::registry::{Registration, ServiceQuery};
use relay_router::rules::{ProbeCheck, ProbeSpec};
use relay_router::{Router, RouterConfig, RouterParts};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Returns the processor time of this thread.
fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Answers GETs, and counts connections and requests.
async fn serve(listener: TcpListener, connections: Arc<AtomicU64>, requests: Arc<AtomicU64>) {
    let mut tasks = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, Ordering::Relaxed);
        let requests = Arc::clone(&requests);
        tasks.spawn(async move {
            let answer = service_fn(|_: Request<Incoming>| {
                requests.fetch_add(1, Ordering::Relaxed);
                async { Ok::<_, Infallible>(Response::new("ok".to_owned())) }
            });
            // The connection ends with an error when the relay closes it.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn measure(what: &str, address: SocketAddr, check: &ProbeCheck, count: &AtomicU64) {
    runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let mut config = RouterConfig::new(directory.path());
        config.outbound.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
        let parts =
            RouterParts::new(Arc::new(MemoryLog::new()), Arc::new(ClosedSink), Arc::new(SystemClock::new()));
        let router = Router::start(config, parts).await.unwrap();
        for n in 0..100 {
            let mut registration = Registration::new(format!("http://{address}"));
            registration.probe = ProbeSpec::new(check.clone());
            registration.probe.interval = *ProbeSpec::INTERVAL.start();
            registration.probe.rise = NonZeroU32::MIN;
            router
                .register(ServiceName::new(format!("service-{n}")).unwrap(), registration, None)
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (before, checks) = (on_processor(), count.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (took, checks) = (on_processor().saturating_sub(before), count.load(Ordering::Relaxed) - checks);
        assert!(checks > 0, "no probe reached a service");
        let services = router.services(&ServiceQuery::default());
        let is_healthy = services.iter().all(|service| service.state == ServiceState::Healthy);
        assert!(is_healthy, "a probe failed, so the figure would not be that of a whole probe");
        let micros = took.as_secs_f64() * 1e6 / f64::from(u32::try_from(checks).unwrap());
        println!("{what}: {micros:.0} µs of the relay's thread for each of {checks} probes");
        router.stop(Duration::from_secs(5)).await;
    });
}

fn main() {
    let (connections, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (bound, address) = std::sync::mpsc::channel();
    {
        let (connections, requests) = (Arc::clone(&connections), Arc::clone(&requests));
        std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, connections, requests).await;
            });
        });
    }
    let address = address.recv().unwrap();
    let http = ProbeCheck::Http { path: "/health".to_owned(), status: 200, body: Some("ok".to_owned()) };
    measure("http", address, &http, &requests);
    measure("tcp", address, &ProbeCheck::Tcp, &connections);
}
