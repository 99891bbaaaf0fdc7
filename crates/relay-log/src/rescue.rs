//! Everything that can be read of a log, damaged or not, without changing it.
//!
//! The engine only opens whole logs, and changes what it opens. So it is given a scratch copy: tables are linked (they
//! are never changed in place), journals are written anew with the whole batches of the old ones. Records that lie
//! whole between broken batches are found by their magic. Where the engine cannot open even the copy, all records are
//! found that way; events that had been dropped may then come back.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use relay_core::{DocumentId, Epoch, Event, Offset, Seq};
use tempfile::TempDir;

use crate::commit_marker::MarkerFile;
use crate::directory::{Directory, DirectoryLock};
use crate::error::OpenError;
use crate::record::{self, Record};
use crate::recovery::{Journals, open_engine, read_marker};
use crate::store::Store;

/// Details of problems that are kept; all are counted.
const MAX_PROBLEMS: usize = 100;
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// What was found while reading everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Events that could be read.
    pub(crate) events: u64,
    /// Documents that they belong to.
    pub(crate) documents: u64,
    /// Events that could not be read or are missing, and damaged files.
    pub(crate) problems: u64,
    /// The first of these, in words.
    pub(crate) details: Vec<String>,
}

impl Findings {
    pub(crate) fn problem(&mut self, detail: String) {
        self.problems += 1;
        if self.details.len() < MAX_PROBLEMS {
            self.details.push(detail);
        }
    }
}

/// A log laid open. It keeps the directory locked.
pub(crate) struct Rescue {
    pub(crate) directory: Directory,
    pub(crate) marker_file: MarkerFile,
    pub(crate) findings: Findings,
    /// Why the log would refuse to open.
    pub(crate) open_error: Option<OpenError>,
    store: Option<Store>,
    orphans: BTreeMap<Offset, OrphanRecord>,
    _scratch: TempDir,
    _lock: DirectoryLock,
}

/// A whole record outside of what the engine can read.
struct OrphanRecord {
    file: PathBuf,
    position: u64,
    bytes: usize,
}

impl Rescue {
    pub(crate) fn begin(path: &Path) -> Result<Self, OpenError> {
        let directory = Directory::new(path);
        if !directory.exists() {
            return Err(OpenError::Missing { directory: path.to_owned() });
        }
        let lock = directory.lock()?;
        directory.claim_format()?;
        let marker_file = read_marker(&directory)?;
        let scratch = tempfile::Builder::new().prefix("scratch-").tempdir_in(path);
        let scratch = scratch.map_err(OpenError::io("create a scratch directory in", path))?;

        let mut findings = Findings::default();
        let mut orphans = BTreeMap::new();
        let journals = Journals::read(&directory)?;
        let engine = directory.engine();
        let copy = scratch.path().join("engine");
        copy_tree(&engine, &copy).map_err(OpenError::io("copy for reading", &engine))?;
        for journal in &journals.0 {
            let scan = &journal.scan;
            if !scan.is_clean() {
                findings.problem(format!(
                    "`{}` has {} bytes from byte {} on that are no whole write, with {} whole writes among them",
                    journal.path.display(),
                    scan.used - scan.whole,
                    scan.whole,
                    scan.later.len()
                ));
            }
            let whole = std::iter::once(0..scan.whole).chain(scan.later.iter().cloned());
            let whole: Vec<u8> = whole.flat_map(|range| &journal.bytes[range]).copied().collect();
            let target = copy.join(journal.path.file_name().unwrap_or_default());
            fs::write(&target, whole).map_err(OpenError::io("write", &target))?;
            let rubble = record::find_all(&journal.bytes[scan.whole..scan.used]);
            orphans.extend(rubble.map(|(at, record)| orphan(&journal.path, scan.whole + at, &record)));
        }
        let store = match open_engine(&directory, &copy, CACHE_BYTES, None) {
            Ok(store) => Some(store),
            Err(error) => {
                findings.problem(format!(
                    "the engine cannot open its files, so their bytes are searched: {error}"
                ));
                orphans.clear();
                search(&engine, &mut orphans).map_err(OpenError::io("read", &engine))?;
                None
            }
        };
        let marker = marker_file.content();
        let open_error = match marker {
            Some(marker) if marker.may_have_lost_unsynced() => None,
            _ => journals.check_damage(&directory, marker).err(),
        };
        let mut rescue = Self {
            directory,
            marker_file,
            findings,
            open_error,
            store,
            orphans,
            _scratch: scratch,
            _lock: lock,
        };
        rescue.open_error = rescue.open_error.take().or_else(|| rescue.refused_by_content());
        Ok(rescue)
    }

    /// Why the log would not open although its journals are in order.
    fn refused_by_content(&self) -> Option<OpenError> {
        let directory = self.directory.path().to_owned();
        let Some(store) = &self.store else {
            let what = "the engine cannot open its files".to_owned();
            return Some(OpenError::Damaged { directory, file: self.directory.engine(), position: 0, what });
        };
        let marker = self.marker_file.content().filter(|marker| !marker.may_have_lost_unsynced())?;
        let last = store.last_offset().unwrap_or(Offset::ZERO);
        let acknowledged = marker.acknowledged;
        (last < acknowledged).then_some(OpenError::Lost { directory, last, acknowledged })
    }

    /// The log's epoch, if it can be read.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.store.as_ref()?.epoch().ok()?
    }

    /// The last offset that was given out, as far as that can be read.
    pub(crate) fn last_offset(&self) -> Offset {
        let kept = self.store.as_ref().and_then(|store| store.last_offset().ok()).unwrap_or(Offset::ZERO);
        let orphan = self.orphans.keys().next_back().copied().unwrap_or(Offset::ZERO);
        let acknowledged = self.marker_file.content().map_or(Offset::ZERO, |content| content.acknowledged);
        kept.max(orphan).max(acknowledged)
    }

    /// Gives every readable event in the order of offsets, and notes what is unreadable or missing.
    pub(crate) fn each(
        &mut self,
        take: &mut dyn FnMut(Event) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let mut findings = std::mem::take(&mut self.findings);
        let epoch = self.epoch().unwrap_or(Epoch::from_u64(0));
        let mut seen: HashMap<DocumentId, Seq> = HashMap::new();
        let mut give = |mut event: Event, findings: &mut Findings| {
            event.epoch = epoch;
            let seq = event.seq.unwrap_or_default();
            match seen.insert(event.document.clone(), seq) {
                Some(before) if seq != before.next() => findings
                    .problem(format!("document `{}`: seq {seq} comes after seq {before}", event.document)),
                Some(_) => {}
                None => findings.documents += 1,
            }
            findings.events += 1;
            take(event)
        };
        let mut orphans = self.orphans.iter().peekable();
        if let Some(store) = &self.store {
            let snapshot = store.snapshot();
            for guard in store.offsets.iter() {
                let (offset, value) = match guard.into_inner() {
                    Ok((offset, key)) => (offset_of(&offset), store.events.get(&key)),
                    Err(error) => {
                        findings.problem(format!("the index of offsets is unreadable from here on: {error}"));
                        break;
                    }
                };
                while let Some((_, orphan)) = orphans.next_if(|(at, _)| **at < offset) {
                    if let Some(event) =
                        orphan.read(&mut findings).filter(|event| !was_dropped(&snapshot, event))
                    {
                        give(event, &mut findings)?;
                    }
                }
                orphans.next_if(|(at, _)| **at == offset);
                let event = match &value {
                    Ok(Some(value)) => Record::decode(value)
                        .and_then(|record| record.event())
                        .map_err(|error| error.to_string()),
                    Ok(None) => Err("it is missing".to_owned()),
                    Err(error) => Err(error.to_string()),
                };
                match event {
                    Ok(event) => give(event, &mut findings)?,
                    Err(what) => findings.problem(format!("the event at offset {offset}: {what}")),
                }
            }
            for (_, orphan) in orphans {
                if let Some(event) = orphan.read(&mut findings).filter(|event| !was_dropped(&snapshot, event))
                {
                    give(event, &mut findings)?;
                }
            }
        } else {
            for (_, orphan) in orphans {
                if let Some(event) = orphan.read(&mut findings) {
                    give(event, &mut findings)?;
                }
            }
        }
        self.findings = findings;
        Ok(())
    }
}

impl OrphanRecord {
    fn read(&self, findings: &mut Findings) -> Option<Event> {
        let mut bytes = vec![0; self.bytes];
        let read = File::open(&self.file).and_then(|file| file.read_exact_at(&mut bytes, self.position));
        let event = read.map_err(|error| error.to_string()).and_then(|()| {
            Record::decode(&bytes).and_then(|record| record.event()).map_err(|e| e.to_string())
        });
        event
            .map_err(|what| {
                findings.problem(format!(
                    "the record in `{}` at byte {}: {what}",
                    self.file.display(),
                    self.position
                ));
            })
            .ok()
    }
}

/// True when retention or trimming had dropped the event before the damage.
fn was_dropped(snapshot: &crate::store::StoreSnapshot<'_>, event: &Event) -> bool {
    let document = snapshot.document(&event.document).ok().flatten();
    document.is_some_and(|document| event.seq.unwrap_or_default().get() <= document.trimmed)
}

fn offset_of(key: &[u8]) -> Offset {
    Offset::new(key.first_chunk().map_or(0, |number| u64::from_be_bytes(*number)))
}

fn orphan(file: &Path, position: usize, record: &Record<'_>) -> (Offset, OrphanRecord) {
    (record.offset, OrphanRecord { file: file.to_owned(), position: position as u64, bytes: record.len() })
}

/// Finds the records in all files below `directory`.
fn search(directory: &Path, orphans: &mut BTreeMap<Offset, OrphanRecord>) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            search(&entry.path(), orphans)?;
        } else {
            let bytes = fs::read(entry.path())?;
            orphans.extend(record::find_all(&bytes).map(|(at, record)| orphan(&entry.path(), at, &record)));
        }
    }
    Ok(())
}

/// Copies the engine's files but for the journals; tables, which are never changed, are linked where that works.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    if !from.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if entry.path().extension().is_some_and(|extension| extension == "jnl") {
            // Written anew from its whole batches.
        } else if !(from.ends_with("tables") && fs::hard_link(entry.path(), &target).is_ok()) {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
