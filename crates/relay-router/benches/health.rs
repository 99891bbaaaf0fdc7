//! The processor time of one probe on the relay's side, by type of probe.
//!
//! `cargo bench -p relay-router --bench health`. The services run on another thread. The bench measures the
//! processor time of the relay's own thread (Linux) for 100 services that are each probed ten times a second.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up must stop")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use relay_core::testing::MemoryLog;
use relay_core::{CheckedDraft, EventSink, PublishAck, PublishError, ServiceName, SystemClock};
use relay_router::registry::Registration;
use relay_router::rules::{ProbeCheck, ProbeSpec};
use relay_router::{Router, RouterConfig, RouterParts};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A sink that is closed: nothing reads the changes of services.
struct ClosedSink;

#[async_trait]
impl EventSink for ClosedSink {
    async fn publish(&self, _: CheckedDraft) -> Result<PublishAck, PublishError> {
        Err(PublishError::Closed)
    }
}

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
        let parts = RouterParts {
            log: Arc::new(MemoryLog::new()),
            sink: Arc::new(ClosedSink),
            clock: Arc::new(SystemClock::new()),
        };
        let router = Router::start(config, parts).await.unwrap();
        for n in 0..100 {
            let mut registration = Registration::new(format!("http://{address}"));
            registration.probe = ProbeSpec::new(check.clone());
            registration.probe.interval = *ProbeSpec::INTERVAL.start();
            registration.probe.rise = NonZeroU32::MIN;
            router.register(ServiceName::new(format!("service-{n}")).unwrap(), registration).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (before, checks) = (on_processor(), count.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (took, checks) = (on_processor().saturating_sub(before), count.load(Ordering::Relaxed) - checks);
        let micros = took.as_secs_f64() * 1e6 / f64::from(u32::try_from(checks).unwrap());
        println!("{what}: {micros:.0} µs of the relay's own time per check, of {checks} checks");
        router.stop(Duration::from_secs(5)).await;
    });
}

fn main() {
    let (connections, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (tell, told) = std::sync::mpsc::channel();
    {
        let (connections, requests) = (Arc::clone(&connections), Arc::clone(&requests));
        std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, connections, requests).await;
            });
        });
    }
    let address = told.recv().unwrap();
    let http = ProbeCheck::Http { path: "/health".to_owned(), status: 200, body: Some("ok".to_owned()) };
    measure("http", address, &http, &requests);
    measure("tcp", address, &ProbeCheck::Tcp, &connections);
}
