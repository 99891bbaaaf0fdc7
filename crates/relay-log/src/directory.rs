//! The log's directory: its lock, its format, and the paths of its parts.
//!
//! ```text
//! <directory>           locked as long as a process has the log open
//! <directory>/lock      locked like the directory, for file systems that lock no directories, and for earlier versions
//! <directory>/format    the format's name and version, written once
//! <directory>/witness   the commit marker: how far the log was acknowledged
//! <directory>/engine/   the storage engine's files
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::OpenError;

const FORMAT: &str = "relay-log 1";

/// Paths within a log's directory.
#[derive(Debug, Clone)]
pub(crate) struct Directory(PathBuf);

/// The exclusive right to use a directory. Dropping it gives the right back.
pub(crate) struct DirectoryLock(#[expect(dead_code, reason = "closing the files frees the locks")] [File; 2]);

impl Directory {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn engine(&self) -> PathBuf {
        self.0.join("engine")
    }

    pub(crate) fn marker(&self) -> PathBuf {
        self.0.join("witness")
    }

    fn format(&self) -> PathBuf {
        self.0.join("format")
    }

    /// Returns true when a log was created here.
    pub(crate) fn exists(&self) -> bool {
        self.format().exists()
    }

    /// Locks the directory, which must exist. A `lock` file that was removed frees nothing: the next one would be another file.
    pub(crate) fn lock(&self) -> Result<DirectoryLock, OpenError> {
        let in_use = || OpenError::InUse { directory: self.0.clone() };
        let directory = File::open(&self.0).map_err(OpenError::io("open", &self.0))?;
        match directory.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(error)) => {
                tracing::debug!(directory = %self.0.display(), %error, "the file system locks no directories");
            }
            Ok(()) => {}
        }
        let path = self.0.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(OpenError::io("open for writing", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(DirectoryLock([directory, file])),
            Err(TryLockError::WouldBlock) => Err(in_use()),
            Err(TryLockError::Error(source)) => Err(OpenError::Io { action: "lock", path, source }),
        }
    }

    /// Creates the directory and makes its name durable.
    pub(crate) fn create(&self) -> Result<(), OpenError> {
        fs::create_dir_all(&self.0).map_err(OpenError::io("create", &self.0))?;
        if let Some(parent) = self.0.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent).map_err(OpenError::io("sync", parent))?;
        }
        Ok(())
    }

    /// Makes the names of the directory's files durable.
    pub(crate) fn sync(&self) -> Result<(), OpenError> {
        sync_directory(&self.0).map_err(OpenError::io("sync", &self.0))
    }

    /// Writes the format's file if there is none. Refuses a directory of another format.
    pub(crate) fn claim_format(&self) -> Result<(), OpenError> {
        let path = self.format();
        match fs::read(&path) {
            Ok(found) if found == format!("{FORMAT}\n").as_bytes() => Ok(()),
            Ok(found) => Err(OpenError::Format {
                file: path,
                found: String::from_utf8_lossy(&found).trim_end().chars().take(40).collect(),
                expected: FORMAT,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.engine().exists() => {
                Err(OpenError::Format { file: path, found: "nothing".to_owned(), expected: FORMAT })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_durably(&path, format!("{FORMAT}\n").as_bytes()).map_err(OpenError::io("write", &path))
            }
            Err(source) => Err(OpenError::Io { action: "read", path, source }),
        }
    }
}

/// Writes a file so that a crash leaves it complete or absent.
fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names of a directory's files durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
