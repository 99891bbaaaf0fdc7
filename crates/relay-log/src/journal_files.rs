//! The journal files of a log: their scans together, the check for damage, and the cut at a torn last write.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use relay_core::Offset;

use crate::directory::Directory;
use crate::error::OpenError;
use crate::journal::{self, JournalScan};
use crate::record;

/// A torn last write that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TornTail {
    /// The file.
    pub file: PathBuf,
    /// The file's length after the cut.
    pub position: u64,
    /// The number of bytes that were cut off, without the zeros at the end.
    pub bytes: u64,
}

/// One journal file, read and scanned.
pub(crate) struct JournalFile {
    pub(crate) path: PathBuf,
    pub(crate) name: OsString,
    pub(crate) bytes: Vec<u8>,
    pub(crate) scan: JournalScan,
}

/// All journal files of a log, in order.
pub(crate) struct JournalFiles(pub(crate) Vec<JournalFile>);

impl JournalFiles {
    /// Reads and scans the journals of the log's engine.
    pub(crate) fn read(directory: &Directory) -> Result<Self, OpenError> {
        let engine = directory.engine();
        let entries = match fs::read_dir(&engine) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self(Vec::new())),
            entries => entries.map_err(OpenError::io("read", &engine))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(OpenError::io("read", &engine))?.file_name();
            // The engine ignores files whose name is not a number, and so does this.
            let number = name.to_str().and_then(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok());
            names.extend(number.map(|number| (number, name)));
        }
        names.sort();
        let mut journals = Vec::new();
        let mut last_sequence = 0;
        for (_, name) in names {
            let path = engine.join(&name);
            let bytes = fs::read(&path).map_err(OpenError::io("read", &path))?;
            let scan = journal::scan(&bytes, last_sequence);
            last_sequence = scan.last_sequence;
            journals.push(JournalFile { path, name, bytes, scan });
        }
        Ok(Self(journals))
    }

    /// Returns true when every file holds intact batches alone.
    pub(crate) fn are_clean(&self) -> bool {
        self.0.iter().all(|journal| journal.scan.is_clean())
    }

    /// Returns the first file that is not clean, and the files after it.
    fn damaged(&self) -> Option<(&JournalFile, &[JournalFile])> {
        let first = self.0.iter().position(|journal| !journal.scan.is_clean())?;
        Some((&self.0[first], &self.0[first + 1..]))
    }

    /// Fails when a cut at the end of the intact batches would lose acknowledged events. `acknowledged` is the last
    /// acknowledged offset, as far as the commit marker states one.
    pub(crate) fn check_damage(
        &self,
        directory: &Directory,
        acknowledged: Option<Offset>,
    ) -> Result<(), OpenError> {
        let Some((journal, after)) = self.damaged() else { return Ok(()) };
        let damaged = |what| {
            Err(OpenError::Damaged {
                directory: directory.path().to_owned(),
                file: journal.path.clone(),
                position: journal.scan.intact_end as u64,
                what,
            })
        };
        let later_files = after.iter().filter(|journal| journal.scan.intact_end > 0).count();
        if journal.scan.later_batches.len() + later_files > 0 {
            return damaged("later writes follow the bytes there, which cannot be read".to_owned());
        }
        let Some(acknowledged) = acknowledged else { return Ok(()) };
        let rest = &journal.bytes[journal.scan.intact_end..journal.scan.used_end];
        if let Some((_, record)) = record::find_all(rest).find(|(_, record)| record.offset <= acknowledged) {
            return damaged(format!(
                "the event at offset {} lies in an unreadable write and was acknowledged",
                record.offset
            ));
        }
        let last = self
            .0
            .iter()
            .filter(|intact| intact.scan.last_sequence <= journal.scan.last_sequence)
            .flat_map(|journal| record::find_all(&journal.bytes[..journal.scan.intact_end]))
            .map(|(_, record)| record.offset)
            .max();
        match last {
            Some(last) if last < acknowledged => damaged(format!(
                "the last intact event before it has offset {last}, but events up to {acknowledged} were acknowledged"
            )),
            _ => Ok(()),
        }
    }

    /// Cuts the journals off at the end of the intact batches.
    pub(crate) fn truncate(&self) -> Result<Option<TornTail>, OpenError> {
        let Some((journal, after)) = self.damaged() else { return Ok(None) };
        let lost = |journal: &JournalFile, from: usize| {
            (journal.scan.used_end.max(journal.scan.intact_end) - from) as u64
        };
        let mut tail = TornTail {
            file: journal.path.clone(),
            position: journal.scan.intact_end as u64,
            bytes: lost(journal, journal.scan.intact_end),
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
