//! Logged events: kept beside the histories of documents, by limits of their own.

use std::sync::Arc;
use std::time::Duration;

use relay_core::testing::ManualClock;
use relay_core::{Clock, DeliveryClass, Event, EventLog, Head, Kind, Offset, Retention, Seq};
use relay_log::{EmbeddedLog, LogConfig, LoggedRetention};

use crate::common::{EVERYTHING, active_journal, append, copy, document, event, logged, text, texts};

fn config(directory: &tempfile::TempDir) -> LogConfig {
    let mut config = LogConfig::new(directory.path());
    config.retention = Retention { max_events: 16, ..Retention::default() };
    config.logged_retention = LoggedRetention { max_bytes: 4_000, max_age: None };
    config
}

fn open(config: LogConfig, clock: &Arc<ManualClock>) -> EmbeddedLog {
    EmbeddedLog::open(config, Arc::clone(clock) as _).unwrap().0
}

async fn visit(log: &EmbeddedLog, name: &str, text: &str, clock: &ManualClock) -> Offset {
    let id = document(name);
    let epoch = log.head(&id).await.unwrap().epoch;
    log.append(&id, &[logged(&id, epoch, text, clock.wall())]).await.unwrap()[0]
}

async fn kept(log: &EmbeddedLog) -> Vec<Event> {
    let all = log.read(Offset::ZERO, EVERYTHING).await.unwrap();
    all.into_iter().filter(|event| event.kind.class() == DeliveryClass::Logged).collect()
}

#[tokio::test]
async fn content_and_logged_events_cost_each_other_nothing() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let log = open(config(&directory), &clock);
    for n in 0..16 {
        append(&log, "d", &format!("edit {n}")).await;
    }
    for n in 0..400 {
        visit(&log, "d", &format!("visit {n}"), &clock).await;
    }
    log.sweep().await.unwrap();
    assert_eq!(texts(&log, "d").await.len(), 16, "no visit costs an edit");
    let visits = kept(&log).await;
    assert!((20..=40).contains(&visits.len()), "{} events of about 110 bytes are kept", visits.len());
    assert_eq!(text(visits.last().unwrap()), "visit 399", "the newest ones stay");
    let stats = log.stats();
    assert_eq!((stats.dropped_events, stats.dropped_logged_events), (0, 400 - visits.len() as u64));
    assert!((1..=4_000).contains(&stats.logged_bytes), "{stats:?}");
    for n in 0..100 {
        append(&log, "d", &format!("later edit {n}")).await;
    }
    log.sweep().await.unwrap();
    assert_eq!(kept(&log).await.len(), visits.len(), "no edit costs a visit");
    log.close().await.unwrap();
}

#[tokio::test]
async fn logged_events_beyond_the_limit_go_without_a_sweep() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let log = open(config(&directory), &clock);
    for n in 0..100 {
        visit(&log, &format!("d{}", n % 7), "visit", &clock).await;
        assert!(log.stats().logged_bytes <= 4_000 + 4_000 / 8 + 300, "{:?}", log.stats());
    }
    assert!(log.stats().dropped_logged_events > 50);
    log.close().await.unwrap();
}

#[tokio::test]
async fn old_logged_events_go_and_their_offsets_are_not_used_again() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let mut config = config(&directory);
    config.logged_retention =
        LoggedRetention { max_bytes: 1 << 20, max_age: Some(Duration::from_secs(3600)) };
    let log = open(config.clone(), &clock);
    visit(&log, "d", "old", &clock).await;
    clock.advance(Duration::from_secs(3000));
    visit(&log, "e", "newer", &clock).await;
    clock.advance(Duration::from_secs(700));
    log.sweep().await.unwrap();
    assert_eq!(kept(&log).await.iter().map(text).collect::<Vec<_>>(), ["newer"]);
    clock.advance(Duration::from_secs(4000));
    log.sweep().await.unwrap();
    assert_eq!(kept(&log).await, []);
    assert_eq!(log.stats().logged_bytes, 0);
    log.close().await.unwrap();
    let log = open(config, &clock);
    assert_eq!(visit(&log, "d", "next", &clock).await, Offset::new(3));
    assert_eq!(append(&log, "d", "first edit").await, (Seq::FIRST, Offset::new(4)));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_hold_keeps_logged_events_within_its_bound() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let mut config = config(&directory);
    config.max_held_bytes = 20_000;
    let log = open(config, &clock);
    log.hold(Some(Offset::new(10)));
    for n in 1..=100 {
        visit(&log, "d", &format!("visit {n}"), &clock).await;
    }
    log.sweep().await.unwrap();
    assert_eq!(kept(&log).await.len(), 90, "what is not held goes, and what is held stays");
    log.hold(Some(Offset::new(20)));
    log.sweep().await.unwrap();
    assert_eq!(kept(&log).await.len(), 80, "the hold moves on");
    assert_eq!(log.stats().dropped_held_events, 0);
    for n in 101..=400 {
        visit(&log, "d", &format!("visit {n}"), &clock).await;
    }
    log.sweep().await.unwrap();
    let stats = log.stats();
    assert!((10_000..=20_000).contains(&stats.logged_bytes), "{stats:?}");
    assert!(stats.dropped_held_events > 0, "{stats:?}");
    log.hold(None);
    log.sweep().await.unwrap();
    assert!(log.stats().logged_bytes <= 4_000, "without a hold the limits apply");
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_reopened_log_goes_on_counting_its_logged_events() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let log = open(config(&directory), &clock);
    for n in 0..60 {
        visit(&log, "d", &format!("visit {n}"), &clock).await;
    }
    log.sweep().await.unwrap();
    let (before, bytes) = (kept(&log).await, log.stats().logged_bytes);
    log.close().await.unwrap();
    let log = open(config(&directory), &clock);
    assert_eq!((kept(&log).await, log.stats().logged_bytes), (before, bytes));
    for n in 60..120 {
        visit(&log, "d", &format!("visit {n}"), &clock).await;
    }
    log.sweep().await.unwrap();
    assert!(log.stats().logged_bytes <= 4_000);
    log.close().await.unwrap();
}

/// In the logs of earlier versions these kinds have a seq.
#[tokio::test]
async fn an_event_with_a_seq_stays_in_the_history_though_its_kind_is_logged_now() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let log = open(config(&directory), &clock);
    let id = document("d");
    let head = log.head(&id).await.unwrap();
    let kind = |class| Kind::new("user.joined", class).unwrap();
    let mut old = event(&id, head.epoch, Seq::FIRST, "old", clock.wall());
    old.kind = kind(DeliveryClass::Sequenced);
    let mut new = logged(&id, head.epoch, "new", clock.wall());
    new.kind = kind(DeliveryClass::Logged);
    log.append(&id, &[old, new]).await.unwrap();
    log.close().await.unwrap();
    let log = open(config(&directory), &clock);
    assert_eq!(log.head(&id).await.unwrap(), Head::new(head.epoch, Seq::FIRST, Seq::FIRST));
    assert_eq!(texts(&log, "d").await, ["old"]);
    let all = log.read(Offset::ZERO, EVERYTHING).await.unwrap();
    let classes: Vec<_> = all.iter().map(|event| (text(event), event.kind.class())).collect();
    let expected = [("old", DeliveryClass::Sequenced), ("new", DeliveryClass::Logged)];
    assert_eq!(classes, expected.map(|(text, class)| (text.to_owned(), class)));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_check_counts_logged_events_and_finds_no_fault_with_them() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let log = open(config(&directory), &clock);
    visit(&log, "visited", "alone", &clock).await;
    for n in 0..3 {
        visit(&log, "d", "before an edit", &clock).await;
        append(&log, "d", &format!("edit {n}")).await;
    }
    log.close().await.unwrap();
    let report = relay_log::check(directory.path()).unwrap();
    assert_eq!((report.events, report.documents, report.problems), (7, 2, 0), "{report:?}");
    let mut exported = Vec::new();
    relay_log::export(directory.path(), &mut |event| {
        exported.push((event.seq.map(Seq::get), event.kind.class()));
        Ok(())
    })
    .unwrap();
    let (visit, edit) = ((None, DeliveryClass::Logged), |seq| (Some(seq), DeliveryClass::Sequenced));
    assert_eq!(exported, [visit, visit, edit(1), visit, edit(2), visit, edit(3)]);
}

#[tokio::test]
async fn a_repaired_log_keeps_its_logged_events() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::new()));
    let log = open(config(&directory), &clock);
    visit(&log, "d", "first visit", &clock).await;
    append(&log, "d", "edit").await;
    visit(&log, "d", "second visit", &clock).await;
    let bytes = log.stats().logged_bytes;
    let before = copy(directory.path());
    append(&log, "d", "lost").await;
    let after = copy(directory.path());
    log.close().await.unwrap();
    // The last write is missing without a trace.
    std::fs::copy(active_journal(before.path()), active_journal(after.path())).unwrap();
    assert_eq!(relay_log::repair(after.path()).unwrap().unwrap().events, 3);
    let log = open(config(&after), &clock);
    let visits: Vec<_> = kept(&log).await.iter().map(|event| (event.offset, text(event))).collect();
    let expected = [(1, "first visit"), (3, "second visit")];
    assert_eq!(visits, expected.map(|(offset, text)| (Some(Offset::new(offset)), text.to_owned())));
    assert_eq!((log.stats().logged_bytes, append(&log, "d", "next").await.0), (bytes, Seq::new(2)));
    log.close().await.unwrap();
}
