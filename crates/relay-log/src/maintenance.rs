//! Maintenance of a log that is not open: [`check`] it, [`export`] its events, [`repair`] it.
//!
//! All three functions block, and refuse a log that a process has open. Only [`repair`] changes files.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use relay_core::{DocumentId, Epoch, Event, Offset, Seq};
use relay_events::binary;

use crate::commit_marker::CommitMarker;
use crate::config::LogDurability;
use crate::directory::Directory;
use crate::error::OpenError;
use crate::record::{Record, RecordError};
use crate::recovery::{OFFSET_GAP, open_engine};
use crate::rescue::{Findings, Rescue};
use crate::store::DocumentKey;

/// The findings of [`check`].
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// The error with which the log would refuse to open; `None` when it would open.
    pub open_error: Option<OpenError>,
    /// Events that can be read.
    pub events: u64,
    /// Documents that they belong to.
    pub documents: u64,
    /// The last offset in use, as far as it can be read.
    pub last_offset: Offset,
    /// The last acknowledged offset; `None` without a readable commit marker.
    pub acknowledged: Option<Offset>,
    /// Events that are unreadable or missing, and files that are damaged. A torn last write counts as one.
    pub problems: u64,
    /// Descriptions of the first hundred problems.
    pub details: Vec<String>,
}

/// The result of [`export`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportReport {
    /// Events that were exported.
    pub events: u64,
    /// Events that were unreadable or missing, and files that were damaged.
    pub problems: u64,
    /// Descriptions of the first hundred problems.
    pub details: Vec<String>,
}

/// The result of [`repair`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// Events that the repaired log holds.
    pub events: u64,
    /// Events that got another seq since an earlier event of their document is lost.
    pub renumbered: u64,
    /// Events that were unreadable or missing, and files that were damaged.
    pub problems: u64,
    /// Descriptions of the first hundred problems.
    pub details: Vec<String>,
    /// The new epoch of every document.
    pub epoch: Epoch,
    /// The directory of the damaged files. Relay never deletes it.
    pub damaged_files: PathBuf,
}

/// Reads the whole log in `directory` and reports its events and problems, changing nothing. While it runs it needs disk
/// space for a copy of the journals beside the log.
///
/// # Errors
/// [`OpenError::Missing`], [`OpenError::InUse`], [`OpenError::Format`], [`OpenError::Io`]. Damage is part of the report
/// and not an error.
pub fn check(directory: &Path) -> Result<CheckReport, OpenError> {
    let mut rescue = Rescue::begin(directory)?;
    rescue.for_each_event(&mut |_| Ok(()))?;
    let open_error = rescue.open_error.take();
    let acknowledged = rescue.marker_file.content().map(|content| content.acknowledged);
    let last_offset = rescue.last_offset();
    let Findings { events, documents, problems, details } = rescue.findings;
    Ok(CheckReport { open_error, events, documents, last_offset, acknowledged, problems, details })
}

/// Hands every readable event to `take` in the order of offsets, changing nothing in the log.
///
/// # Errors
/// The errors of [`check`], and [`OpenError::Io`] with an error that `take` returned.
pub fn export(
    directory: &Path,
    take: &mut dyn FnMut(Event) -> io::Result<()>,
) -> Result<ExportReport, OpenError> {
    let mut rescue = Rescue::begin(directory)?;
    rescue.for_each_event(&mut |event| {
        take(event).map_err(OpenError::io("hand on the exported events of", directory))
    })?;
    let Findings { events, problems, details, .. } = rescue.findings;
    Ok(ExportReport { events, problems, details })
}

/// Makes an intact log of every readable event. Returns `None`, and changes nothing, when the log is intact.
///
/// Offsets stay. Seqs close up where events of a document are lost. Every document gets a new epoch, so that clients start
/// over instead of trusting seqs that now belong to other events. The damaged files stay beside the log, in the directory
/// that the report names.
///
/// # Errors
/// The errors of [`check`]. The log's files are then still in place.
pub fn repair(directory: &Path) -> Result<Option<RepairReport>, OpenError> {
    let directory = Directory::new(directory);
    let new_engine = directory.path().join("engine.repaired");
    finish_interrupted(&directory, &new_engine)?;
    let found = check(directory.path())?;
    if found.open_error.is_none() && found.problems == 0 {
        return Ok(None);
    }
    let mut rescue = Rescue::begin(directory.path())?;
    if new_engine.exists() {
        fs::remove_dir_all(&new_engine).map_err(OpenError::io("remove the unfinished", &new_engine))?;
    }
    let epoch = Epoch::random();
    let (last_offset, renumbered) = rebuild(&mut rescue, &new_engine, epoch)?;

    let damaged_files = unused_path(&directory);
    let engine = directory.engine();
    directory.sync()?;
    if engine.exists() {
        fs::rename(&engine, &damaged_files).map_err(OpenError::io("rename", &engine))?;
    }
    fs::rename(&new_engine, &engine).map_err(OpenError::io("rename", &new_engine))?;
    let path = directory.marker();
    CommitMarker::begin(&path, last_offset, LogDurability::Synced)
        .and_then(CommitMarker::close)
        .map_err(OpenError::io("write", &path))?;
    directory.sync()?;
    let Findings { events, problems, details, .. } = rescue.findings;
    Ok(Some(RepairReport { events, renumbered, problems, details, epoch, damaged_files }))
}

/// Returns the first path for damaged files that does not exist yet.
fn unused_path(directory: &Directory) -> PathBuf {
    let mut number = 1_u64;
    loop {
        let path = directory.path().join(format!("damaged-{number}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}

/// Completes a repair that was interrupted after it moved the damaged files away. The new ones were finished before that.
fn finish_interrupted(directory: &Directory, new_engine: &Path) -> Result<(), OpenError> {
    if !directory.exists() || directory.engine().exists() || !new_engine.exists() {
        return Ok(());
    }
    let _lock = directory.lock()?;
    fs::rename(new_engine, directory.engine()).map_err(OpenError::io("rename", new_engine))
}

/// The state of a document in the new log.
struct RebuiltDocument {
    key: DocumentKey,
    last: Seq,
    cumulative_bytes: u64,
}

/// Writes the readable events into a new engine. Returns the last offset in use and the number of renumbered events.
fn rebuild(rescue: &mut Rescue, new_engine: &Path, epoch: Epoch) -> Result<(Offset, u64), OpenError> {
    const CACHE_BYTES: u64 = 8 * 1024 * 1024;
    let store = open_engine(&rescue.directory, new_engine, CACHE_BYTES, None)?;
    let failed = |error: fjall::Error| OpenError::io("write to", new_engine)(io::Error::other(error));
    let refused = |error: RecordError| OpenError::io("write to", new_engine)(io::Error::other(error));
    let mut documents: HashMap<DocumentId, RebuiltDocument> = HashMap::new();
    let (mut renumbered, mut logged_bytes) = (0, 0);
    rescue.for_each_event(&mut |mut event| {
        let Some(offset) = event.offset else { return Ok(()) };
        event.epoch = epoch;
        let mut batch = store.batch();
        let Some(seq) = event.seq else {
            let body = binary::encode(&event);
            logged_bytes += Record::size(body.len());
            let record = Record { offset, cumulative_bytes: logged_bytes, time: event.time, body: &body };
            batch.put_logged(&record).map_err(refused)?;
            return batch.commit().map_err(failed);
        };
        let id = event.document.clone();
        let document = documents.entry(id.clone()).or_insert_with(|| {
            let key = DocumentKey::of_first_event(offset);
            let before = Seq::new(seq.get().saturating_sub(1));
            batch.put_document(&id, key, before);
            RebuiltDocument { key, last: before, cumulative_bytes: 0 }
        });
        document.last = document.last.next();
        renumbered += u64::from(seq != document.last);
        event.seq = Some(document.last);
        let body = binary::encode(&event);
        document.cumulative_bytes += Record::size(body.len());
        let cumulative_bytes = document.cumulative_bytes;
        let record = Record { offset, cumulative_bytes, time: event.time, body: &body };
        batch.put_event(document.key, document.last, &record).map_err(refused)?;
        batch.commit().map_err(failed)
    })?;
    let last_offset = Offset::new(rescue.last_offset().get().saturating_add(OFFSET_GAP));
    let mut batch = store.batch();
    batch.put_epoch(epoch);
    batch.put_high_watermark(last_offset);
    batch.commit().map_err(failed)?;
    store.sync().map_err(failed)?;
    Ok((last_offset, renumbered))
}
