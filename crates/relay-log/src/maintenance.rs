//! What an operator does with a log that is not open: [`check`] it, [`export`] its events, [`repair`] it.
//!
//! All three block, and refuse a log that a process has open. Only [`repair`] changes anything.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fjall::PersistMode;
use relay_core::{DocumentId, Epoch, Event, Offset, Seq};
use relay_events::binary;

use crate::commit_marker::CommitMarker;
use crate::config::LogDurability;
use crate::directory::Directory;
use crate::error::OpenError;
use crate::record::Record;
use crate::recovery::{OFFSET_GAP, open_engine};
use crate::rescue::{Findings, Rescue};

/// How a log stands.
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// Why the log would refuse to open; none when it would open.
    pub open_error: Option<OpenError>,
    /// Events that can be read.
    pub events: u64,
    /// Documents that they belong to.
    pub documents: u64,
    /// The last offset that was given out, as far as that is known.
    pub last_offset: Offset,
    /// Everything up to here was acknowledged; none when there is no readable witness.
    pub acknowledged: Option<Offset>,
    /// Events that are unreadable or missing, and files that are damaged. A torn last write counts as one.
    pub problems: u64,
    /// The first hundred of these, in words.
    pub details: Vec<String>,
}

/// What [`export`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportReport {
    /// Events that were given.
    pub events: u64,
    /// Events that were unreadable or missing, and files that were damaged.
    pub problems: u64,
    /// The first hundred of these, in words.
    pub details: Vec<String>,
}

/// What [`repair`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// Events that the repaired log holds.
    pub events: u64,
    /// Events that had to get another seq since an earlier one of their document is lost.
    pub renumbered: u64,
    /// Events that were unreadable or missing, and files that were damaged.
    pub problems: u64,
    /// The first hundred of these, in words.
    pub details: Vec<String>,
    /// The new epoch of every document.
    pub epoch: Epoch,
    /// Where the damaged files are now. Nothing deletes them.
    pub damaged_files: PathBuf,
}

/// Reads the whole log in `directory` and tells what is there and what is wrong, changing nothing. It needs room for a
/// copy of the journals beside the log while it runs.
///
/// # Errors
/// [`OpenError::Missing`], [`OpenError::InUse`], [`OpenError::Format`], [`OpenError::Io`]. Damage is not an error
/// here but the finding.
pub fn check(directory: &Path) -> Result<CheckReport, OpenError> {
    let mut rescue = Rescue::begin(directory)?;
    rescue.each(&mut |_| Ok(()))?;
    let open_error = rescue.open_error.take();
    let acknowledged = rescue.marker_file.content().map(|content| content.acknowledged);
    let last_offset = rescue.last_offset();
    let Findings { events, documents, problems, details } = rescue.findings;
    Ok(CheckReport { open_error, events, documents, last_offset, acknowledged, problems, details })
}

/// Gives every event that can be read to `take`, in the order of offsets, changing nothing in the log.
///
/// # Errors
/// As [`check`], and [`OpenError::Io`] with what `take` returned.
pub fn export(
    directory: &Path,
    take: &mut dyn FnMut(Event) -> io::Result<()>,
) -> Result<ExportReport, OpenError> {
    let mut rescue = Rescue::begin(directory)?;
    rescue
        .each(&mut |event| take(event).map_err(OpenError::io("hand on the exported events of", directory)))?;
    let Findings { events, problems, details, .. } = rescue.findings;
    Ok(ExportReport { events, problems, details })
}

/// Makes a whole log of every event that can be read. Offsets stay; seqs close up where events of a document are lost;
/// every document gets a new epoch, so that clients start again rather than trust seqs that mean other events now. The
/// damaged files stay beside the log, in the directory that the report names. A log that is whole is left as it is:
/// there is no report then.
///
/// # Errors
/// As [`check`]. What was there is then still there.
pub fn repair(directory: &Path) -> Result<Option<RepairReport>, OpenError> {
    let home = Directory::new(directory);
    let fresh = home.path().join("engine.repaired");
    finish_interrupted(&home, &fresh)?;
    let found = check(directory)?;
    if found.open_error.is_none() && found.problems == 0 {
        return Ok(None);
    }
    let mut rescue = Rescue::begin(directory)?;
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(OpenError::io("remove the unfinished", &fresh))?;
    }
    let epoch = Epoch::random();
    let (last_offset, renumbered) = rebuild(&mut rescue, &fresh, epoch)?;

    let damaged_files = (1..u32::MAX)
        .map(|n| home.path().join(format!("damaged-{n}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| home.path().join("damaged"));
    let engine = home.engine();
    home.sync()?;
    if engine.exists() {
        fs::rename(&engine, &damaged_files).map_err(OpenError::io("rename", &engine))?;
    }
    fs::rename(&fresh, &engine).map_err(OpenError::io("rename", &fresh))?;
    let path = home.marker();
    CommitMarker::begin(&path, last_offset, LogDurability::Synced)
        .and_then(CommitMarker::close)
        .map_err(OpenError::io("write", &path))?;
    home.sync()?;
    let Findings { events, problems, details, .. } = rescue.findings;
    Ok(Some(RepairReport { events, renumbered, problems, details, epoch, damaged_files }))
}

/// A repair that was interrupted after it took the damaged files away had finished the new ones.
fn finish_interrupted(home: &Directory, fresh: &Path) -> Result<(), OpenError> {
    if !home.exists() || home.engine().exists() || !fresh.exists() {
        return Ok(());
    }
    let _lock = home.lock()?;
    fs::rename(fresh, home.engine()).map_err(OpenError::io("rename", fresh))
}

/// Where a document of the new log stands.
struct RebuiltDocument {
    number: u64,
    last: Seq,
    total: u64,
}

/// Writes the salvaged events into a new engine in `fresh`, and says which offset is taken last and how many events
/// were renumbered.
fn rebuild(rescue: &mut Rescue, fresh: &Path, epoch: Epoch) -> Result<(Offset, u64), OpenError> {
    const CACHE_BYTES: u64 = 8 * 1024 * 1024;
    let home = rescue.directory.clone();
    let store = open_engine(&home, fresh, CACHE_BYTES, None)?;
    let failed = |error: fjall::Error| OpenError::io("write to", fresh)(io::Error::other(error));
    let mut documents: HashMap<DocumentId, RebuiltDocument> = HashMap::new();
    let mut renumbered = 0;
    rescue.each(&mut |mut event| {
        let (Some(offset), Some(seq)) = (event.offset, event.seq) else { return Ok(()) };
        let mut batch = store.db.batch();
        let id = event.document.clone();
        let document = documents.entry(id.clone()).or_insert_with(|| {
            let before = seq.get().saturating_sub(1);
            store.put_document(&mut batch, &id, offset.get(), before);
            RebuiltDocument { number: offset.get(), last: Seq::new(before), total: 0 }
        });
        document.last = document.last.next();
        renumbered += u64::from(seq != document.last);
        event.seq = Some(document.last);
        event.epoch = epoch;
        let body = binary::encode(&event);
        document.total += Record::size(body.len());
        let record = Record { offset, total: document.total, time: event.time, body: &body };
        store.put_event(&mut batch, document.number, document.last.get(), &record);
        batch.commit().map_err(failed)
    })?;
    let last_offset = Offset::new(rescue.last_offset().get().saturating_add(OFFSET_GAP));
    let mut batch = store.db.batch();
    store.put_epoch(&mut batch, epoch);
    store.put_high_watermark(&mut batch, last_offset);
    batch.commit().map_err(failed)?;
    store.db.persist(PersistMode::SyncAll).map_err(failed)?;
    Ok((last_offset, renumbered))
}
