//! The two sources of fencing tokens of one server: [`FileTokens`] survive restarts, and [`MemoryTokens`] rely on the clock.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use relay_core::{Clock, FencingToken, TokenError, TokenSource};

/// The file of the fencing tokens cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFileError {
    /// The file cannot be read or written.
    #[error("cannot {action} the fencing tokens' file {}: {source}; make sure that it can be read and written", path.display())]
    Io {
        /// The step that failed, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// The file does not have the form that this program writes.
    #[error(
        "the fencing tokens' file {} is damaged: it holds `{found}`; restore it from a backup, or move it away: a new one \
         begins at the wall clock's microseconds, which is above all tokens so far if the clock is right", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The start of the file's text.
        found: String,
    },
    /// The thread that writes the file is gone: the runtime is stopping.
    #[error("the runtime is stopping: the fencing tokens' file {} was not written", path.display())]
    Stopping {
        /// The file.
        path: PathBuf,
    },
}

/// Tokens for a server without a log. They begin at the wall clock's microseconds. So they grow over restarts, as long as the
/// clock does and fewer than a million locks are granted in a second.
#[derive(Debug)]
pub struct MemoryTokens {
    next: AtomicU64,
}

impl MemoryTokens {
    /// Tokens that begin at the present time.
    pub fn new(clock: &dyn Clock) -> Self {
        Self { next: AtomicU64::new(wall_micros(clock)) }
    }
}

#[async_trait]
impl TokenSource for MemoryTokens {
    async fn reserve(&self) -> Result<(), TokenError> {
        Ok(())
    }

    fn issue(&self) -> FencingToken {
        FencingToken::new(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Tokens that grow whatever the clock does. A file names the number below which tokens may have been given out.
///
/// Numbers are reserved in blocks. The file is written, atomically and durably, before the first number of a block can be
/// issued. After a restart the numbers go on after the last block, so a crash loses only numbers that were never issued. One
/// reservation in each block waits for the disk, on a thread for blocking work.
///
/// Only one process at a time may use a file. This type does not check it: keep the file in a directory that is locked.
#[derive(Debug)]
pub struct FileTokens {
    file: Arc<BlockFile>,
    /// The next number to be issued.
    next: AtomicU64,
    /// The smallest number that is not reserved. Never below `next`.
    unreserved: AtomicU64,
    /// Held by the one reservation that waits for the disk. The others wait for it without a thread of their own.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct BlockFile {
    path: PathBuf,
    block: u64,
    /// The number in the file; all smaller numbers may be issued. Locked while the file is written, so that a write whose
    /// reservation was dropped ends before the next one begins.
    limit: Mutex<u64>,
    /// A copy of `limit` that is read without waiting for a write.
    known_limit: AtomicU64,
}

impl FileTokens {
    /// The number of tokens in a block.
    pub const BLOCK: u64 = 1_000;

    /// Opens the file, or creates it. A new file begins at the wall clock's microseconds, which is above the tokens of
    /// [`MemoryTokens`] and of a file that was lost. A first block is reserved, so that a file that cannot be written is
    /// noticed now.
    ///
    /// Blocks on the disk, so it is not for an asynchronous task.
    ///
    /// # Errors
    /// [`TokenFileError::Io`] and [`TokenFileError::Damaged`].
    pub fn open(path: impl Into<PathBuf>, clock: &dyn Clock) -> Result<Self, TokenFileError> {
        let path = path.into();
        let start = match fs::read(&path) {
            Ok(content) => parse(&content)
                .ok_or_else(|| TokenFileError::Damaged { path: path.clone(), found: excerpt(&content) })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => wall_micros(clock),
            Err(source) => return Err(TokenFileError::Io { action: "read", path, source: Arc::new(source) }),
        };
        let file = Arc::new(BlockFile {
            path,
            block: Self::BLOCK,
            limit: Mutex::new(start),
            known_limit: AtomicU64::new(start),
        });
        file.extend_beyond(start)?;
        Ok(Self {
            file,
            next: AtomicU64::new(start),
            unreserved: AtomicU64::new(start),
            writing: tokio::sync::Mutex::new(()),
        })
    }
}

#[async_trait]
impl TokenSource for FileTokens {
    async fn reserve(&self) -> Result<(), TokenError> {
        // The n-th reservation is for the n-th number, whichever request the number is issued to.
        let number = self.unreserved.fetch_add(1, Ordering::SeqCst);
        if number < self.file.known_limit.load(Ordering::SeqCst) {
            return Ok(());
        }
        let _turn = self.writing.lock().await;
        if number < self.file.known_limit.load(Ordering::SeqCst) {
            return Ok(());
        }
        let file = Arc::clone(&self.file);
        let written = relay_tasks::call_blocking(move || file.extend_beyond(number)).await;
        let written =
            written.unwrap_or_else(|_| Err(TokenFileError::Stopping { path: self.file.path.clone() }));
        written.map_err(TokenError::new)
    }

    fn issue(&self) -> FencingToken {
        FencingToken::new(self.next.fetch_add(1, Ordering::SeqCst))
    }
}

impl BlockFile {
    /// Extends the limit beyond `number`, which may be issued when this returns without an error. Blocks on the disk.
    fn extend_beyond(&self, number: u64) -> Result<(), TokenFileError> {
        let mut limit = self.limit.lock();
        if number < *limit {
            return Ok(());
        }
        let extended = number + self.block;
        self.write(extended)?;
        *limit = extended;
        self.known_limit.store(extended, Ordering::SeqCst);
        Ok(())
    }

    /// Replaces the file atomically. After a crash it has the old number or the new one.
    fn write(&self, limit: u64) -> Result<(), TokenFileError> {
        let failed = |action| {
            move |source| TokenFileError::Io { action, path: self.path.clone(), source: Arc::new(source) }
        };
        let mut draft_name = self.path.as_os_str().to_owned();
        draft_name.push(".new");
        let draft = PathBuf::from(draft_name);
        let mut file = File::create(&draft).map_err(failed("create the draft of"))?;
        file.write_all(format(limit).as_bytes()).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        fs::rename(&draft, &self.path).map_err(failed("replace"))?;
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync the directory of"))
    }
}

/// The largest number that every client reads exactly from JSON: JavaScript's `Number.MAX_SAFE_INTEGER`.
const MAX_NUMBER: u64 = (1 << 53) - 1;

/// The file's text: the number in two notations, so that damage is noticed.
fn format(limit: u64) -> String {
    format!("relay fencing tokens: reserved below {limit} ({limit:#x})\n")
}

fn parse(content: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(content).ok()?;
    let number = text.strip_prefix("relay fencing tokens: reserved below ")?.split(' ').next()?;
    let limit = number.parse().ok().filter(|limit| *limit <= MAX_NUMBER)?;
    (format(limit) == text).then_some(limit)
}

fn excerpt(content: &[u8]) -> String {
    String::from_utf8_lossy(content).chars().take(64).collect::<String>().escape_debug().to_string()
}

fn wall_micros(clock: &dyn Clock) -> u64 {
    clock.wall().as_micros().unsigned_abs()
}
