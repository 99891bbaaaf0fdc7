//! The files of the decision log: JSON lines in rotated files, whose names sort by the number of their first
//! record.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::record::{DecisionFilter, DecisionRecord};

const SUFFIX: &str = ".jsonl";

/// The end of a file in which its last records are looked for. One record is smaller.
const TAIL_BYTES: u64 = 64 * 1024;

/// The files that records are written to.
pub(super) struct RecordFiles {
    directory: PathBuf,
    file_bytes: u64,
    file_count: usize,
    open: Option<OpenFile>,
    /// The records that were written since the last flush.
    unflushed: u64,
}

/// The file that is being written.
struct OpenFile {
    writer: BufWriter<File>,
    bytes: u64,
    /// The bytes at the last flush.
    flushed_bytes: u64,
}

/// Records that could not be written.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) records: u64,
    pub(super) error: io::Error,
}

impl RecordFiles {
    pub(super) fn open(directory: &Path, file_bytes: u64, file_count: usize) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned(), file_bytes, file_count, open: None, unflushed: 0 })
    }

    /// The highest number among the last records; 0 without any.
    pub(super) fn last_number(&self) -> io::Result<u64> {
        let Some(newest) = names(&self.directory)?.pop() else { return Ok(0) };
        let mut file = File::open(newest)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        let records = tail.split(|byte| *byte == b'\n');
        let records = records.filter_map(|line| serde_json::from_slice::<DecisionRecord>(line).ok());
        Ok(records.map(|record| record.number).max().unwrap_or(0))
    }

    /// Adds a record. It is in the file after [`RecordFiles::flush`].
    ///
    /// # Errors
    /// [`Unwritten`]: this record, and those that were not flushed.
    pub(super) fn write(&mut self, record: &DecisionRecord) -> Result<(), Unwritten> {
        self.unflushed += 1;
        self.write_line(record).map_err(|error| self.give_up(error))
    }

    fn write_line(&mut self, record: &DecisionRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if let Some(open) = self.open.as_mut().filter(|open| open.bytes >= self.file_bytes) {
            open.writer.flush()?;
            (self.open, self.unflushed) = (None, 1);
        }
        if self.open.is_none() {
            let writer = self.create_next(record.number)?;
            self.open = Some(OpenFile { writer, bytes: 0, flushed_bytes: 0 });
        }
        if let Some(open) = &mut self.open {
            open.writer.write_all(&line)?;
            open.bytes += line.len() as u64;
        }
        Ok(())
    }

    /// Writes the records that wait in memory.
    ///
    /// # Errors
    /// As [`RecordFiles::write`].
    pub(super) fn flush(&mut self) -> Result<(), Unwritten> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if let Err(error) = open.writer.flush() {
            return Err(self.give_up(error));
        }
        (open.flushed_bytes, self.unflushed) = (open.bytes, 0);
        Ok(())
    }

    /// Gives up the records since the last flush, and cuts the file off there: the next record shall not follow half of one.
    fn give_up(&mut self, error: io::Error) -> Unwritten {
        if let Some(OpenFile { writer, flushed_bytes, .. }) = self.open.take() {
            let (file, _lost) = writer.into_parts();
            // A file that cannot be cut off is not written any more.
            if file.set_len(flushed_bytes).is_ok() {
                let writer = BufWriter::new(file);
                self.open = Some(OpenFile { writer, bytes: flushed_bytes, flushed_bytes });
            }
        }
        Unwritten { records: std::mem::take(&mut self.unflushed), error }
    }

    fn create_next(&self, number: u64) -> io::Result<BufWriter<File>> {
        let names = names(&self.directory)?;
        for oldest in names.iter().take((names.len() + 1).saturating_sub(self.file_count)) {
            fs::remove_file(oldest)?;
        }
        let path = self.directory.join(format!("{number:020}{SUFFIX}"));
        Ok(BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?))
    }
}

/// Returns the files, oldest first.
fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SUFFIX)) {
            names.push(path);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns the newest `limit` records that match and whose number is below `before`, newest first. A last
/// line that a crash tore is skipped.
pub(super) fn read(
    directory: &Path,
    filter: &DecisionFilter,
    before: u64,
    limit: usize,
) -> io::Result<Vec<DecisionRecord>> {
    let mut found = Vec::new();
    for path in names(directory)?.into_iter().rev() {
        if found.len() >= limit {
            break;
        }
        // A missing file was rotated away meanwhile.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let records = text.lines().rev().filter_map(|line| serde_json::from_str::<DecisionRecord>(line).ok());
        let matching = records.filter(|record| record.number < before && filter.matches(record));
        found.extend(matching.take(limit - found.len()));
    }
    Ok(found)
}
