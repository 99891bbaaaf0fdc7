//! Why a log cannot be opened or looked at. What can happen to an open log is [`relay_core::LogError`].

use std::io;
use std::path::{Path, PathBuf};

use relay_core::Offset;

/// Why a log did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A value of [`LogConfig`](crate::LogConfig) is out of range.
    #[error("log configuration: `{field}` {rule}")]
    Config {
        /// The field.
        field: &'static str,
        /// What must hold for it.
        rule: &'static str,
    },
    /// Another process, or this one, has it open.
    #[error("the log in `{}` is open already; stop the process that has it open, or use another directory", directory.display())]
    InUse {
        /// The log's directory.
        directory: PathBuf,
    },
    /// There is no log.
    #[error("there is no log in `{}`", directory.display())]
    Missing {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory was written by a version of Relay that this one does not know, or not by Relay at all.
    #[error("`{}` says `{found}`; this version reads `{expected}`: use the version of Relay that wrote it", file.display())]
    Format {
        /// The file that names the format.
        file: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}; check that the directory exists, that its disk has room, and that this user may write there", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// Events that may have been acknowledged are damaged or gone. Nothing that was acknowledged was changed.
    #[error(
        "the log in `{}` is damaged in `{}` at byte {position}: {what}. Refusing it changed nothing that was acknowledged. \
         `relay log check {}` shows what can be saved, `relay log export` writes that out, `relay log repair` makes a log of it",
        directory.display(), file.display(), directory.display()
    )]
    Damaged {
        /// The log's directory.
        directory: PathBuf,
        /// The damaged file.
        file: PathBuf,
        /// The first byte that is wrong, as far as that is known.
        position: u64,
        /// What was found.
        what: String,
    },
    /// Events that were acknowledged are gone, and no file shows where.
    #[error(
        "the log in `{}` ends at offset {last}, though events up to offset {acknowledged} were acknowledged. \
         `relay log check {}` shows what is there, `relay log repair` makes a log of it",
        directory.display(), directory.display()
    )]
    Lost {
        /// The log's directory.
        directory: PathBuf,
        /// The last offset that is there.
        last: Offset,
        /// The last offset that was acknowledged.
        acknowledged: Offset,
    },
}

impl OpenError {
    /// For `map_err`: the operating system refused to do `action` with `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
