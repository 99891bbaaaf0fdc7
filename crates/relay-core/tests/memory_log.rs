//! The log in memory keeps the contract that it is the model of.
#![cfg(feature = "testing")]

use relay_core::testing::{MemoryLog, log_suite};

#[tokio::test]
async fn the_log_in_memory_passes_the_suite() {
    log_suite(&MemoryLog::new()).await;
}
