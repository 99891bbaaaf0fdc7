//! The store's counts, its pages, its writer and its failure.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use relay_core::{DocumentId, Epoch, EventId, Offset, Seq, Timestamp};
use relay_tasks::Supervisor;

use super::writer::WRITER;
use super::*;
use crate::delivery::state::Overflow;
use crate::records::{DeadReason, QueuedRecord, RouteId, RouteKey, RouteRecord, TargetSet};
use crate::test_support::{loss, name, note};

fn letter(target: &str, offset: u64) -> DeadLetter {
    DeadLetter {
        id: DeadLetterId { offset: Offset::new(offset), route: RouteId(1) },
        target: name(target),
        rule: None,
        event_id: EventId::new(),
        document: DocumentId::new("d").unwrap(),
        at: Timestamp::UNIX_EPOCH,
        reason: DeadReason::Exhausted,
        attempts: Vec::new(),
        event: serde_json::value::to_raw_value(&1).unwrap(),
    }
}

fn batch(fill: impl FnOnce(&mut WriteBatch)) -> WriteBatch {
    let mut batch = WriteBatch::default();
    fill(&mut batch);
    batch
}

fn limits(queued: usize, dead_letters: usize) -> StoreLimits {
    StoreLimits { queued, queued_bytes: 1_000_000, dead_letters, losses: 4 }
}

fn open_with(directory: &Path, max_dead_letters: usize) -> Store {
    Store::open(directory, limits(100, max_dead_letters), Supervisor::default().group()).unwrap().0
}

fn open(directory: &Path) -> Store {
    open_with(directory, usize::MAX)
}

#[tokio::test]
async fn the_latest_letters_of_a_target_are_kept_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(directory.path(), 100);
    let (a, b) = (name("a"), name("b"));
    let kept = async |target: &ServiceName| -> Vec<u64> {
        let (letters, _) = store.dead_letters(target.clone(), None, usize::MAX).await.unwrap();
        letters.into_iter().map(|(id, _)| id.offset.get()).collect()
    };
    let add = async |offset| {
        store.commit(batch(|batch| batch.dead_letter(&letter("a", offset)))).await.unwrap();
    };
    // Many attempts end together.
    let commits =
        (1..=1_000).map(|offset| store.commit(batch(|batch| batch.dead_letter(&letter("b", offset)))));
    for committed in futures_util::future::join_all(commits).await {
        committed.unwrap();
    }
    assert_eq!((kept(&b).await.len(), store.dead_letter_count(&b)), (100, 100));
    assert_eq!(store.dropped_dead_letters(&b), 900);
    // One after the other.
    for offset in 1..=150 {
        add(offset).await;
    }
    assert_eq!(kept(&a).await, (51..=150).collect::<Vec<_>>());
    // One batch that adds more than the limit, replaces letters, and removes one.
    let mixed = batch(|batch| {
        (150..=300).for_each(|offset| batch.dead_letter(&letter("a", offset)));
        batch.remove_dead_letter(&a, letter("a", 299).id);
        batch.remove_dead_letter(&a, letter("a", 51).id);
    });
    store.commit(mixed).await.unwrap();
    assert_eq!(kept(&a).await, (200..=300).filter(|offset| *offset != 299).collect::<Vec<_>>());
    // The letter of an early event that was sent again takes the place of a stored one, and is the first to go then.
    add(5).await;
    assert_eq!(kept(&a).await[..2], [5, 201]);
    add(1_200).await;
    assert_eq!(kept(&a).await[..2], [201, 202]);
    assert_eq!(store.dead_letter_count(&a), 100);
    store.close();
    // A lower limit counts from the next letter on.
    let store = open_with(directory.path(), 3);
    store.commit(batch(|batch| batch.dead_letter(&letter("a", 2_000)))).await.unwrap();
    assert_eq!((store.dead_letter_count(&a), store.dropped_dead_letters(&a)), (3, 298));
    assert_eq!(store.dropped_dead_letters(&b), 900);
    store.close();
}

#[tokio::test]
async fn the_count_of_dead_letters_is_that_of_the_written_ones() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (a, first) = (name("a"), letter("a", 1).id);
    let letters = || batch(|batch| (1..=3).for_each(|offset| batch.dead_letter(&letter("a", offset))));
    store.commit(letters()).await.unwrap();
    store.commit(batch(|batch| batch.dead_letter(&letter("b", 1)))).await.unwrap();
    // Letters with the same ids replace those.
    store.commit(letters()).await.unwrap();
    assert_eq!((store.dead_letter_count(&a), store.dead_letter_count(&name("b"))), (3, 1));
    let moved = batch(|batch| {
        batch.remove_dead_letter(&a, first);
        batch.dead_letter(&letter("a", 1));
        batch.remove_dead_letter(&a, letter("a", 2).id);
        batch.remove_dead_letter(&a, letter("a", 7).id);
    });
    store.commit(moved).await.unwrap();
    assert_eq!(store.dead_letter_count(&a), 2);
    store.close();
    let store = open(directory.path());
    assert_eq!(store.dead_letter_count(&a), 2);
    store.close();
}

#[tokio::test]
async fn a_batch_that_is_not_written_changes_no_count_and_is_the_stores_failure() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.commit(batch(|batch| batch.dead_letter(&letter("a", 1)))).await.unwrap();
    assert!(store.failure().is_none());
    let unwritable = batch(|batch| {
        batch.remove_dead_letter(&name("a"), letter("a", 1).id);
        // JSON has no objects whose keys are lists.
        batch.rules(&HashMap::from([(vec![1], 1)]));
    });
    let error = store.commit(unwritable).await.unwrap_err();
    assert_eq!(store.dead_letter_count(&name("a")), 1);
    assert_eq!(store.failure().map(|error| error.to_string()), Some(error.to_string()));
    store.close();
}

#[tokio::test]
async fn a_closed_store_has_not_failed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.close();
    assert!(matches!(store.commit(WriteBatch::default()).await, Err(StoreError::Closed)));
    store.fail(StoreError::Closed);
    assert!(store.failure().is_none());
}

/// Opens a store whose tasks `supervisor` can end.
fn open_under(supervisor: &Supervisor, directory: &Path) -> Store {
    Store::open(directory, limits(100, usize::MAX), supervisor.group()).unwrap().0
}

fn route(id: u32) -> WriteBatch {
    let record = RouteRecord { key: RouteKey::Direct(name("a")), targets: TargetSet::only(name("a")) };
    batch(|batch| batch.route(RouteId(id), &record))
}

#[tokio::test]
async fn the_pages_of_a_targets_letters_have_each_letter_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let letters = batch(|batch| {
        for (target, count) in [("a", 10), ("ab", 3), ("b", 3)] {
            for n in 0..count {
                // Several routes have the same event.
                let id = DeadLetterId {
                    offset: Offset::new(n / 2),
                    route: RouteId(u32::MAX - u32::from(n % 2 == 0)),
                };
                batch.dead_letter(&DeadLetter { id, ..letter(target, 0) });
            }
        }
    });
    store.commit(letters).await.unwrap();
    for limit in [1, 3, 10, 11] {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let (page, _) = store.dead_letters(name("a"), after, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.0);
            ids.extend(page.into_iter().map(|(id, letter)| (letter.unwrap().target, id)));
        }
        assert!(ids.len() == 10 && ids.is_sorted_by(|one, other| one < other), "{ids:?}");
        assert!(ids.iter().all(|(target, _)| *target == name("a")));
    }
    store.close();
}

#[tokio::test]
async fn all_commits_that_wait_are_written_before_the_store_is_closed() {
    let (directory, supervisor) = (tempfile::tempdir().unwrap(), Supervisor::default());
    let store = open_under(&supervisor, directory.path());
    let commits = (0..1_000).map(|n| tokio::task::unconstrained(store.commit(route(n))));
    let mut commits = Box::pin(futures_util::future::join_all(commits));
    assert!(futures_util::poll!(&mut commits).is_pending());
    close(&store).await;
    for committed in commits.await {
        committed.unwrap();
    }
    assert!(matches!(store.commit(route(1)).await, Err(StoreError::Closed)));
    let (store, persisted) = Store::open(directory.path(), limits(100, 1), supervisor.group()).unwrap();
    assert_eq!(persisted.routes.len(), 1_000);
    store.close();
}

#[tokio::test]
async fn a_writer_that_is_interrupted_is_the_stores_failure_and_answers_every_commit() {
    let (directory, supervisor) = (tempfile::tempdir().unwrap(), Supervisor::default());
    let store = open_under(&supervisor, directory.path());
    supervisor.kill(WRITER);
    let commits = (0..3).map(|n| store.commit(route(n)));
    let answers = futures_util::future::join_all(commits).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    let failure = store.failure().map(|failure| failure.to_string());
    assert!(failure.as_ref().is_some_and(|failure| failure.contains("interrupted")), "{failure:?}");
    // Another writer takes the next commit, and the store can be closed while one is interrupted.
    store.commit(route(4)).await.unwrap();
    supervisor.kill(WRITER);
    let mut commit = Box::pin(store.commit(route(5)));
    assert!(futures_util::poll!(&mut commit).is_pending());
    close(&store).await;
    // It has an answer: a failure, unless the kill has met the writer before.
    let _answered = commit.await;
}

/// Closes the store, which blocks.
async fn close(store: &Store) {
    let store = store.clone();
    let closed = relay_tasks::call_blocking(move || store.close());
    tokio::time::timeout(Duration::from_secs(60), closed).await.expect("the store is closed").unwrap();
}

#[tokio::test]
async fn memory_gets_the_first_events_of_a_targets_own_route_without_their_bodies() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    let mut queued = QueuedEvent::new(&event, 1);
    queued.is_requeued = true;
    store.commit(route(1)).await.unwrap();
    let entries = batch(|batch| {
        for offset in 1..=5 {
            let body = Some("the body");
            batch.put_record(
                RouteId(1),
                Offset::new(offset),
                &QueuedRecord { queued: &queued, attempts: &[], body },
            );
        }
    });
    store.commit(entries).await.unwrap();
    let body = store.requeued_body(RouteId(1), Offset::new(2)).await.unwrap();
    assert_eq!(body.as_deref(), Some("the body"));
    close(&store).await;
    let (store, persisted) =
        Store::open(directory.path(), limits(2, 1), Supervisor::default().group()).unwrap();
    let first: Vec<_> = persisted.queue.iter().map(|(_, offset, queued)| (offset.get(), queued)).collect();
    assert_eq!(first, [(1, &queued), (2, &queued)]);
    assert_eq!(persisted.overflows[&RouteId(1)], Overflow { from: Offset::new(3), count: 3 });
    store.close();
}

#[tokio::test]
async fn the_read_at_the_start_has_a_limit_of_bytes_over_all_routes() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    let queued = QueuedEvent::new(&event, 1);
    let fill = batch(|batch| {
        for (route, offset) in (1..=2).flat_map(|route| (1..=40).map(move |offset| (route, offset))) {
            batch.put_queued(RouteId(route), Offset::new(offset), &queued);
        }
    });
    store.commit(fill).await.unwrap();
    store.close();
    let limits = StoreLimits { queued_bytes: 30 * queued.approx_bytes(), ..limits(100, 1) };
    let (store, persisted) = Store::open(directory.path(), limits, Supervisor::default().group()).unwrap();
    let of = |route| persisted.queue.iter().filter(|(id, ..)| *id == RouteId(route)).count();
    // The second route has the few that each has.
    assert_eq!([of(1), of(2)], [30, 16]);
    let rest = |route| persisted.overflows[&RouteId(route)];
    assert_eq!(rest(1), Overflow { from: Offset::new(31), count: 10 });
    assert_eq!(rest(2), Overflow { from: Offset::new(17), count: 24 });
    store.close();
}

#[tokio::test]
async fn the_latest_losses_are_kept_and_all_are_counted_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let losses_of = |numbers: std::ops::RangeInclusive<u64>, name: &str| {
        batch(|batch| numbers.for_each(|number| batch.loss(&loss("a").into_record(number), name)))
    };
    let numbers = |store: &Store| -> Vec<u64> {
        store.losses().unwrap().into_iter().map(|record| record.number).collect()
    };
    // Many batches are written as one.
    let commits = (1..=10).map(|number| store.commit(losses_of(number..=number, "a")));
    for committed in futures_util::future::join_all(commits).await {
        committed.unwrap();
    }
    store.commit(losses_of(11..=13, "")).await.unwrap();
    assert_eq!(numbers(&store), [10, 11, 12, 13]);
    // One that got its number before those that have gone is written after them.
    store.commit(losses_of(9..=9, "a")).await.unwrap();
    assert_eq!(numbers(&store), [9, 11, 12, 13]);
    store.commit(losses_of(14..=14, "a")).await.unwrap();
    assert_eq!(numbers(&store), [11, 12, 13, 14]);
    store.close();

    let store = open(directory.path());
    assert_eq!(numbers(&store), [11, 12, 13, 14]);
    assert_eq!(store.lost_events().unwrap(), [(String::new(), 3), ("a".to_owned(), 12)]);
    store.commit(losses_of(20..=20, "a")).await.unwrap();
    assert_eq!(numbers(&store), [12, 13, 14, 20]);
    // One batch with more than are kept goes when the next one comes.
    store.commit(losses_of(21..=30, "a")).await.unwrap();
    store.commit(losses_of(31..=31, "a")).await.unwrap();
    assert_eq!(numbers(&store), [28, 29, 30, 31]);
    assert_eq!(store.lost_events().unwrap()[1], ("a".to_owned(), 24));
    // A damaged one hides no other.
    store.0.keyspaces.lock().as_ref().unwrap().losses.insert(30_u64.to_be_bytes(), "{").unwrap();
    assert_eq!(numbers(&store), [28, 29, 31]);
    store.close();
}
