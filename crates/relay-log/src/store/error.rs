//! Failures of reading from the store.

use relay_core::{DocumentId, LogError, Seq};

/// The reason why something could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Corrupt(String),
    #[error(transparent)]
    Engine(#[from] fjall::Error),
    #[error("document `{document}` is kept from seq {first} on")]
    Trimmed { document: DocumentId, first: Seq },
}

impl ReadError {
    /// Converts to the log's error. An engine error that shows damage becomes [`LogError::Corrupt`]; any other engine
    /// error is a failure of the disk and goes to `fail`.
    pub(crate) fn into_log_error(self, fail: impl FnOnce(fjall::Error) -> LogError) -> LogError {
        match self {
            Self::Corrupt(detail) => LogError::Corrupt { detail },
            Self::Trimmed { document, first } => LogError::Trimmed { document, first },
            Self::Engine(error) if is_damage(&error) => LogError::Corrupt { detail: error.to_string() },
            Self::Engine(error) => fail(error),
        }
    }
}

/// Returns true when the engine read its files and their content was wrong.
pub(crate) fn is_damage(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData)
        }
        fjall::Error::Poisoned => false,
        _ => true,
    }
}

/// Returns the answer of the operating system, if it is the cause of the error.
pub(crate) fn into_io_error(error: fjall::Error) -> std::io::Error {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error,
        other => std::io::Error::other(other),
    }
}

/// Returns the error for an event that is not in the store and was not trimmed.
pub(crate) fn missing_event(id: &DocumentId, seq: Seq) -> ReadError {
    ReadError::Corrupt(format!("event {seq} of document `{id}` is missing, though it was never dropped"))
}
