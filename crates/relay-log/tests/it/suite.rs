//! The embedded log keeps the contract of `EventLog`.

use std::sync::Arc;

use relay_core::SystemClock;
use relay_core::testing::log_suite;
use relay_log::{EmbeddedLog, LogConfig, LogDurability};

async fn passes_the_suite(durability: LogDurability) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = LogConfig::new(directory.path());
    config.durability = durability;
    let (log, report) = EmbeddedLog::open(config, Arc::new(SystemClock::new())).unwrap();
    assert!(report.created);
    log_suite(&log).await;
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
