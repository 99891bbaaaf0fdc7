//! Opening: what a crash leaves is put right, what only damage can have done is refused.
//!
//! A crash tears at most the last write, which nobody was told of. So a journal that ends in something that is no whole
//! batch is cut there, unless one of these shows that acknowledged events would go with it:
//! - a whole batch lies behind it: a later write was begun, so the earlier one had been finished;
//! - a whole record lies there that the [witness](crate::witness) says was acknowledged;
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

use crate::config::LogConfig;
use crate::directory::{Directory, DirectoryLock};
use crate::error::OpenError;
use crate::journal::{self, Scan};
use crate::record;
use crate::store::Store;
use crate::witness::{self, Heard, Testimony, Witness};

/// By how much offsets leap when it is not known which were given out last.
pub(crate) const OFFSET_LEAP: u64 = 1 << 32;

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "independent findings, each told by itself")]
pub struct RecoveryReport {
    /// True when there was no log before.
    pub created: bool,
    /// True when the last run ended in order, and for a new log.
    pub closed_in_order: bool,
    /// True when the witness was missing or unreadable, so that a loss at the log's very end could not be noticed.
    pub without_witness: bool,
    /// The last offset that is taken; the next event gets the one after it.
    pub last_offset: Offset,
    /// The torn last write, if there was one.
    pub cut: Option<Cut>,
    /// True when acknowledged events may be gone since the machine went down under
    /// [`LogDurability::Logged`](crate::LogDurability::Logged). All documents have a new epoch then.
    pub new_epoch: bool,
}

/// A torn last write that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// The file.
    pub file: PathBuf,
    /// Where it was cut.
    pub position: u64,
    /// How many bytes went, without the zeros at the end.
    pub bytes: u64,
}

/// An open log's parts.
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) epoch: Epoch,
    pub(crate) last_offset: Offset,
    pub(crate) witness: Witness,
    pub(crate) report: RecoveryReport,
}

/// Opens or creates the log.
pub(crate) fn open(config: &LogConfig) -> Result<Opened, OpenError> {
    let directory = Directory::new(&config.directory);
    directory.create()?;
    let lock = directory.lock()?;
    let heard = hear(&directory)?;
    let created = !directory.exists();
    directory.claim_format()?;
    clear_unfinished_creation(&directory, heard)?;

    let testimony = heard.testimony();
    let may_have_lost = testimony.is_some_and(|testimony| testimony.may_have_lost_unsynced());
    let cut = match Journals::read(&directory)? {
        journals if journals.are_clean() => None,
        journals => {
            if !may_have_lost {
                journals.refuse_damage(&directory, testimony)?;
            }
            journals.cut()?
        }
    };

    let store = open_engine(&directory, &directory.engine(), config.cache_bytes, Some(lock))?;
    let damaged = |what: String| damaged_engine(&directory, what);
    let mut last_offset = store.last_offset().map_err(|error| damaged(error.to_string()))?;
    let acknowledged = testimony.map_or(Offset::ZERO, |testimony| testimony.acknowledged);
    if last_offset < acknowledged && !may_have_lost {
        let directory = config.directory.clone();
        return Err(OpenError::Lost { directory, last: last_offset, acknowledged });
    }
    let known = store.epoch().map_err(|error| damaged(error.to_string()))?;
    if known.is_none() && heard != Heard::Absent {
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
            last_offset = Offset::new(last_offset.max(acknowledged).get().saturating_add(OFFSET_LEAP));
            store.put_floor(&mut batch, last_offset);
        }
        batch.commit().map_err(failed)?;
        epoch
    };
    // What a killed process wrote and did not sync will be shown to readers from now on.
    store.db.persist(PersistMode::SyncAll).map_err(failed)?;
    let path = directory.witness();
    let witness =
        Witness::begin(&path, last_offset, config.durability).map_err(OpenError::io("write", &path))?;
    directory.sync()?;
    let report = RecoveryReport {
        created,
        closed_in_order: created || testimony.is_some_and(|testimony| testimony.closed),
        without_witness: testimony.is_none() && known.is_some(),
        last_offset,
        cut,
        new_epoch: may_have_lost,
    };
    tell(config, &report);
    Ok(Opened { store, epoch, last_offset, witness, report })
}

fn tell(config: &LogConfig, report: &RecoveryReport) {
    let directory = config.directory.display();
    if let Some(cut) = &report.cut {
        tracing::warn!(%directory, file = %cut.file.display(), position = cut.position, bytes = cut.bytes,
            last_offset = %report.last_offset, "the last write was torn and has been cut off");
    }
    if report.without_witness {
        tracing::warn!(%directory, "the witness is missing or unreadable; a loss at the end would go unnoticed");
    }
    if report.new_epoch {
        tracing::warn!(%directory, "the machine went down and writes were not synced: events may be lost, all documents get a new epoch");
    }
}

pub(crate) fn hear(directory: &Directory) -> Result<Heard, OpenError> {
    let path = directory.witness();
    witness::hear(&path).map_err(OpenError::io("read", &path))
}

/// The engine refuses a directory in which its creation was interrupted. Without a witness nothing was ever appended.
fn clear_unfinished_creation(directory: &Directory, heard: Heard) -> Result<(), OpenError> {
    let engine = directory.engine();
    let version = engine.join("version");
    // The engine creates this file before it writes into it, and its length last.
    if fs::metadata(&version).is_ok_and(|version| version.len() > 0) {
        return Ok(());
    }
    if heard != Heard::Absent {
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
    pub(crate) fn refuse_damage(
        &self,
        directory: &Directory,
        testimony: Option<Testimony>,
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
        let Some(Testimony { acknowledged, .. }) = testimony else { return Ok(()) };
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
    fn cut(&self) -> Result<Option<Cut>, OpenError> {
        let Some((journal, after)) = self.damaged() else { return Ok(None) };
        let lost = |journal: &Journal, from: usize| (journal.scan.used.max(journal.scan.whole) - from) as u64;
        let mut cut = Cut {
            file: journal.path.clone(),
            position: journal.scan.whole as u64,
            bytes: lost(journal, journal.scan.whole),
        };
        shorten(&journal.path, cut.position)?;
        for journal in after {
            cut.bytes += lost(journal, 0);
            shorten(&journal.path, 0)?;
        }
        Ok(Some(cut))
    }
}

fn shorten(path: &Path, length: u64) -> Result<(), OpenError> {
    let file = OpenOptions::new().write(true).open(path).map_err(OpenError::io("open for writing", path))?;
    file.set_len(length).and_then(|()| file.sync_all()).map_err(OpenError::io("shorten", path))
}
