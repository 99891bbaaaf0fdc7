//! The checkpoint's file: the [`Leftovers`] of a log up to an offset.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use relay_core::Offset;
use serde::{Deserialize, Serialize};

use super::Leftovers;

/// The leftovers of a log up to an offset. Events after it may be taken over again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) offset: Offset,
    pub(crate) leftovers: Leftovers,
}

/// The form of a checkpoint's file. A file of another version is not read.
#[derive(Serialize, Deserialize)]
struct Versioned<C> {
    version: u32,
    checkpoint: C,
}

const VERSION: u32 = 1;

/// Reads the checkpoint. `None` when there is no file, or one that cannot be read: the whole log tells the same.
pub(crate) fn load(path: &Path) -> Option<Checkpoint> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the checkpoint of sessions and locks cannot be read");
            return None;
        }
    };
    match serde_json::from_slice::<Versioned<Checkpoint>>(&content) {
        Ok(Versioned { version: VERSION, checkpoint }) => Some(checkpoint),
        Ok(Versioned { version, .. }) => {
            tracing::warn!(path = %path.display(), version, "the checkpoint of sessions and locks has another version");
            None
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the checkpoint of sessions and locks is damaged");
            None
        }
    }
}

/// Replaces the file atomically. After a crash it has the old content or the new one. Blocks on the disk.
///
/// # Errors
/// Those of the file system.
pub(crate) fn save(path: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    let content = serde_json::to_vec(&Versioned { version: VERSION, checkpoint })?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let mut file = File::create(&draft)?;
    file.write_all(&content)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}
