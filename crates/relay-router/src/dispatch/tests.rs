//! Placing a page: rules run without the engine's lock, and a change of targets in between routes the page again.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::cell::Cell;

use relay_core::testing::MemoryLog;
use relay_core::{Epoch, EventLog, Seq, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::records::RouteKey;
use crate::test_support::{add_target, name, note};

const RULES: &str = r#"
    [[rules]]
    name = "notes"
    targets = ["a", "b"]
    strategy = "all"
"#;

const THROUGH: Offset = Offset::new(1);

const LIMITS: QueueLimits = QueueLimits { in_memory: 10, in_all: 100 };

fn key(target: &str) -> RouteKey {
    RouteKey::Each("notes".into(), name(target))
}

/// An engine that does not deliver.
fn engine(directory: &TempDir) -> Engine {
    crate::test_support::engine(directory.path(), RULES)
}

fn page() -> LogPage {
    let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    vec![(Offset::new(1), Arc::new(event))]
}

#[tokio::test]
async fn a_page_is_routed_without_the_engines_lock() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(&directory);
    let asked = Cell::new(0);
    let is_draining = |_: &ServiceName| {
        assert!(engine.is_unlocked());
        asked.set(asked.get() + 1);
        false
    };
    let assigned = assign_page(&engine, &page(), THROUGH, LIMITS, is_draining).unwrap();
    assert_eq!(asked.get(), 1);
    assert_eq!(assigned.held.events().len(), 1);
}

#[tokio::test]
async fn a_page_is_assigned_by_the_table_in_force_alone() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(&directory);
    let has_changed = Cell::new(false);
    let is_draining = |_: &ServiceName| {
        if !has_changed.replace(true) {
            engine.update(|state| add_target(state, "b"));
        }
        false
    };
    // While the page is routed another target comes.
    assert!(assign_page(&engine, &page(), THROUGH, LIMITS, is_draining).is_none());
    assert_eq!(engine.read(|state| state.route_id(&key("a"))), None);

    let assigned = assign_page(&engine, &page(), THROUGH, LIMITS, is_draining).unwrap();
    let routes: Vec<_> = assigned.held.events().iter().map(|event| Some(event.route)).collect();
    assert_eq!(
        routes,
        [engine.read(|state| state.route_id(&key("a"))), engine.read(|state| state.route_id(&key("b")))]
    );
}

#[tokio::test]
async fn a_route_whose_rule_goes_stays_for_the_events_that_are_being_committed_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(&directory);
    let assigned = assign_page(&engine, &page(), THROUGH, LIMITS, |_| false).unwrap();
    engine.update(|state| {
        state.set_rules(2, Arc::default());
        state.recompute_targets();
    });
    assigned.held.queue();
    assert_eq!(engine.read(|state| state.queued_for(&name("a")).0), 1);
}

#[tokio::test(start_paused = true)]
async fn an_assignment_that_fails_under_the_lock_too_is_tried_again() {
    let lock = tokio::sync::Mutex::new(());
    let mut was_locked = Vec::new();
    let attempt = || {
        was_locked.push(lock.try_lock().is_err());
        (was_locked.len() == 4).then_some(())
    };
    tokio::time::timeout(Duration::from_secs(1), retry_under_lock(&lock, attempt)).await.unwrap();
    assert_eq!(was_locked, [false, true, false, true]);
    assert!(lock.try_lock().is_ok());
}

#[tokio::test]
async fn what_the_store_does_not_take_is_not_passed_over_and_stays_held() {
    let (directory, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
    let engine = crate::test_support::engine_on(log.clone(), directory.path(), RULES);
    let draft = note("d", 1);
    let (document, head) = (draft.document.clone(), log.head(&draft.document).await.unwrap());
    log.append(&document, &[draft.into_event(head.epoch, Some(Seq::FIRST), Timestamp::UNIX_EPOCH)])
        .await
        .unwrap();
    let cursor = RoutingCursor::new(Some(Offset::ZERO));
    let mut dispatcher = Dispatcher {
        engine: engine.clone(),
        cursor: cursor.clone(),
        head: watch::Sender::new(THROUGH).subscribe(),
        limits: LIMITS,
        config_lock: Arc::default(),
        may_have_abandoned: false,
    };
    hold_log(&engine, &cursor);
    engine.deps().store.close();
    assert!(matches!(dispatcher.step().await, Err(DispatchError::Store(StoreError::Closed))));
    assert_eq!(cursor.get(), Some(Offset::ZERO));

    // After a failure the hold stays, whatever memory has.
    engine.fail(engine.deps().store.error(&"the disk is full"));
    cursor.set(Some(THROUGH));
    hold_log(&engine, &cursor);
    assert_eq!(log.held_after(), Some(Offset::ZERO));
}
