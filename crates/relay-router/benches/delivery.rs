//! Events per second from the log to a service over HTTP on this machine: through the dispatcher, the store on disk, and
//! one POST for each event or for each batch.

#![allow(clippy::disallowed_methods, reason = "a benchmark ends with its tasks")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up must stop")]

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use relay_core::testing::{ClosedSink, MemoryLog};
use relay_core::{DocumentId, Draft, EventLog, Payload, SystemClock, Timestamp};
use relay_router::rules::{RuleDocument, RuleFormat};
use relay_router::{Router, RouterConfig, RouterParts};
use tokio::net::TcpListener;
use tokio::sync::Notify;

const DOCUMENTS: usize = 64;

/// A service that counts the CloudEvents in its requests.
struct Counting {
    events: AtomicUsize,
    wanted: AtomicUsize,
    enough: Notify,
}

async fn take(
    counting: Arc<Counting>,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let found = memchr::memmem::find_iter(&body, b"\"specversion\"").count();
    let events = counting.events.fetch_add(found, Ordering::SeqCst) + found;
    if events >= counting.wanted.load(Ordering::SeqCst) {
        counting.enough.notify_one();
    }
    Ok(Response::new(Empty::new()))
}

async fn serve(counting: Arc<Counting>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counting = Arc::clone(&counting);
            tokio::spawn(async move {
                let service = service_fn(|request| take(Arc::clone(&counting), request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    format!("http://{address}/")
}

async fn router(url: &str, target: &str, directory: &std::path::Path, log: &MemoryLog) -> Router {
    let mut config = RouterConfig::new(directory);
    config.rules = RuleDocument {
        text: format!(
            "[[targets]]\nname = \"a\"\nurl = \"{url}\"\n{target}\n[[rules]]\nname = \"all\"\nkinds = [\"x-note\"]\ntargets = [\"a\"]"
        ),
        format: RuleFormat::Toml,
    };
    config.outbound.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let parts = RouterParts::new(Arc::new(log.clone()), Arc::new(ClosedSink), Arc::new(SystemClock::new()));
    Router::start(config, parts).await.unwrap()
}

async fn append(log: &MemoryLog, events: usize) {
    for n in 0..events {
        let document = DocumentId::new(format!("d{}", n % DOCUMENTS)).unwrap();
        let head = log.head(&document).await.unwrap();
        let payload =
            Payload::json(&serde_json::json!({"n": n, "text": "a few words as somebody types them"}))
                .unwrap();
        let draft = Draft::new(document.clone(), relay_events::kind("x-note").unwrap(), payload);
        let event = draft.into_event(head.epoch, Some(head.last.next()), Timestamp::UNIX_EPOCH);
        log.append(&document, &[event]).await.unwrap();
    }
}

fn deliver(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("deliver");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).throughput(Throughput::Elements(1));
    let batch = NonZeroUsize::new(50).unwrap();
    for (name, target) in [
        ("one by one", "concurrency = 64".to_owned()),
        ("batches of 50", format!("concurrency = 64\nformat = \"batch\"\nbatch_size = {batch}")),
    ] {
        let (log, directory) = (MemoryLog::new(), tempfile::tempdir().unwrap());
        let counting = Arc::new(Counting {
            events: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            enough: Notify::new(),
        });
        let router = runtime.block_on(async {
            let url = serve(Arc::clone(&counting)).await;
            router(&url, &target, directory.path(), &log).await
        });
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let events = usize::try_from(iterations).unwrap();
                runtime.block_on(async {
                    counting.wanted.fetch_add(events, Ordering::SeqCst);
                    let begun = Instant::now();
                    append(&log, events).await;
                    while counting.events.load(Ordering::SeqCst) < counting.wanted.load(Ordering::SeqCst) {
                        counting.enough.notified().await;
                    }
                    begun.elapsed()
                })
            });
        });
        runtime.block_on(router.stop(Duration::from_secs(5)));
    }
    group.finish();
}

criterion_group!(benches, deliver);
criterion_main!(benches);
