//! Errors of opening, checking and repairing a log. The errors of an open log are [`relay_core::LogError`].

use std::io;
use std::path::{Path, PathBuf};

use relay_core::{ConfigError, Offset};

/// The reason why a log did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A field of [`LogConfig`](crate::LogConfig) is out of its bounds.
    #[error("log configuration: {0}")]
    Config(#[from] ConfigError),
    /// The log is open in another process, or in this one.
    #[error("the log in `{}` is open already; stop the process that has it open, or use another directory", directory.display())]
    InUse {
        /// The log's directory.
        directory: PathBuf,
    },
    /// There is no log in the directory.
    #[error("there is no log in `{}`", directory.display())]
    Missing {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory has a format of another version of Relay, or was not written by Relay.
    #[error("`{}` names the format `{found}`; this version reads `{expected}`: use the version of Relay that wrote it", file.display())]
    Format {
        /// The file that names the format.
        file: PathBuf,
        /// The format that it names.
        found: String,
        /// The format that this version reads.
        expected: &'static str,
    },
    /// The operating system refused an access to a file or directory.
    #[error("cannot {action} `{}`: {source}; check that the directory exists, that its disk has space, and that this user may write there", path.display())]
    Io {
        /// The refused action.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// Events that may have been acknowledged are damaged or gone. The attempt to open changed no acknowledged event.
    #[error(
        "the log in `{}` is damaged in `{}` at byte {position}: {what}. The server has changed nothing. \
         `relay log check {}` reports the readable events, `relay log export` writes them out, \
         `relay log repair` makes a new log of them",
        directory.display(), file.display(), directory.display()
    )]
    Damaged {
        /// The log's directory.
        directory: PathBuf,
        /// The damaged file.
        file: PathBuf,
        /// The first wrong byte, or 0 when it is unknown.
        position: u64,
        /// The finding.
        what: String,
    },
    /// Acknowledged events are gone, and no file shows their location.
    #[error(
        "the log in `{}` ends at offset {last}, though events up to offset {acknowledged} were acknowledged. \
         `relay log check {}` reports the readable events, `relay log repair` makes a new log of them",
        directory.display(), directory.display()
    )]
    Lost {
        /// The log's directory.
        directory: PathBuf,
        /// The last offset in the log.
        last: Offset,
        /// The last offset that was acknowledged.
        acknowledged: Offset,
    },
}

impl OpenError {
    /// Returns a function for `map_err` that adds the action and the path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
