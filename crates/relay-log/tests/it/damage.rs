//! Damaged records in an engine that is intact: the events beside them are read, appended and trimmed as ever.

use std::path::Path;
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use relay_core::testing::{DAMAGED, damaged_log_suite, fill_to_be_damaged};
use relay_core::{Absence, EventLog, LogError, Payload, Seq, SystemClock};
use relay_log::{EmbeddedLog, LogConfig};

use crate::common::{EVERYTHING, append, document, next_event, open};

/// Damages the records of the events with `seqs` in the first document of the log, which is closed.
fn damage(directory: &Path, seqs: &[u64], damage: impl Fn(&Keyspace, [u8; 16])) {
    let db = Database::builder(directory.join("engine")).open().unwrap();
    let events = db.keyspace("events", KeyspaceCreateOptions::default).unwrap();
    for seq in seqs {
        // The key of the first document is the offset of its first event.
        let mut key = [0; 16];
        key[..8].copy_from_slice(&1_u64.to_be_bytes());
        key[8..].copy_from_slice(&seq.to_be_bytes());
        assert!(events.contains_key(key).unwrap(), "event {seq} is there");
        damage(&events, key);
    }
    db.persist(PersistMode::SyncAll).unwrap();
}

/// Flips a bit in the middle of a record.
fn flip(events: &Keyspace, key: [u8; 16]) {
    let mut record = events.get(key).unwrap().unwrap().to_vec();
    let middle = record.len() / 2;
    record[middle] ^= 1;
    events.insert(key, record).unwrap();
}

#[tokio::test]
async fn a_log_with_damaged_records_passes_the_suite() {
    type Damage = fn(&Keyspace, [u8; 16]);
    let kinds: [Damage; 3] = [
        flip,
        |events, key| events.insert(key, b"").unwrap(),
        |events, key| events.insert(key, [0xff; 4096]).unwrap(),
    ];
    for kind in kinds {
        let directory = tempfile::tempdir().unwrap();
        let log = open(directory.path());
        fill_to_be_damaged(&log).await;
        log.close().await.unwrap();
        drop(log);
        damage(directory.path(), &DAMAGED, kind);
        let log = open(directory.path());
        damaged_log_suite(&log).await;
        assert_eq!(log.stats().lost_events, DAMAGED.len() as u64, "each is counted once");
        log.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_missing_event_is_lost_and_retention_passes_it() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for text in ["one", "two", "three", "four"] {
        append(&log, "d", text).await;
    }
    log.close().await.unwrap();
    drop(log);
    damage(directory.path(), &[1, 3], |events, key| events.remove(key).unwrap());
    let mut config = LogConfig::new(directory.path());
    config.retention.max_events = 1;
    let (log, _) = EmbeddedLog::open(config, Arc::new(SystemClock::new())).unwrap();
    let lost =
        |events: &[relay_core::Event]| events.iter().map(relay_core::Event::is_lost).collect::<Vec<_>>();
    let read = log.read_document(&document("d"), Seq::ZERO, EVERYTHING).await.unwrap();
    assert_eq!(lost(&read), [true, false, true, false]);
    log.sweep().await.unwrap();
    let head = log.head(&document("d")).await.unwrap();
    assert_eq!((head.first, head.last), (Seq::new(4), Seq::new(4)));
    assert_eq!(log.stats().retention_failures, 0);
    append(&log, "d", "five").await;
    log.close().await.unwrap();
}

#[tokio::test]
async fn an_event_that_could_not_be_read_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let mut event = next_event(&log, &document("d"), "gone").await;
    event.payload = Payload::Absent(Absence::Lost);
    let refused = log.append(&document("d"), &[event]).await;
    assert!(matches!(refused, Err(LogError::Unreadable { .. })), "{refused:?}");
    append(&log, "d", "kept").await;
    log.close().await.unwrap();
}
