//! Appends at each durability with one and with 64 appenders, beside the log in memory as the baseline; and replay.
//!
//! `cargo bench -p relay-log --bench append`

#![allow(clippy::disallowed_methods, reason = "a benchmark ends with its tasks")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use relay_core::testing::MemoryLog;
use relay_core::{
    DeliveryClass, DocumentId, Draft, Event, EventLog, Kind, Payload, ReadLimit, Retention, Seq, SystemClock,
    Timestamp,
};
use relay_log::{EmbeddedLog, LogConfig, LogDurability};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const REPLAYED: u64 = 10_000;

fn event(document: &DocumentId, epoch: relay_core::Epoch, seq: Seq) -> Event {
    let kind = Kind::from_static("x-bench", DeliveryClass::Sequenced);
    let payload =
        Payload::json(&serde_json::json!({"patches": [{"position": 1234, "deleted": 0, "inserted": "a"}]}));
    Draft::new(document.clone(), kind, payload.unwrap()).into_event(epoch, Some(seq), Timestamp::UNIX_EPOCH)
}

/// Measures `appenders` tasks that append `count` events together, each in its own document, one event after the other.
async fn appending(log: Arc<dyn EventLog>, appenders: u64, count: u64) -> Duration {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..appenders {
        let log = Arc::clone(&log);
        let share = count / appenders + u64::from(n < count % appenders);
        tasks.spawn(async move {
            let document = DocumentId::new(format!("d{n}")).unwrap();
            let mut head = log.head(&document).await.unwrap();
            for _ in 0..share {
                head.last = head.last.next();
                log.append(&document, &[event(&document, head.epoch, head.last)]).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    began.elapsed()
}

fn open(durability: LogDurability) -> (tempfile::TempDir, EmbeddedLog) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = LogConfig::new(directory.path());
    config.durability = durability;
    config.retention = Retention { max_events: u64::MAX / 2, ..Retention::default() };
    let (log, _) = EmbeddedLog::open(config, Arc::new(SystemClock::new())).unwrap();
    (directory, log)
}

fn benchmarks(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("append");
    group.throughput(Throughput::Elements(1));
    for appenders in [1, 64] {
        let mut bench = |name: &str, log: Arc<dyn EventLog>| {
            group.bench_function(BenchmarkId::new(name, appenders), |bencher| {
                bencher.iter_custom(|count| runtime.block_on(appending(Arc::clone(&log), appenders, count)));
            });
        };
        bench("memory", Arc::new(MemoryLog::new()));
        for (name, durability) in [("logged", LogDurability::Logged), ("synced", LogDurability::Synced)] {
            let (_directory, log) = open(durability);
            bench(name, Arc::new(log.clone()));
            runtime.block_on(log.close()).unwrap();
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(REPLAYED));
    let (_directory, log) = open(LogDurability::Logged);
    let logs: [(&str, Arc<dyn EventLog>); 2] =
        [("memory", Arc::new(MemoryLog::new())), ("embedded", Arc::new(log.clone()))];
    for (name, log) in logs {
        runtime.block_on(appending(Arc::clone(&log), 1, REPLAYED));
        let document = DocumentId::new("d0").unwrap();
        let limit = ReadLimit { events: usize::MAX, bytes: usize::MAX };
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(log.read_document(&document, Seq::ZERO, limit)).unwrap().len());
        });
    }
    group.finish();
    runtime.block_on(log.close()).unwrap();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
