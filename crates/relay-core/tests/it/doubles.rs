//! The implementations that this crate has itself, held to the suites.

use std::time::Duration;

use relay_core::testing::{
    AppendFault, ManualClock, ManualOwnership, MemoryLog, clock_suite, log_suite, ownership_suite,
};
use relay_core::{LogError, SoleOwner, SystemClock};

#[tokio::test]
async fn the_log_in_memory_passes_the_suite() {
    let log = MemoryLog::new();
    let refuse_next = |batch| {
        log.fail_next_append(AppendFault::Error(LogError::Overloaded { waited: Duration::ZERO }));
        batch
    };
    log_suite(&log, refuse_next).await;
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
