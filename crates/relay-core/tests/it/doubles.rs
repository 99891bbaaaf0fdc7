//! The implementations that this crate has itself, held to the suites.

use std::time::{Duration, Instant};

use relay_core::testing::{
    AppendFault, FnClock, ManualClock, ManualOwnership, MemoryLog, clock_suite, log_suite, ownership_suite,
};
use relay_core::{Clock, LogError, SoleOwner, SystemClock, Timestamp};

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
fn the_clocks_pass_the_suite() {
    clock_suite(&SystemClock::new());
    let started = Instant::now();
    clock_suite(&FnClock::new(move || started.elapsed()));
    let clock = ManualClock::new();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..100_000).for_each(|_| clock.advance(Duration::from_micros(1))));
        clock_suite(&clock);
    });
}

#[test]
fn a_clock_that_is_advanced_beyond_its_end_stays_there() {
    let clock = ManualClock::new();
    clock.advance(Duration::MAX);
    let end = clock.now();
    assert_eq!(end.wall, Timestamp::MAX);
    clock.advance(Duration::MAX);
    assert_eq!(clock.now(), end);
}

#[tokio::test]
async fn a_process_that_is_alone_passes_the_suite_of_owners() {
    ownership_suite(&SoleOwner).await;
}

#[tokio::test]
async fn the_ownership_that_a_test_directs_passes_the_suite() {
    ownership_suite(&ManualOwnership::default()).await;
}
