//! The embedded log keeps the contract of `EventLog`.

use std::sync::Arc;

use relay_core::testing::{hold_suite, log_suite};
use relay_core::{Event, Payload, Retention, SystemClock};
use relay_log::{EmbeddedLog, LogConfig, LogDurability};

async fn passes_the_suite(durability: LogDurability) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = LogConfig::new(directory.path());
    config.durability = durability;
    config.max_event_bytes = 20_000;
    let (log, report) = EmbeddedLog::open(config, Arc::new(SystemClock::new())).unwrap();
    assert!(report.created);
    let exceed_the_limit = |mut batch: Vec<Event>| {
        batch.last_mut().unwrap().payload = Payload::json(&"x".repeat(20_000)).unwrap();
        batch
    };
    log_suite(&log, exceed_the_limit).await;
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_logged_log_passes_the_suite() {
    passes_the_suite(LogDurability::Logged).await;
}

#[tokio::test]
async fn a_synced_log_passes_the_suite() {
    passes_the_suite(LogDurability::Synced).await;
}

#[tokio::test]
async fn a_log_passes_the_suite_of_holds() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = LogConfig::new(directory.path());
    config.retention = Retention { max_events: 10, ..Retention::default() };
    let (log, _) = EmbeddedLog::open(config, Arc::new(SystemClock::new())).unwrap();
    hold_suite(&log, async || log.sweep().await.unwrap()).await;
    log.close().await.unwrap();
}
