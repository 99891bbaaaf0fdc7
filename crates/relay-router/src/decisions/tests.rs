//! The decision log: records, queries, followers, rotation and sampling.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::sync::Arc;
use std::time::Duration;

use super::{
    DecidedEvent, Decision, DecisionFilter, DecisionLog, DecisionLogConfig, DecisionStreamItem, Outcome,
};
use crate::rules::{RuleVerdict, VerdictReason};
use crate::test_support::{name, note};
use relay_core::{Epoch, Event, Seq, Timestamp};

fn tasks() -> relay_tasks::TaskGroup {
    relay_tasks::Supervisor::default().group()
}

fn event(document: &str, n: usize) -> Arc<Event> {
    Arc::new(note(document, n).into_event(
        Epoch::from_u64(1),
        Some(Seq::new(n as u64)),
        Timestamp::UNIX_EPOCH,
    ))
}

fn decision(event: &Arc<Event>, second: u64, target: &str, outcome: Outcome) -> Decision {
    Decision {
        at: Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(second)),
        event: DecidedEvent::from(&**event),
        rules_version: 1,
        rule: Some("rule".into()),
        target: Some(name(target)),
        is_fallback: false,
        is_replay: false,
        outcome,
        attempt: 1,
        duration: Duration::ZERO,
        error: None,
        verdicts: Box::new(Vec::new),
    }
}

/// Waits until the log has kept `count` decisions.
async fn kept(log: &DecisionLog, count: u64) {
    while log.stats().kept < count {
        tokio::task::yield_now().await;
    }
}

async fn found(log: &DecisionLog, filter: DecisionFilter, limit: usize) -> Vec<u64> {
    let found = log.query(filter, limit).await.unwrap();
    found.iter().map(|record| u64::try_from(record.at.as_micros()).unwrap() / 1_000_000).collect()
}

#[tokio::test]
async fn decisions_are_found_by_all_that_they_say_newest_first() {
    let directory = tempfile::tempdir().unwrap();
    let log =
        DecisionLog::start(&DecisionLogConfig::default(), directory.path().to_owned(), Vec::new(), &tasks())
            .unwrap();
    let outcomes = [Outcome::Delivered, Outcome::Retrying, Outcome::NoMatch];
    let events: Vec<_> = (0..60).map(|n| event(&format!("d{}", n % 4), n + 1)).collect();
    for (n, event) in events.iter().enumerate() {
        log.record(decision(event, n as u64, ["a", "b"][n % 2], outcomes[n % 3]));
    }
    kept(&log, 60).await;
    let all = |is_meant: fn(u64) -> bool| (0..60).rev().filter(|n| is_meant(*n)).collect::<Vec<_>>();
    let with = |change: &dyn Fn(&mut DecisionFilter)| {
        let mut filter = DecisionFilter::default();
        change(&mut filter);
        filter
    };
    assert_eq!(found(&log, DecisionFilter::default(), 1_000).await, all(|_| true));
    assert_eq!(found(&log, DecisionFilter::default(), 2).await, [59, 58]);
    let document = note("d1", 0).document;
    assert_eq!(found(&log, with(&|f| f.document = Some(document.clone())), 100).await, all(|n| n % 4 == 1));
    assert_eq!(found(&log, with(&|f| f.target = Some(name("b"))), 100).await, all(|n| n % 2 == 1));
    assert_eq!(found(&log, with(&|f| f.outcome = Some(Outcome::NoMatch)), 100).await, all(|n| n % 3 == 2));
    assert_eq!(found(&log, with(&|f| f.event = Some(events[7].id)), 100).await, [7]);
    let at = |second| Some(Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(second)));
    let between = with(&|f| (f.from, f.to) = (at(10), at(20)));
    assert_eq!(found(&log, between, 100).await, all(|n| (10..20).contains(&n)));
    assert!(found(&log, with(&|f| f.rule = Some("other".to_owned())), 100).await.is_empty());
    log.close().await;
}

#[tokio::test]
async fn memory_and_files_are_bounded_and_files_outlive_a_restart_and_a_torn_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = DecisionLogConfig {
        memory_records: 10,
        disk: true,
        max_file_bytes: 4_000,
        max_files: 3,
        ..DecisionLogConfig::default()
    };
    let log = DecisionLog::start(&config, directory.path().to_owned(), Vec::new(), &tasks()).unwrap();
    for n in 0..200 {
        log.record(decision(&event("d", n + 1), n as u64, "a", Outcome::Delivered));
    }
    log.close().await;
    let files =
        || std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(files().len(), 3);
    let newest = files().into_iter().max().unwrap();
    let mut text = std::fs::read_to_string(&newest).unwrap();
    text.push_str("{\"number\":99999,\"at\":\"20");
    std::fs::write(&newest, text).unwrap();

    let log = DecisionLog::start(&config, directory.path().to_owned(), Vec::new(), &tasks()).unwrap();
    let found = found(&log, DecisionFilter::default(), 1_000).await;
    assert_eq!(found, (0..200).rev().take(found.len()).collect::<Vec<_>>());
    assert!((20..100).contains(&found.len()), "{}", found.len());
    log.close().await;
}

#[tokio::test]
async fn other_decisions_push_no_loss_out_of_half_of_the_memory() {
    for disk in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let config = DecisionLogConfig { memory_records: 10, disk, ..DecisionLogConfig::default() };
        let log = DecisionLog::start(&config, directory.path().to_owned(), Vec::new(), &tasks()).unwrap();
        let mut count = 0;
        let mut record = |outcome, times| {
            for _ in 0..times {
                log.record(decision(&event("d", 1), count, "a", outcome));
                count += 1;
            }
            count
        };
        kept(&log, record(Outcome::Lost, 3)).await;
        kept(&log, record(Outcome::Delivered, 100)).await;
        let lost = DecisionFilter { outcome: Some(Outcome::Lost), ..DecisionFilter::default() };
        assert_eq!(found(&log, lost.clone(), 100).await, [2, 1, 0]);
        let in_memory: Vec<_> = (96..103).rev().chain([2, 1, 0]).collect();
        let all: Vec<_> = (0..103).rev().collect();
        assert_eq!(found(&log, DecisionFilter::default(), 1_000).await, if disk { all } else { in_memory });
        // Losses have no more than half when others come.
        kept(&log, record(Outcome::Lost, 20)).await;
        kept(&log, record(Outcome::Delivered, 4)).await;
        let losses: Vec<_> = (103..123).rev().chain([2, 1, 0]).collect();
        let expected = if disk { losses } else { losses[..5].to_vec() };
        assert_eq!(found(&log, lost, 100).await, expected);
        kept(&log, record(Outcome::Delivered, 1)).await;
        let newest: Vec<_> = (118..128).rev().collect();
        assert_eq!(found(&log, DecisionFilter::default(), 10).await, newest);
        // The newest one stays, whatever it is.
        kept(&log, record(Outcome::Lost, 1)).await;
        assert_eq!(found(&log, DecisionFilter::default(), 1).await, [128]);
        log.close().await;
    }
}

#[tokio::test]
async fn an_event_is_sampled_with_all_its_decisions_and_what_went_wrong_is_always_kept() {
    let directory = tempfile::tempdir().unwrap();
    let config = DecisionLogConfig { sample: 0.5, ..DecisionLogConfig::default() };
    let log = DecisionLog::start(&config, directory.path().to_owned(), Vec::new(), &tasks()).unwrap();
    let events: Vec<_> = (1..=200).map(|n| event("d", n)).collect();
    for event in &events {
        log.record(decision(event, 0, "a", Outcome::Delivered));
        log.record(decision(event, 0, "b", Outcome::Delivered));
        log.record(decision(event, 0, "c", Outcome::DeadLettered));
    }
    while log.stats().kept + log.stats().unsampled < 600 {
        tokio::task::yield_now().await;
    }
    let mut sampled = 0;
    for event in &events {
        let filter = DecisionFilter { event: Some(event.id), ..DecisionFilter::default() };
        let count = log.query(filter, 10).await.unwrap().len();
        assert!(count == 1 || count == 3, "{count}");
        sampled += usize::from(count == 3);
    }
    assert!((60..140).contains(&sampled), "{sampled}");
    log.close().await;
}

#[tokio::test]
async fn a_follower_sees_what_it_wants_and_is_told_what_it_missed() {
    let directory = tempfile::tempdir().unwrap();
    let log =
        DecisionLog::start(&DecisionLogConfig::default(), directory.path().to_owned(), Vec::new(), &tasks())
            .unwrap();
    let filter = DecisionFilter { target: Some(name("b")), ..DecisionFilter::default() };
    let (mut quick, mut slow) = (log.follow(filter), log.follow(DecisionFilter::default()));
    log.record(decision(&event("d", 1), 1, "a", Outcome::Delivered));
    log.record(decision(&event("d", 2), 2, "b", Outcome::Delivered));
    let Some(DecisionStreamItem::Decision(first)) = quick.next().await else { panic!("a decision") };
    assert_eq!(first.target, Some(name("b")));
    for n in 3..=3_000 {
        log.record(decision(&event("d", n), n as u64, "a", Outcome::Delivered));
        kept(&log, n as u64).await;
    }
    let Some(DecisionStreamItem::Missed(missed)) = slow.next().await else { panic!("some were missed") };
    assert!(missed > 1_000, "{missed}");
    log.close().await;
    log.record(decision(&event("d", 1), 1, "a", Outcome::Delivered));
    assert_eq!(log.stats().dropped, 1);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let mut config = DecisionLogConfig { sample: 1.5, ..DecisionLogConfig::default() };
    assert!(config.validate().is_err());
    config.sample = 1.0;
    config.queue = 0;
    let Err(error) = config.validate() else { panic!("refused") };
    assert_eq!(error.to_string(), "`queue` is 0; it must be at least 1");
}

/// A decision about an event of a good 100,000 bytes, with the verdicts of `rules` rules.
fn large_decision(second: u64, rules: usize) -> Decision {
    let payload = relay_core::Payload::json(&"x".repeat(100_000)).unwrap();
    let mut large = Event::clone(&event("d", 1));
    large.payload = payload;
    let reason = VerdictReason::ConditionError { message: "y".repeat(5_000) };
    let verdict = move |n| RuleVerdict { rule: format!("rule-{n}").into(), reason: reason.clone() };
    Decision {
        error: Some("z".repeat(100_000)),
        verdicts: Box::new(move || (0..rules).map(verdict).collect()),
        ..decision(&Arc::new(large), second, "a", Outcome::Retrying)
    }
}

#[tokio::test]
async fn a_decision_of_many_rules_keeps_the_first_verdicts_and_counts_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let log =
        DecisionLog::start(&DecisionLogConfig::default(), directory.path().to_owned(), Vec::new(), &tasks())
            .unwrap();
    log.record(large_decision(1, 1_000));
    kept(&log, 1).await;
    let record = log.query(DecisionFilter::default(), 1).await.unwrap().remove(0);
    let json = serde_json::to_string(&record).unwrap();
    assert!(json.len() < 20_000, "the record has {} bytes", json.len());
    assert_eq!((record.verdicts.len(), record.verdicts_left_out), (14, 986));
    assert_eq!(record.error.as_ref().map(String::len), Some(1024));
}

#[tokio::test]
async fn the_decisions_that_wait_and_those_in_memory_are_bounded_in_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = DecisionLogConfig::default();
    (config.queue_bytes, config.memory_bytes) = (1_000_000, 100_000);
    let log = DecisionLog::start(&config, directory.path().to_owned(), Vec::new(), &tasks()).unwrap();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let mut blocking = large_decision(1, 10);
    blocking.verdicts = Box::new(move || {
        begun.send(()).unwrap();
        let _ = gate.recv();
        Vec::new()
    });
    log.record(blocking);
    has_begun.await.unwrap();
    for second in 2..100 {
        log.record(large_decision(second, 10));
    }
    let dropped = log.stats().dropped;
    assert!((93..=95).contains(&dropped), "{dropped} of decisions of 200,000 bytes are dropped");
    open.send(()).unwrap();
    kept(&log, 99 - dropped).await;
    log.record(large_decision(100, 10));
    kept(&log, 100 - dropped).await;
    assert_eq!(log.stats().dropped, dropped, "there is space again");
    for second in 101..120 {
        log.record(large_decision(second, 10));
        kept(&log, second - dropped).await;
    }
    let in_memory = log.query(DecisionFilter::default(), 1_000).await.unwrap();
    assert!((6..=9).contains(&in_memory.len()), "{} records of a good 11,000 bytes", in_memory.len());
    assert_eq!(in_memory[0].at, Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(119)));
}

#[tokio::test]
async fn stored_losses_are_found_after_a_restart_once_and_in_their_place() {
    for disk in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let config = DecisionLogConfig { memory_records: 10, disk, ..DecisionLogConfig::default() };
        let start =
            |losses| DecisionLog::start(&config, directory.path().to_owned(), losses, &tasks()).unwrap();
        let log = start(Vec::new());
        let mut stored = Vec::new();
        for second in 0..20 {
            if second % 5 == 0 {
                let record = log.record_of(decision(&event("d", 1), second, "a", Outcome::Lost));
                stored.push((*record).clone());
                log.add_loss(record);
            } else {
                log.record(decision(&event("d", 1), second, "a", Outcome::Delivered));
                kept(&log, second + 1).await;
            }
        }
        log.close().await;
        // The clock of the next run is behind.
        let log = start(stored);
        log.record(decision(&event("d", 1), 3, "b", Outcome::Delivered));
        kept(&log, 1).await;
        let lost = DecisionFilter { outcome: Some(Outcome::Lost), ..DecisionFilter::default() };
        assert_eq!(found(&log, lost, 100).await, [15, 10, 5, 0]);
        let all: Vec<_> = std::iter::once(3).chain((0..20).rev()).collect();
        let in_memory = vec![3, 15, 10, 5, 0];
        assert_eq!(found(&log, DecisionFilter::default(), 100).await, if disk { all } else { in_memory });
        log.close().await;
    }
}

#[tokio::test]
async fn a_loss_is_kept_however_fast_decisions_come() {
    let directory = tempfile::tempdir().unwrap();
    let config = DecisionLogConfig { queue: 1, queue_bytes: 1, ..DecisionLogConfig::default() };
    let log = DecisionLog::start(&config, directory.path().to_owned(), Vec::new(), &tasks()).unwrap();
    for second in 0..1_000 {
        log.add_loss(log.record_of(decision(&event("d", 1), second, "a", Outcome::Lost)));
    }
    let lost = found(&log, DecisionFilter::default(), 2_000).await;
    assert_eq!((lost.len(), log.stats().dropped), (1_000, 0));
    log.close().await;
}
