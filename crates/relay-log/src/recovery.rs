//! Opening: what a crash leaves is put right, what only damage can have done is refused.
//!
//! A crash tears at most the last write, which nobody was told of. So a journal that ends in something that is no whole
//! batch is cut there, unless one of these shows that acknowledged events would go with it:
//! - a whole batch lies behind it: a later write was begun, so the earlier one had been finished;
//! - a whole record lies there that the [witness](crate::commit_marker) says was acknowledged;
//! - what remains ends before the last acknowledged offset.
//!
//! The one exception is a log that promised no more than to survive its process
//! ([`LogDurability::Logged`](crate::LogDurability)) on a machine that went down since: what was not on the disk is lost, as
//! configured. It cannot be known whether seqs that clients saw went with it, so all documents get a new epoch.

use std::fs::{self, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::PersistMode;
use relay_core::{Epoch, Offset};

use crate::commit_marker::{self, CommitMarker, MarkerContent, MarkerFile};
use crate::config::LogConfig;
use crate::directory::{Directory, DirectoryLock};
use crate::error::OpenError;
use crate::journal::{self, Scan};
use crate::record;
use crate::store::Store;

/// By how much offsets leap when it is not known which were given out last.
pub(crate) const OFFSET_GAP: u64 = 1 << 32;

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "independent findings, each told by itself")]
pub struct RecoveryReport {
    /// True when there was no log before.
    pub created: bool,
    /// True when the last run ended in order, and for a new log.
    pub clean_shutdown: bool,
    /// True when the witness was missing or unreadable, so that a loss at the log's very end could not be noticed.
    pub without_marker: bool,
    /// The last offset that is taken; the next event gets the one after it.
    pub last_offset: Offset,
    /// The torn last write, if there was one.
    pub torn_tail: Option<TornTail>,
    /// True when acknowledged events may be gone since the machine went down under
    /// [`LogDurability::Logged`](crate::LogDurability::Logged). All documents have a new epoch then.
    pub new_epoch: bool,
}

/// A torn last write that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TornTail {
    /// The file.
    pub file: PathBuf,
    /// Where it was cut.
    pub position: u64,
    /// How many bytes went, without the zeros at the end.
    pub bytes: u64,
}

/// An open log's parts.
pub(crate) struct RecoveredLog {
    pub(crate) store: Store,
    pub(crate) epoch: Epoch,
    pub(crate) last_offset: Offset,
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
    let may_have_lost = content.is_some_and(|content| content.may_have_lost_unsynced());
    let torn_tail = match Journals::read(&directory)? {
        journals if journals.are_clean() => None,
        journals => {
            if !may_have_lost {
                journals.check_damage(&directory, content)?;
            }
            journals.truncate()?
        }
    };

    let store = open_engine(&directory, &directory.engine(), config.cache_bytes, Some(lock))?;
    let damaged = |what: String| damaged_engine(&directory, what);
    let mut last_offset = store.last_offset().map_err(|error| damaged(error.to_string()))?;
    let acknowledged = content.map_or(Offset::ZERO, |content| content.acknowledged);
    if last_offset < acknowledged && !may_have_lost {
        let directory = config.directory.clone();
        return Err(OpenError::Lost { directory, last: last_offset, acknowledged });
    }
    let known = store.epoch().map_err(|error| damaged(error.to_string()))?;
    if known.is_none() && marker_file != MarkerFile::Absent {
        return Err(damaged("the log's epoch is missing".to_owned()));
    }
    let failed =
        |error: fjall::Error| OpenError::io("write to", &directory.engine())(io::Error::other(error));
    let epoch = if let Some(epoch) = known.filter(|_| !may_have_lost) {
        epoch
    } else {
        let epoch = Epoch::random();
        let mut batch = store.db.batch();
        store.put_epoch(&mut batch, epoch);
        if may_have_lost {
            last_offset = Offset::new(last_offset.max(acknowledged).get().saturating_add(OFFSET_GAP));
            store.put_high_watermark(&mut batch, last_offset);
        }
        batch.commit().map_err(failed)?;
        epoch
    };
    // What a killed process wrote and did not sync will be shown to readers from now on.
    store.db.persist(PersistMode::SyncAll).map_err(failed)?;
    let path = directory.marker();
    let marker =
        CommitMarker::begin(&path, last_offset, config.durability).map_err(OpenError::io("write", &path))?;
    directory.sync()?;
    let report = RecoveryReport {
        created,
        clean_shutdown: created || content.is_some_and(|content| content.closed),
        without_marker: content.is_none() && known.is_some(),
        last_offset,
        torn_tail,
        new_epoch: may_have_lost,
    };
    log_report(config, &report);
    Ok(RecoveredLog { store, epoch, last_offset, marker, report })
}

fn log_report(config: &LogConfig, report: &RecoveryReport) {
    let directory = config.directory.display();
    if let Some(tail) = &report.torn_tail {
        tracing::warn!(%directory, file = %tail.file.display(), position = tail.position, bytes = tail.bytes,
            last_offset = %report.last_offset, "the last write was torn and has been cut off");
    }
    if report.without_marker {
        tracing::warn!(%directory, "the witness is missing or unreadable; a loss at the end would go unnoticed");
    }
    if report.new_epoch {
        tracing::warn!(%directory, "the machine went down and writes were not synced: events may be lost, all documents get a new epoch");
    }
}

pub(crate) fn read_marker(directory: &Directory) -> Result<MarkerFile, OpenError> {
    let path = directory.marker();
    commit_marker::read_marker(&path).map_err(OpenError::io("read", &path))
}

/// The engine refuses a directory in which its creation was interrupted. Without a witness nothing was ever appended.
fn clear_unfinished_creation(directory: &Directory, marker_file: MarkerFile) -> Result<(), OpenError> {
    let engine = directory.engine();
    let version = engine.join("version");
    // The engine creates this file before it writes into it, and its length last.
    if fs::metadata(&version).is_ok_and(|version| version.len() > 0) {
        return Ok(());
    }
    if marker_file != MarkerFile::Absent {
        return Err(OpenError::Damaged {
            directory: directory.path().to_owned(),
            file: version,
            position: 0,
            what: "the engine's file is missing or empty".to_owned(),
        });
    }
    match fs::remove_dir_all(&engine) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::io("remove", &engine)(error)),
        _ => Ok(()),
    }
}

/// Opens the engine's files. Damaged ones can trip assertions of the engine, which are errors here.
pub(crate) fn open_engine(
    directory: &Directory,
    engine: &Path,
    cache_bytes: u64,
    lock: Option<DirectoryLock>,
) -> Result<Store, OpenError> {
    match catch_unwind(AssertUnwindSafe(|| Store::open(engine, cache_bytes, lock))) {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(fjall::Error::Io(error))) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(OpenError::io("open", engine)(error))
        }
        Ok(Err(error)) => Err(damaged_engine(directory, error.to_string())),
        Err(_) => Err(damaged_engine(directory, "the engine cannot make sense of its files".to_owned())),
    }
}

fn damaged_engine(directory: &Directory, what: String) -> OpenError {
    OpenError::Damaged { directory: directory.path().to_owned(), file: directory.engine(), position: 0, what }
}

/// One journal file, read and scanned.
pub(crate) struct Journal {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) scan: Scan,
}

/// All journal files of a log, in order.
pub(crate) struct Journals(pub(crate) Vec<Journal>);

impl Journals {
    pub(crate) fn read(directory: &Directory) -> Result<Self, OpenError> {
        let engine = directory.engine();
        let entries = match fs::read_dir(&engine) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self(Vec::new())),
            entries => entries.map_err(OpenError::io("read", &engine))?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(OpenError::io("read", &engine))?.path();
            let number =
                path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
            paths.extend(number.map(|number| (number, path)));
        }
        paths.sort();
        let mut journals = Vec::new();
        let mut sequence = 0;
        for (_, path) in paths {
            let bytes = fs::read(&path).map_err(OpenError::io("read", &path))?;
            let scan = journal::scan(&bytes, sequence);
            sequence = scan.sequence;
            journals.push(Journal { path, bytes, scan });
        }
        Ok(Self(journals))
    }

    pub(crate) fn are_clean(&self) -> bool {
        self.0.iter().all(|journal| journal.scan.is_clean())
    }

    /// The first file that is not clean, and those after it.
    fn damaged(&self) -> Option<(&Journal, &[Journal])> {
        let first = self.0.iter().position(|journal| !journal.scan.is_clean())?;
        Some((&self.0[first], &self.0[first + 1..]))
    }

    /// Refuses when acknowledged events would be lost by cutting at the first thing that is no whole batch.
    pub(crate) fn check_damage(
        &self,
        directory: &Directory,
        marker: Option<MarkerContent>,
    ) -> Result<(), OpenError> {
        let Some((journal, after)) = self.damaged() else { return Ok(()) };
        let refuse = |what| {
            Err(OpenError::Damaged {
                directory: directory.path().to_owned(),
                file: journal.path.clone(),
                position: journal.scan.whole as u64,
                what,
            })
        };
        let later = journal.scan.later.len() + after.iter().filter(|journal| journal.scan.whole > 0).count();
        if later > 0 {
            return refuse("later writes lie behind what cannot be read there".to_owned());
        }
        let Some(MarkerContent { acknowledged, .. }) = marker else { return Ok(()) };
        let rest = &journal.bytes[journal.scan.whole..journal.scan.used];
        if let Some((_, record)) = record::find_all(rest).find(|(_, record)| record.offset <= acknowledged) {
            return refuse(format!("the event at offset {} lies there and was acknowledged", record.offset));
        }
        let last = self
            .0
            .iter()
            .filter(|kept| kept.scan.sequence <= journal.scan.sequence)
            .flat_map(|journal| record::find_all(&journal.bytes[..journal.scan.whole]))
            .map(|(_, record)| record.offset)
            .max();
        match last {
            Some(last) if last < acknowledged => refuse(format!(
                "the last whole event before it has offset {last}, but events up to {acknowledged} were acknowledged"
            )),
            _ => Ok(()),
        }
    }

    /// Cuts everything from the first thing on that is no whole batch.
    fn truncate(&self) -> Result<Option<TornTail>, OpenError> {
        let Some((journal, after)) = self.damaged() else { return Ok(None) };
        let lost = |journal: &Journal, from: usize| (journal.scan.used.max(journal.scan.whole) - from) as u64;
        let mut tail = TornTail {
            file: journal.path.clone(),
            position: journal.scan.whole as u64,
            bytes: lost(journal, journal.scan.whole),
        };
        truncate_file(&journal.path, tail.position)?;
        for journal in after {
            tail.bytes += lost(journal, 0);
            truncate_file(&journal.path, 0)?;
        }
        Ok(Some(tail))
    }
}

fn truncate_file(path: &Path, length: u64) -> Result<(), OpenError> {
    let file = OpenOptions::new().write(true).open(path).map_err(OpenError::io("open for writing", path))?;
    file.set_len(length).and_then(|()| file.sync_all()).map_err(OpenError::io("shorten", path))
}
