//! The witness: a small file beside the engine that says how far the log was acknowledged.
//!
//! A log whose end is damaged looks like one that was cut off while writing. The witness tells the two apart: what it
//! names was acknowledged and must be there. It is overwritten in place after each commit, without an fsync: the
//! death of the process cannot lose it, and after a loss of power it is at worst behind, never ahead of a synced log.
//! When a log is opened and when it is closed it is synced, so that it always tells of which run it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use relay_core::Offset;

use crate::config::LogDurability;

const MAGIC: [u8; 4] = *b"RLw1";
const BYTES: usize = 64;

/// What the last run said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkerContent {
    /// Everything up to here was acknowledged.
    pub(crate) acknowledged: Offset,
    /// The log was closed in order.
    pub(crate) closed: bool,
    /// What acknowledged meant.
    pub(crate) durability: LogDurability,
    /// Which boot of the machine it was.
    pub(crate) boot: Boot,
}

impl MarkerContent {
    /// True when the machine may have gone down with acknowledged events that were not on the disk.
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

    /// The present one; unknown where the kernel does not say.
    pub(crate) fn current() -> Self {
        let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.first_chunk().map_or(Self::UNKNOWN, |id| Self(*id))
    }
}

/// What became of the witness of the last run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkerFile {
    /// It says this.
    Valid(MarkerContent),
    /// It is there but unreadable.
    Unreadable,
    /// There is none.
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

/// Reads the witness in `path`.
pub(crate) fn read_marker(path: &Path) -> io::Result<MarkerFile> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes
            .first_chunk()
            .and_then(MarkerContent::decode)
            .map_or(MarkerFile::Unreadable, MarkerFile::Valid)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(MarkerFile::Absent),
        Err(error) => Err(error),
    }
}

/// The witness of this run.
pub(crate) struct CommitMarker {
    file: File,
    content: MarkerContent,
}

impl CommitMarker {
    /// Begins a run: from now on the log counts as not closed.
    pub(crate) fn begin(path: &Path, acknowledged: Offset, durability: LogDurability) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        let content = MarkerContent { acknowledged, closed: false, durability, boot: Boot::current() };
        let marker = Self { file, content };
        marker.write()?;
        marker.file.sync_all()?;
        Ok(marker)
    }

    /// Everything up to `offset` is committed.
    pub(crate) fn acknowledge(&mut self, offset: Offset) -> io::Result<()> {
        self.content.acknowledged = offset;
        self.write()
    }

    /// Ends a run in order, after the log itself was synced.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.content.closed = true;
        self.write()?;
        self.file.sync_all()
    }

    fn write(&self) -> io::Result<()> {
        self.file.write_all_at(&self.content.encode(), 0)
    }
}
