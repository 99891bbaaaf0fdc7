//! The pauses of a target: after failures, and on its own wish.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use async_trait::async_trait;
use relay_core::testing::FnClock;
use relay_core::{Delivery, DeliveryError, Epoch, Seq, Timestamp};

use super::*;
use crate::records::QueuedEvent;
use crate::test_support::{name, note};

const OPEN_FOR: Duration = Duration::from_secs(10);

struct Unasked;

#[async_trait]
impl Target for Unasked {
    async fn deliver(&self, _: Delivery) -> Result<(), DeliveryError> {
        panic!("the pool asks no target")
    }
}

fn at(seconds: u64) -> Monotonic {
    Monotonic::from_elapsed(Duration::from_secs(seconds))
}

/// A pool with the target `a`, whose breaker opens after so many failures.
fn pool(failures: u32) -> Pool {
    let mut pool = Pool::new(Arc::new(FnClock::new(|| Duration::ZERO)));
    let mut policy = TargetPolicy::default();
    policy.breaker.failures = NonZeroU32::new(failures).unwrap();
    policy.breaker.open_for = OPEN_FOR;
    pool.put(name("a"), Arc::new(Unasked), Vec::new(), NonZeroU32::MIN, policy);
    pool
}

/// Selects among the target `a` alone. Returns the moment to wait for if it is not selected.
fn select_at(pool: &Pool, now: Monotonic) -> Result<(), Option<Monotonic>> {
    let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    let queued = QueuedEvent::new(&event, 1);
    let context = SelectionContext::of(&queued, 0);
    match pool.select(&TargetSet::only(name("a")), &context, |_| ServiceState::Healthy, now) {
        Selection::Target { .. } => Ok(()),
        Selection::Wait(until) => Err(until),
    }
}

fn begin(pool: &mut Pool, now: Monotonic) -> BreakerTicket {
    assert_eq!(select_at(pool, now), Ok(()));
    pool.begin(&name("a"), 1, now).ok().unwrap().ticket
}

fn failed(retry_after: Option<u64>) -> TargetOutcome {
    TargetOutcome::Failed { retry_after: retry_after.map(Duration::from_secs), is_gone: false }
}

#[test]
fn a_target_is_left_alone_until_its_breaker_and_all_its_answers_allow_a_request() {
    // Alone, before the breaker, and after it.
    for (retry_after, until) in [(None, 10), (Some(4), 10), (Some(40), 40)] {
        let mut pool = pool(1);
        let ticket = begin(&mut pool, at(0));
        pool.end(&name("a"), ticket, &failed(retry_after), at(0));
        assert_eq!(select_at(&pool, at(0)), Err(Some(at(until))));
        assert_eq!(select_at(&pool, at(until)), Ok(()));
    }
    // A later answer that asks for less takes nothing back.
    let mut pool = pool(5);
    let tickets = [begin(&mut pool, at(0)), begin(&mut pool, at(0))];
    for (ticket, retry_after) in tickets.into_iter().zip([100, 1]) {
        pool.end(&name("a"), ticket, &failed(Some(retry_after)), at(0));
    }
    assert_eq!(select_at(&pool, at(0)), Err(Some(at(100))));
}

#[test]
fn a_trial_that_was_not_made_lets_another_one_through_and_proves_nothing() {
    let mut pool = pool(1);
    let ticket = begin(&mut pool, at(0));
    pool.end(&name("a"), ticket, &failed(None), at(0));
    let trial = begin(&mut pool, at(10));
    assert_eq!(select_at(&pool, at(10)), Err(None));
    pool.end(&name("a"), trial, &TargetOutcome::Untried, at(10));
    assert_eq!(pool.breaker(&name("a"), at(10)), Some(BreakerState::HalfOpen));
    let trial = begin(&mut pool, at(10));
    pool.end(&name("a"), trial, &TargetOutcome::Answered, at(10));
    assert_eq!(pool.breaker(&name("a"), at(10)), Some(BreakerState::Closed));
}
