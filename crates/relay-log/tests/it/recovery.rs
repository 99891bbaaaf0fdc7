//! A log after it was closed, cut off, or damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use relay_core::{EventLog, Head, LogError, Offset, Seq, SystemClock};
use relay_log::{EmbeddedLog, LogConfig, LogDurability, OpenError, RecoveryReport};

use crate::common::{
    EVERYTHING, active_journal, append, content, copy, document, open, shrink, text, texts, try_open,
};

const EVENTS: usize = 12;
/// The size of the largest write in these tests, or more.
const WRITE_BYTES: u64 = 600;

/// Returns the directory of a log whose process died: `EVENTS` events in three documents, one append each, and a journal
/// without the zeros at its end.
async fn dead_log() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for n in 0..EVENTS {
        append(&log, &format!("d{}", n % 3), &format!("event {n}")).await;
    }
    let died = copy(directory.path());
    log.close().await.unwrap();
    shrink(&active_journal(died.path()));
    died
}

async fn all(log: &EmbeddedLog) -> Vec<String> {
    let events = log.read(Offset::ZERO, EVERYTHING).await.unwrap();
    events.iter().map(text).collect()
}

fn expected(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("event {n}")).collect()
}

/// Puts back an older commit marker, as it stands when the process died before it was updated.
fn set_marker(directory: &Path, older: &[u8]) {
    fs::write(directory.join("witness"), older).unwrap();
}

#[tokio::test]
async fn a_reopened_log_goes_on_where_it_was_even_when_everything_was_trimmed() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for n in 0..5 {
        append(&log, "d", &format!("event {n}")).await;
    }
    log.trim(&document("d"), Seq::new(99)).await.unwrap();
    let (head, empty) =
        (log.head(&document("d")).await.unwrap(), log.head(&document("never")).await.unwrap());
    log.close().await.unwrap();

    let (log, report) = try_open(directory.path()).unwrap();
    assert!(report.clean_shutdown && !report.created && report.torn_tail.is_none() && !report.new_epoch);
    assert_eq!(log.head(&document("d")).await.unwrap(), head);
    assert_eq!(log.head(&document("never")).await.unwrap(), empty);
    assert_eq!(
        append(&log, "d", "after").await,
        (Seq::new(6), Offset::new(6)),
        "no seq and no offset comes twice"
    );
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_log_dropped_without_closing_keeps_what_was_committed() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "d", "kept").await;
    drop(log);
    let log = open(directory.path());
    assert_eq!(texts(&log, "d").await, ["kept"]);
}

#[tokio::test]
async fn a_closed_log_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let other = log.clone();
    log.close().await.unwrap();
    log.close().await.unwrap();
    assert!(matches!(other.head(&document("d")).await, Err(LogError::Closed)));
    assert!(matches!(other.append(&document("d"), &[]).await, Err(LogError::Closed)));
}

#[tokio::test]
async fn a_log_has_one_opener_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let refused = try_open(directory.path()).unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }));
    assert!(refused.to_string().contains(directory.path().to_str().unwrap()), "{refused}");
    assert!(matches!(relay_log::check(directory.path()), Err(OpenError::InUse { .. })));
    log.close().await.unwrap();
    open(directory.path()).close().await.unwrap();
}

#[tokio::test]
async fn a_log_that_is_open_has_one_opener_also_without_its_lock_file() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for text in ["one", "two"] {
        append(&log, "d", text).await;
        fs::remove_file(directory.path().join("lock")).unwrap();
        let refused = try_open(directory.path()).unwrap_err();
        assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
        let refused = relay_log::check(directory.path()).unwrap_err();
        assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
        let refused = relay_log::repair(directory.path()).unwrap_err();
        assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
        fs::write(directory.path().join("lock"), "").unwrap();
    }
    log.close().await.unwrap();
    let log = open(directory.path());
    assert_eq!(texts(&log, "d").await, ["one", "two"]);
}

#[tokio::test]
async fn a_directory_of_another_format_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("format"), "relay-log 2\n").unwrap();
    let refused = try_open(directory.path()).unwrap_err().to_string();
    assert!(refused.contains("relay-log 2") && refused.contains("format"), "{refused}");
}

#[test]
fn a_path_that_cannot_be_a_directory_is_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().join("log");
    let refused = try_open(&path).unwrap_err();
    assert!(matches!(&refused, OpenError::Io { .. }) && refused.to_string().contains(path.to_str().unwrap()));
}

#[test]
fn a_directory_without_a_log_is_not_made_one_by_looking() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(relay_log::check(directory.path()), Err(OpenError::Missing { .. })));
    assert!(content(directory.path()).is_empty());
}

#[tokio::test]
async fn a_creation_that_was_interrupted_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).close().await.unwrap();
    fs::remove_file(directory.path().join("witness")).unwrap();
    fs::write(directory.path().join("engine/version"), "").unwrap();
    let log = open(directory.path());
    append(&log, "d", "works").await;
    log.close().await.unwrap();
}

/// The last append was not acknowledged, and its write is torn at each possible length.
#[tokio::test]
async fn a_last_write_torn_at_any_byte_is_cut_reported_and_costs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for n in 0..3 {
        append(&log, "d", &format!("event {n}")).await;
    }
    let before = copy(directory.path());
    append(&log, "d", "event 3").await;
    let after = copy(directory.path());
    log.close().await.unwrap();
    let (before, after) = (before.path(), after.path());
    shrink(&active_journal(before));
    shrink(&active_journal(after));
    let whole = fs::read(active_journal(before)).unwrap();
    let longer = fs::read(active_journal(after)).unwrap();
    let marker = fs::read(before.join("witness")).unwrap();
    assert!(longer.starts_with(&whole) && longer.len() > whole.len() + 50);

    for length in whole.len() + 1..longer.len() {
        // A killed process leaves the bare cut. In some rounds zeros or garbage follow, as after a lost page.
        let tails = [&b""[..], &[0; 600], b"garbage"];
        for tail in &tails[..if length % 16 == 0 { 3 } else { 1 }] {
            let torn = copy(after);
            set_marker(torn.path(), &marker);
            fs::write(active_journal(torn.path()), [&longer[..length], *tail].concat()).unwrap();
            let (log, report) = try_open(torn.path()).unwrap();
            let tail = report.torn_tail.unwrap();
            assert_eq!((tail.file, tail.position), (active_journal(torn.path()), whole.len() as u64));
            assert_eq!(report.last_offset, Offset::new(3), "{length}");
            assert_eq!(all(&log).await, expected(3), "{length}");
            assert_eq!(append(&log, "d", "event 3").await, (Seq::new(4), Offset::new(4)));
            log.close().await.unwrap();
            if length % 16 == 0 {
                let (log, report) = try_open(torn.path()).unwrap();
                assert_eq!(report.torn_tail, None);
                assert_eq!(all(&log).await, expected(4));
                log.close().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_missing_end_that_was_acknowledged_is_refused_and_nothing_changes() {
    let died = dead_log().await;
    let journal = active_journal(died.path());
    let bytes = fs::read(&journal).unwrap();
    for missing in [1, 40, 200, bytes.len() / 2] {
        let short = copy(died.path());
        fs::write(active_journal(short.path()), &bytes[..bytes.len() - missing]).unwrap();
        let before = content(&short.path().join("engine"));
        let refused = try_open(short.path()).unwrap_err();
        assert!(
            matches!(refused, OpenError::Damaged { .. } | OpenError::Lost { .. }),
            "{missing}: {refused}"
        );
        assert!(refused.to_string().contains("relay log check"), "{refused}");
        assert_eq!(content(&short.path().join("engine")), before, "{missing}");
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_refused_or_harmless() {
    let died = dead_log().await;
    let length = fs::metadata(active_journal(died.path())).unwrap().len();
    let damaged = copy(died.path());
    let mut refused = 0;
    for position in 0..length {
        let path = active_journal(damaged.path());
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, position).unwrap();
        let bit = 1 << (position % 8);
        file.write_all_at(&[byte[0] ^ bit], position).unwrap();
        match try_open(damaged.path()) {
            Err(OpenError::Damaged { file, position: at, .. }) => {
                // A wrong sequence number is noticed only at the next write.
                assert!(
                    file == path && at <= position + WRITE_BYTES,
                    "{position}: named {} at {at}",
                    file.display()
                );
                refused += 1;
                file_is_put_back(&path, position, byte[0]);
            }
            Err(error) => panic!("{position}: {error}"),
            Ok((log, report)) => {
                assert_eq!((report.torn_tail, all(&log).await), (None, expected(EVENTS)), "{position}");
                log.close().await.unwrap();
                fs::remove_dir_all(damaged.path()).unwrap();
                let again = copy(died.path());
                fs::rename(again.path(), damaged.path()).unwrap();
            }
        }
    }
    assert!(refused * 10 > length * 9, "most of a journal is covered: {refused} of {length}");
}

fn file_is_put_back(path: &Path, position: u64, byte: u8) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[byte], position).unwrap();
}

#[tokio::test]
async fn a_damaged_log_can_be_checked_exported_and_repaired() {
    let died = dead_log().await;
    let path = active_journal(died.path());
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(7).position(|window| window == b"event 4").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let before = content(died.path());
    let old_epoch = {
        let whole = dead_log().await;
        let log = open(whole.path());
        let head = log.head(&document("d0")).await.unwrap();
        log.close().await.unwrap();
        head.epoch
    };

    let report = relay_log::check(died.path()).unwrap();
    assert!(matches!(report.open_error, Some(OpenError::Damaged { .. })));
    assert_eq!((report.events, report.documents), (EVENTS as u64 - 1, 3));
    assert_eq!((report.last_offset, report.acknowledged), (Offset::new(12), Some(Offset::new(12))));
    // Two problems: the damaged write, and the seq that is missing in its document.
    assert_eq!(report.problems, 2, "{:?}", report.details);

    let mut exported = Vec::new();
    let report = relay_log::export(died.path(), &mut |event| {
        exported.push(text(&event));
        Ok(())
    });
    assert_eq!(report.unwrap().problems, 2);
    let saved: Vec<String> = expected(EVENTS).into_iter().filter(|text| text != "event 4").collect();
    assert_eq!(exported, saved);
    assert_eq!(content(died.path()), before, "looking changes nothing");

    let report = relay_log::repair(died.path()).unwrap().unwrap();
    assert_eq!((report.events, report.renumbered), (EVENTS as u64 - 1, 2));
    assert_ne!(report.epoch, old_epoch);
    assert!(report.damaged_files.is_dir());
    let (log, _) = try_open(died.path()).unwrap();
    assert_eq!(all(&log).await, saved);
    assert_eq!(log.head(&document("d0")).await.unwrap().epoch, report.epoch);
    assert_eq!(texts(&log, "d1").await, ["event 1", "event 7", "event 10"]);
    let (seq, offset) = append(&log, "d1", "goes on").await;
    assert!(seq == Seq::new(4) && offset > Offset::new(12), "{seq} {offset}");
    log.close().await.unwrap();
    let report = relay_log::check(died.path()).unwrap();
    assert_eq!((report.problems, report.open_error.is_none()), (0, true), "{:?}", report.details);

    // An intact log stays as it is, and so does its epoch.
    let whole = content(died.path());
    assert_eq!(relay_log::repair(died.path()).unwrap(), None);
    assert_eq!(content(died.path()), whole);
}

#[tokio::test]
async fn records_are_saved_even_when_the_engine_cannot_open_its_files() {
    let died = dead_log().await;
    fs::write(died.path().join("engine/keyspaces/0/current"), b"rubbish").unwrap();
    let refused = try_open(died.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    let report = relay_log::repair(died.path()).unwrap().unwrap();
    assert_eq!(report.events, EVENTS as u64);
    let log = open(died.path());
    assert_eq!(all(&log).await, expected(EVENTS));
    log.close().await.unwrap();
}

#[tokio::test]
async fn an_unreadable_witness_is_reported_and_costs_nothing() {
    let died = dead_log().await;
    fs::write(died.path().join("witness"), b"rubbish").unwrap();
    let (log, report) = try_open(died.path()).unwrap();
    assert!(report.without_marker);
    assert_eq!(all(&log).await, expected(EVENTS));
    log.close().await.unwrap();
}

/// Returns a log that died under `durability` with three events, as the next boot of the machine finds it.
async fn log_of_an_earlier_boot(durability: LogDurability) -> (tempfile::TempDir, Head) {
    let directory = tempfile::tempdir().unwrap();
    let log = open_as(directory.path(), durability).unwrap().0;
    for n in 0..3 {
        append(&log, "d", &format!("event {n}")).await;
    }
    let head = log.head(&document("d")).await.unwrap();
    let died = copy(directory.path());
    log.close().await.unwrap();
    shrink(&active_journal(died.path()));
    rename_boot(died.path());
    (died, head)
}

fn open_as(directory: &Path, durability: LogDurability) -> Result<(EmbeddedLog, RecoveryReport), OpenError> {
    let mut config = LogConfig::new(directory);
    config.durability = durability;
    EmbeddedLog::open(config, Arc::new(SystemClock::new()))
}

/// Changes the commit marker so that it names another boot of the machine.
fn rename_boot(directory: &Path) {
    let path = directory.join("witness");
    let mut marker = fs::read(&path).unwrap();
    marker[16..52].copy_from_slice(b"00000000-0000-4000-8000-000000000000");
    let crc = crc32fast::hash(&marker[..60]);
    marker[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, marker).unwrap();
}

fn lose_the_last_event(directory: &Path) {
    let journal = active_journal(directory);
    let bytes = fs::read(&journal).unwrap();
    let last = bytes.windows(7).position(|window| window == b"event 2").unwrap();
    fs::write(&journal, &bytes[..last]).unwrap();
}

#[tokio::test]
async fn a_logged_log_that_lost_events_with_its_machine_has_a_new_epoch_and_new_offsets() {
    let (died, before) = log_of_an_earlier_boot(LogDurability::Logged).await;
    lose_the_last_event(died.path());
    assert!(relay_log::check(died.path()).unwrap().open_error.is_none());
    let (log, report) = open_as(died.path(), LogDurability::Logged).unwrap();
    assert!(report.new_epoch && report.torn_tail.is_some() && !report.clean_shutdown);
    assert_eq!(all(&log).await, expected(2));
    let head = log.head(&document("d")).await.unwrap();
    assert_ne!(head.epoch, before.epoch, "seq 3 may come to mean another event");
    let kept = log.read_document(&document("d"), Seq::ZERO, EVERYTHING).await.unwrap();
    assert!(kept.iter().all(|event| event.epoch == head.epoch));
    let (seq, offset) = append(&log, "d", "another").await;
    assert!(seq == Seq::new(3) && offset > Offset::new(3), "{seq} {offset}");
    log.close().await.unwrap();

    let (log, report) = open_as(died.path(), LogDurability::Logged).unwrap();
    assert!(!report.new_epoch, "once is enough");
    assert_eq!(log.head(&document("d")).await.unwrap().epoch, head.epoch);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_synced_log_that_lost_events_with_its_machine_is_refused() {
    let (died, before) = log_of_an_earlier_boot(LogDurability::Synced).await;
    let short = copy(died.path());
    lose_the_last_event(short.path());
    let refused = open_as(short.path(), LogDurability::Synced).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. } | OpenError::Lost { .. }), "{refused}");

    let (log, report) = open_as(died.path(), LogDurability::Synced).unwrap();
    assert!(!report.new_epoch);
    assert_eq!(log.head(&document("d")).await.unwrap(), before, "whole, it goes on as it was");
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_logged_log_that_was_closed_in_order_keeps_its_epoch_over_a_boot() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_as(directory.path(), LogDurability::Logged).unwrap().0;
    append(&log, "d", "event 0").await;
    let head = log.head(&document("d")).await.unwrap();
    log.close().await.unwrap();
    rename_boot(directory.path());
    let (log, report) = open_as(directory.path(), LogDurability::Logged).unwrap();
    assert!(!report.new_epoch);
    assert_eq!(log.head(&document("d")).await.unwrap(), head);
    log.close().await.unwrap();
}

#[tokio::test]
async fn an_acknowledged_write_that_is_missing_without_a_trace_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "d", "event 0").await;
    let before = copy(directory.path());
    append(&log, "d", "event 1").await;
    let after = copy(directory.path());
    log.close().await.unwrap();
    // The journal ends at the end of a write, as if the last one had never been. Only the commit marker shows the loss.
    fs::copy(active_journal(before.path()), active_journal(after.path())).unwrap();

    let lost = |error: Option<OpenError>| match error {
        Some(OpenError::Lost { last, acknowledged, .. }) => (last, acknowledged),
        other => panic!("{other:?}"),
    };
    let expected = (Offset::new(1), Offset::new(2));
    assert_eq!(lost(relay_log::check(after.path()).unwrap().open_error), expected);
    for _ in 0..2 {
        assert_eq!(lost(try_open(after.path()).err()), expected, "opening again does not help");
    }
    let report = relay_log::repair(after.path()).unwrap().unwrap();
    assert_eq!(report.events, 1);
    let log = open(after.path());
    assert_eq!(log.head(&document("d")).await.unwrap().epoch, report.epoch);
    let (_, offset) = append(&log, "d", "another").await;
    assert!(offset > Offset::new(2), "the lost event's offset does not come twice");
    log.close().await.unwrap();
}
