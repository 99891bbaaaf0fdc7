//! Opening: repairs what a crash leaves, and refuses what only damage can have done.
//!
//! A crash tears at most the last write, which was not acknowledged. A journal that ends in bytes that are no intact batch
//! is therefore cut off there. The log is refused instead when one of these shows that the cut would lose acknowledged
//! events:
//! - An intact batch lies behind those bytes: a later write was begun, so the earlier one had been finished.
//! - An intact record among those bytes was acknowledged according to the [commit marker](crate::commit_marker).
//! - The events before the cut end before the last acknowledged offset.
//!
//! One case is an exception: the log promised to survive its process alone
//! ([`LogDurability::Logged`](crate::LogDurability)), and the machine went down since. Events that were not on the disk are
//! then lost, as configured. Clients may have seen their seqs, so all documents get a new epoch.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use relay_core::{Epoch, Offset};

use crate::commit_marker::{CommitMarker, MarkerFile, read_marker};
use crate::config::LogConfig;
use crate::directory::{Directory, DirectoryLock};
use crate::error::OpenError;
use crate::journal_files::{JournalFiles, TornTail};
use crate::store::{Store, into_io_error, is_damage};
use crate::writer::WritePosition;

/// The gap that is left in the offsets when the last one in use is unknown.
pub(crate) const OFFSET_GAP: u64 = 1 << 32;

/// The size of the engine's file `version`.
const VERSION_BYTES: u64 = 4;

/// The findings and repairs of opening a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "independent findings, each reported by itself")]
pub struct RecoveryReport {
    /// True when there was no log before.
    pub created: bool,
    /// True when the last run shut down cleanly, and for a new log.
    pub clean_shutdown: bool,
    /// True when the commit marker was missing or unreadable. A loss at the very end of the log goes unnoticed then.
    pub without_marker: bool,
    /// The last offset in use; the next event gets the one after it.
    pub last_offset: Offset,
    /// The torn last write, if there was one.
    pub torn_tail: Option<TornTail>,
    /// True when acknowledged events may be gone since the machine went down under
    /// [`LogDurability::Logged`](crate::LogDurability::Logged). All documents have a new epoch then.
    pub new_epoch: bool,
}

/// The parts of a log that was opened.
pub(crate) struct RecoveredLog {
    pub(crate) store: Store,
    pub(crate) position: WritePosition,
    pub(crate) marker: CommitMarker,
    pub(crate) report: RecoveryReport,
}

/// Opens or creates the log.
pub(crate) fn open(config: &LogConfig) -> Result<RecoveredLog, OpenError> {
    let directory = Directory::new(&config.directory);
    directory.create()?;
    let lock = directory.lock()?;
    let marker_file = read_marker(&directory)?;
    let created = !directory.exists();
    directory.claim_format()?;
    clear_unfinished_creation(&directory, marker_file)?;

    let content = marker_file.content();
    let acknowledged = content.map(|content| content.acknowledged);
    let may_have_lost = content.is_some_and(|content| content.may_have_lost_unsynced());
    let torn_tail = match JournalFiles::read(&directory)? {
        journals if journals.are_clean() => None,
        journals => {
            if !may_have_lost {
                journals.check_damage(&directory, acknowledged)?;
            }
            journals.truncate()?
        }
    };

    let store = open_engine(&directory, &directory.engine(), config.cache_bytes, Some(lock))?;
    let damaged = |what: String| damaged_engine(&directory, what);
    let mut last_offset = store.last_offset().map_err(|error| damaged(error.to_string()))?;
    let acknowledged = acknowledged.unwrap_or(Offset::ZERO);
    if last_offset < acknowledged && !may_have_lost {
        let directory = config.directory.clone();
        return Err(OpenError::Lost { directory, last: last_offset, acknowledged });
    }
    let known_epoch = store.epoch().map_err(|error| damaged(error.to_string()))?;
    if known_epoch.is_none() && marker_file != MarkerFile::Absent {
        return Err(damaged("the log's epoch is missing".to_owned()));
    }
    let failed = |error: fjall::Error| OpenError::io("write to", &directory.engine())(into_io_error(error));
    let epoch = if let Some(epoch) = known_epoch.filter(|_| !may_have_lost) {
        epoch
    } else {
        let epoch = Epoch::random();
        let mut batch = store.batch();
        batch.put_epoch(epoch);
        if may_have_lost {
            last_offset = Offset::new(last_offset.max(acknowledged).get().saturating_add(OFFSET_GAP));
            batch.put_high_watermark(last_offset);
        }
        batch.commit().map_err(failed)?;
        epoch
    };
    // Readers see from now on what a killed process wrote and did not sync.
    store.sync().map_err(failed)?;
    let path = directory.marker();
    let marker =
        CommitMarker::begin(&path, last_offset, config.durability).map_err(OpenError::io("write", &path))?;
    directory.sync()?;
    let report = RecoveryReport {
        created,
        clean_shutdown: created || content.is_some_and(|content| content.closed),
        without_marker: content.is_none() && known_epoch.is_some(),
        last_offset,
        torn_tail,
        new_epoch: may_have_lost,
    };
    log_report(config, &report);
    let logged = store.snapshot().logged_totals().map_err(|error| damaged(error.to_string()))?;
    let position = WritePosition { epoch, last_offset, logged };
    Ok(RecoveredLog { store, position, marker, report })
}

fn log_report(config: &LogConfig, report: &RecoveryReport) {
    let directory = config.directory.display();
    if let Some(tail) = &report.torn_tail {
        tracing::warn!(%directory, file = %tail.file.display(), position = tail.position, bytes = tail.bytes,
            last_offset = %report.last_offset, "the last write was torn and has been cut off");
    }
    if report.without_marker {
        tracing::warn!(%directory, "the commit marker is missing or unreadable; a loss at the end would go unnoticed");
    }
    if report.new_epoch {
        tracing::warn!(%directory, "the machine went down and writes were not synced: events may be lost, all documents get a new epoch");
    }
}

/// Removes an engine whose creation was interrupted, which the engine itself refuses to open. Without a commit marker
/// nothing was ever appended to it.
fn clear_unfinished_creation(directory: &Directory, marker_file: MarkerFile) -> Result<(), OpenError> {
    let engine = directory.engine();
    let version = engine.join("version");
    // The engine creates this file early and fills it last.
    if fs::metadata(&version).is_ok_and(|version| version.len() >= VERSION_BYTES) {
        return Ok(());
    }
    if marker_file != MarkerFile::Absent {
        return Err(OpenError::Damaged {
            directory: directory.path().to_owned(),
            file: version,
            position: 0,
            what: "the engine's file is missing or incomplete".to_owned(),
        });
    }
    match fs::remove_dir_all(&engine) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::io("remove", &engine)(error)),
        _ => Ok(()),
    }
}

/// Opens the engine's files. Damaged files can trip assertions of the engine; those become errors here.
pub(crate) fn open_engine(
    directory: &Directory,
    engine: &Path,
    cache_bytes: u64,
    lock: Option<DirectoryLock>,
) -> Result<Store, OpenError> {
    match catch_unwind(AssertUnwindSafe(|| Store::open(engine, cache_bytes, lock))) {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(error)) if !is_damage(&error) => Err(OpenError::io("open", engine)(into_io_error(error))),
        Ok(Err(error)) => Err(damaged_engine(directory, error.to_string())),
        Err(_) => Err(damaged_engine(directory, "the engine cannot interpret its files".to_owned())),
    }
}

/// Returns the error for an engine whose files are damaged at an unknown offset.
pub(crate) fn damaged_engine(directory: &Directory, what: String) -> OpenError {
    OpenError::Damaged { directory: directory.path().to_owned(), file: directory.engine(), position: 0, what }
}
