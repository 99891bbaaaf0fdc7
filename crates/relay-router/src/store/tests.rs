//! The store's counts and its failure.

use std::collections::HashMap;
use std::path::Path;

use relay_core::{DocumentId, EventId, Offset, Timestamp};

use super::*;
use crate::records::{DeadReason, RouteId};
use crate::test_support::name;

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

fn open_with(directory: &Path, max_dead_letters: usize) -> Store {
    Store::open(directory, 100, max_dead_letters, relay_tasks::Supervisor::default().group()).unwrap().0
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
        let letters = store.dead_letters(target.clone(), None, usize::MAX).await.unwrap();
        letters.into_iter().map(|letter| letter.id.offset.get()).collect()
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
    assert_eq!((store.dead_letter_count(&a), store.dropped_dead_letters(&a)), (3, 98));
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
