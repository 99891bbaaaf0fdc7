//! Reading of a log that may be damaged, without changing it.
//!
//! The engine opens intact logs alone, and changes the files that it opens. So it gets a scratch copy: tables are linked,
//! for they are never changed in place, and journals are rebuilt from the intact batches of the old ones. Intact records
//! between broken batches are found by their magic.
//!
//! All records are found by their magic when the engine cannot open even the copy. Trimmed events may come back then.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use relay_core::{DocumentId, Epoch, Event, Offset, Seq};
use tempfile::TempDir;

use crate::commit_marker::{MarkerFile, read_marker};
use crate::directory::{Directory, DirectoryLock};
use crate::error::OpenError;
use crate::journal_files::JournalFiles;
use crate::record::{self, Record};
use crate::recovery::{damaged_engine, open_engine};
use crate::store::{ReadError, Store, StoreSnapshot};

/// The most problems whose details are kept; all are counted.
const MAX_DETAILS: usize = 100;
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// The result of reading the whole log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Events that could be read.
    pub(crate) events: u64,
    /// Documents that they belong to.
    pub(crate) documents: u64,
    /// Events that are unreadable or missing, and damaged files.
    pub(crate) problems: u64,
    /// Descriptions of the first problems.
    pub(crate) details: Vec<String>,
}

impl Findings {
    fn problem(&mut self, detail: String) {
        self.problems += 1;
        if self.details.len() < MAX_DETAILS {
            self.details.push(detail);
        }
    }
}

/// A closed log that is being read. The directory stays locked meanwhile.
pub(crate) struct Rescue {
    pub(crate) directory: Directory,
    pub(crate) marker_file: MarkerFile,
    pub(crate) findings: Findings,
    /// The error with which the log would refuse to open.
    pub(crate) open_error: Option<OpenError>,
    store: Option<Store>,
    orphans: BTreeMap<Offset, OrphanRecord>,
    _scratch: TempDir,
    _lock: DirectoryLock,
}

/// An intact record that the engine cannot reach.
struct OrphanRecord {
    file: PathBuf,
    position: u64,
    bytes: usize,
}

impl Rescue {
    /// Locks the log in `path`, copies its engine, and opens the copy as far as possible.
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
        let journals = JournalFiles::read(&directory)?;
        let engine = directory.engine();
        let copy = scratch.path().join("engine");
        copy_tree(&engine, &copy).map_err(OpenError::io("copy for reading", &engine))?;
        for journal in &journals.0 {
            let scan = &journal.scan;
            if !scan.is_clean() {
                findings.problem(format!(
                    "`{}` has {} bytes from byte {} on that are not an intact write; {} intact writes lie among them",
                    journal.path.display(),
                    scan.used_end - scan.intact_end,
                    scan.intact_end,
                    scan.later_batches.len()
                ));
            }
            let intact = std::iter::once(0..scan.intact_end).chain(scan.later_batches.iter().cloned());
            let intact: Vec<u8> = intact.flat_map(|range| &journal.bytes[range]).copied().collect();
            let target = copy.join(&journal.name);
            fs::write(&target, intact).map_err(OpenError::io("write", &target))?;
            let broken = record::find_all(&journal.bytes[scan.intact_end..scan.used_end]);
            orphans.extend(broken.map(|(at, record)| orphan(&journal.path, scan.intact_end + at, &record)));
        }
        let store = match open_engine(&directory, &copy, CACHE_BYTES, None) {
            Ok(store) => Some(store),
            Err(error) => {
                findings.problem(format!(
                    "the engine cannot open its files, so their bytes are searched for records: {error}"
                ));
                orphans.clear();
                find_orphans(&engine, &mut orphans).map_err(OpenError::io("read", &engine))?;
                None
            }
        };
        let content = marker_file.content();
        let open_error = match content {
            Some(content) if content.may_have_lost_unsynced() => None,
            _ => journals.check_damage(&directory, content.map(|content| content.acknowledged)).err(),
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
        rescue.open_error = rescue.open_error.take().or_else(|| rescue.check_content());
        Ok(rescue)
    }

    /// Returns the error with which the log would refuse to open although its journals are in order.
    fn check_content(&self) -> Option<OpenError> {
        let damaged = |what: String| Some(damaged_engine(&self.directory, what));
        let Some(store) = &self.store else {
            return damaged("the engine cannot open its files".to_owned());
        };
        let content = self.marker_file.content().filter(|content| !content.may_have_lost_unsynced())?;
        let acknowledged = content.acknowledged;
        match store.last_offset() {
            Ok(last) if last < acknowledged => {
                Some(OpenError::Lost { directory: self.directory.path().to_owned(), last, acknowledged })
            }
            Ok(_) => None,
            Err(error) => damaged(error.to_string()),
        }
    }

    /// Returns the last offset in use, as far as it can be read. [`OFFSET_GAP`](crate::recovery::OFFSET_GAP) covers the
    /// rest.
    pub(crate) fn last_offset(&self) -> Offset {
        let kept = self.store.as_ref().and_then(|store| store.last_offset().ok());
        let orphan = self.orphans.keys().next_back().copied();
        let acknowledged = self.marker_file.content().map(|content| content.acknowledged);
        [kept, orphan, acknowledged].into_iter().flatten().max().unwrap_or(Offset::ZERO)
    }

    /// Hands every readable event to `take` in the order of offsets, and adds unreadable and missing ones to the findings.
    ///
    /// The events carry the log's epoch. Where that is unreadable, they keep the epoch that they were written with.
    pub(crate) fn for_each_event(
        &mut self,
        take: &mut dyn FnMut(Event) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let mut findings = std::mem::take(&mut self.findings);
        let epoch = match self.store.as_ref().map(Store::epoch) {
            None | Some(Ok(None)) => None,
            Some(Ok(epoch)) => epoch,
            Some(Err(error)) => {
                findings.problem(format!("the log's epoch is unreadable: {error}"));
                None
            }
        };
        let mut events = EventSequence { epoch, last_seqs: HashMap::new(), take };
        let mut orphans = self.orphans.iter().peekable();
        if let Some(store) = &self.store {
            let snapshot = store.snapshot();
            for entry in store.indexed_events() {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error @ ReadError::Corrupt(_)) => {
                        findings.problem(format!("an entry of the index of offsets: {error}"));
                        continue;
                    }
                    Err(error) => {
                        findings.problem(format!("the index of offsets is unreadable from here on: {error}"));
                        break;
                    }
                };
                let offset = entry.offset;
                while let Some((_, orphan)) = orphans.next_if(|(at, _)| **at < offset) {
                    if let Some(event) =
                        orphan.read(&mut findings).filter(|event| !was_trimmed(&snapshot, event))
                    {
                        events.hand_over(event, &mut findings)?;
                    }
                }
                orphans.next_if(|(at, _)| **at == offset);
                let event = match &entry.record {
                    Ok(Some(record)) => Record::decode(record)
                        .and_then(|record| record.event())
                        .map_err(|error| error.to_string()),
                    Ok(None) => Err("it is missing".to_owned()),
                    Err(error) => Err(error.to_string()),
                };
                match event {
                    Ok(event) => events.hand_over(event, &mut findings)?,
                    Err(what) => findings.problem(format!("the event at offset {offset}: {what}")),
                }
            }
            for (_, orphan) in orphans {
                if let Some(event) = orphan.read(&mut findings).filter(|event| !was_trimmed(&snapshot, event))
                {
                    events.hand_over(event, &mut findings)?;
                }
            }
        } else {
            for (_, orphan) in orphans {
                if let Some(event) = orphan.read(&mut findings) {
                    events.hand_over(event, &mut findings)?;
                }
            }
        }
        self.findings = findings;
        Ok(())
    }
}

/// The readable events on their way to the caller.
struct EventSequence<'a> {
    epoch: Option<Epoch>,
    /// The last seq of each document so far; `None` where only logged events have come.
    last_seqs: HashMap<DocumentId, Option<Seq>>,
    take: &'a mut dyn FnMut(Event) -> Result<(), OpenError>,
}

impl EventSequence<'_> {
    /// Checks that the event follows the previous one of its document, counts it, and hands it over.
    fn hand_over(&mut self, mut event: Event, findings: &mut Findings) -> Result<(), OpenError> {
        event.epoch = self.epoch.unwrap_or(event.epoch);
        let last = self.last_seqs.entry(event.document.clone()).or_insert_with(|| {
            findings.documents += 1;
            None
        });
        match (event.seq, *last) {
            (Some(seq), Some(before)) if seq != before.next() => {
                findings
                    .problem(format!("document `{}`: seq {seq} comes after seq {before}", event.document));
            }
            (None, _) if event.kind.is_ephemeral() => {
                findings.problem(format!("document `{}`: the event {} has no seq", event.document, event.id));
            }
            _ => {}
        }
        *last = event.seq.or(*last);
        findings.events += 1;
        (self.take)(event)
    }
}

impl OrphanRecord {
    /// Reads the event; a failure becomes a problem in the findings.
    fn read(&self, findings: &mut Findings) -> Option<Event> {
        let mut bytes = vec![0; self.bytes];
        let read = File::open(&self.file).and_then(|file| file.read_exact_at(&mut bytes, self.position));
        let event = read.map_err(|error| error.to_string()).and_then(|()| {
            Record::decode(&bytes).and_then(|record| record.event()).map_err(|e| e.to_string())
        });
        match event {
            Ok(event) => Some(event),
            Err(what) => {
                findings.problem(format!(
                    "the record in `{}` at byte {}: {what}",
                    self.file.display(),
                    self.position
                ));
                None
            }
        }
    }
}

/// Returns true when the event was trimmed before the damage. An event whose document is unreadable counts as kept, so
/// that nothing readable is left behind, and so does a logged event where none is kept.
fn was_trimmed(snapshot: &StoreSnapshot<'_>, event: &Event) -> bool {
    let Some(seq) = event.seq else {
        return matches!(snapshot.first_logged(), Ok(Some(first)) if event.offset < Some(first));
    };
    matches!(snapshot.document(&event.document), Ok(Some(document)) if seq <= document.trimmed)
}

fn orphan(file: &Path, position: usize, record: &Record<'_>) -> (Offset, OrphanRecord) {
    (record.offset, OrphanRecord { file: file.to_owned(), position: position as u64, bytes: record.len() })
}

/// Finds the records in all files below `directory`.
fn find_orphans(directory: &Path, orphans: &mut BTreeMap<Offset, OrphanRecord>) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_orphans(&entry.path(), orphans)?;
        } else {
            let bytes = fs::read(entry.path())?;
            orphans.extend(record::find_all(&bytes).map(|(at, record)| orphan(&entry.path(), at, &record)));
        }
    }
    Ok(())
}

/// Copies the engine's files without the journals. Tables, which never change, are linked where the file system allows it.
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
            // The caller rebuilds it from its intact batches.
        } else if !(from.ends_with("tables") && fs::hard_link(entry.path(), &target).is_ok()) {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
