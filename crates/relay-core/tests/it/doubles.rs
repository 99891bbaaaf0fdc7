//! The implementations that this crate has itself, held to the suites.

use relay_core::testing::{ManualClock, ManualOwnership, MemoryLog, clock_suite, log_suite, ownership_suite};
use relay_core::{SoleOwner, SystemClock};

#[tokio::test]
async fn the_log_in_memory_passes_the_suite() {
    log_suite(&MemoryLog::new()).await;
}

#[test]
fn both_clocks_pass_the_suite() {
    clock_suite(&SystemClock::new());
    clock_suite(&ManualClock::new());
}

#[tokio::test]
async fn a_process_that_is_alone_passes_the_suite_of_owners() {
    ownership_suite(&SoleOwner).await;
}

#[tokio::test]
async fn the_ownership_that_a_test_directs_passes_the_suite() {
    ownership_suite(&ManualOwnership::default()).await;
}
