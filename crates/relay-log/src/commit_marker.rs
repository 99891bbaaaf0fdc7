//! The commit marker: a small file beside the engine that states how far the log was acknowledged.
//!
//! A log with a damaged end looks like one that was cut off while writing. The marker tells the two apart: the events up
//! to its offset were acknowledged and must be there.
//!
//! The file is overwritten in place after each commit, without an fsync. The death of the process cannot lose it. After a
//! loss of power it is at worst behind a synced log, never ahead of it. Opening and closing the log sync it, so that it
//! always belongs to the last run.
//!
//! The file's name is `witness`, as in the logs of earlier versions.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use relay_core::Offset;

use crate::config::LogDurability;
use crate::directory::Directory;
use crate::error::OpenError;

const MAGIC: [u8; 4] = *b"RLw1";
const BYTES: usize = 64;

/// The content of a marker file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkerContent {
    /// Every event up to this offset was acknowledged.
    pub(crate) acknowledged: Offset,
    /// True after a clean shutdown.
    pub(crate) closed: bool,
    /// The durability of the acknowledged events.
    pub(crate) durability: LogDurability,
    /// The boot of the machine during which the run took place.
    pub(crate) boot: Boot,
}

impl MarkerContent {
    /// Returns true when the machine may have gone down with acknowledged events that were not on the disk.
    pub(crate) fn may_have_lost_unsynced(&self) -> bool {
        !self.closed
            && self.durability == LogDurability::Logged
            && (self.boot != Boot::current() || self.boot == Boot::UNKNOWN)
    }

    fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = u8::from(self.closed);
        bytes[5] = u8::from(self.durability == LogDurability::Synced);
        bytes[8..16].copy_from_slice(&self.acknowledged.get().to_le_bytes());
        bytes[16..52].copy_from_slice(&self.boot.0);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; BYTES]) -> Option<Self> {
        if bytes[..4] != MAGIC || crc32fast::hash(&bytes[..60]).to_le_bytes() != bytes[60..] {
            return None;
        }
        let (mut offset, mut boot) = ([0; 8], [0; 36]);
        offset.copy_from_slice(&bytes[8..16]);
        boot.copy_from_slice(&bytes[16..52]);
        Some(Self {
            acknowledged: Offset::new(u64::from_le_bytes(offset)),
            closed: bytes[4] == 1,
            durability: if bytes[5] == 1 { LogDurability::Synced } else { LogDurability::Logged },
            boot: Boot(boot),
        })
    }
}

/// One boot of the machine, by the kernel's own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Boot([u8; 36]);

impl Boot {
    const UNKNOWN: Self = Self([0; 36]);

    /// Returns the present boot, or [`Boot::UNKNOWN`] where the kernel does not tell its id.
    pub(crate) fn current() -> Self {
        match std::fs::read("/proc/sys/kernel/random/boot_id") {
            Ok(id) => id.first_chunk().map_or(Self::UNKNOWN, |id| Self(*id)),
            Err(_) => Self::UNKNOWN,
        }
    }
}

/// The marker file that the last run left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkerFile {
    /// The file is intact.
    Valid(MarkerContent),
    /// The file exists but cannot be decoded.
    Unreadable,
    /// There is no file.
    Absent,
}

impl MarkerFile {
    pub(crate) fn content(self) -> Option<MarkerContent> {
        match self {
            Self::Valid(content) => Some(content),
            Self::Unreadable | Self::Absent => None,
        }
    }
}

/// Reads the marker file of a log's directory.
pub(crate) fn read_marker(directory: &Directory) -> Result<MarkerFile, OpenError> {
    let path = directory.marker();
    match std::fs::read(&path) {
        Ok(bytes) => {
            let content = bytes.first_chunk().and_then(MarkerContent::decode);
            Ok(content.map_or(MarkerFile::Unreadable, MarkerFile::Valid))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(MarkerFile::Absent),
        Err(error) => Err(OpenError::io("read", &path)(error)),
    }
}

/// The open marker file of this run.
pub(crate) struct CommitMarker {
    file: File,
    content: MarkerContent,
}

impl CommitMarker {
    /// Begins a run. From now on the log counts as not closed.
    pub(crate) fn begin(path: &Path, acknowledged: Offset, durability: LogDurability) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        let content = MarkerContent { acknowledged, closed: false, durability, boot: Boot::current() };
        let marker = Self { file, content };
        marker.write()?;
        marker.file.sync_all()?;
        Ok(marker)
    }

    /// States that every event up to `offset` is committed.
    pub(crate) fn acknowledge(&mut self, offset: Offset) -> io::Result<()> {
        self.content.acknowledged = offset;
        self.write()
    }

    /// Ends a run with a clean shutdown, after the log itself was synced.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.content.closed = true;
        self.write()?;
        self.file.sync_all()
    }

    fn write(&self) -> io::Result<()> {
        self.file.write_all_at(&self.content.encode(), 0)
    }
}
