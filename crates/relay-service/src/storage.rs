//! [`Storage`]: the place where a service keeps its events, and its fencing tokens with them.

use std::fmt;
use std::sync::Arc;

use relay_core::{Clock, EventLog, TokenSource};
use relay_log::{EmbeddedLog, LogConfig, OpenError, RecoveryReport};
use relay_presence::{FileTokens, MemoryTokens, TokenFileError};

/// The file of the fencing tokens in the log's directory.
const TOKENS: &str = "fencing-tokens";

/// The place where events are kept.
#[derive(Clone)]
#[non_exhaustive]
pub enum Storage {
    /// In memory: the events are gone when the service stops.
    Memory,
    /// In a log on disk, in a directory that one service uses at a time.
    Embedded(LogConfig),
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::Embedded(config) => f.debug_tuple("Embedded").field(config).finish(),
        }
    }
}

/// The error of storage that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The fencing tokens of locks cannot be kept.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// Opening the log panicked.
    #[error("opening the log ended by a bug: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Storage that is open.
pub(crate) struct OpenStorage {
    /// `None` where histories are in memory.
    pub(crate) log: Option<Arc<dyn EventLog>>,
    pub(crate) tokens: Arc<dyn TokenSource>,
    /// The report of an embedded log.
    pub(crate) recovery: Option<RecoveryReport>,
}

impl Storage {
    pub(crate) async fn open(self, clock: &Arc<dyn Clock>) -> Result<OpenStorage, StorageError> {
        match self {
            Self::Memory => {
                let tokens = Arc::new(MemoryTokens::new(&**clock));
                Ok(OpenStorage { log: None, tokens, recovery: None })
            }
            Self::Embedded(config) => open_embedded(config, Arc::clone(clock)).await,
        }
    }
}

/// Opens the log, and beside it, in the directory that the log has locked, the file of the fencing tokens.
async fn open_embedded(config: LogConfig, clock: Arc<dyn Clock>) -> Result<OpenStorage, StorageError> {
    let opening = tokio::task::spawn_blocking(move || {
        let tokens = config.directory.join(TOKENS);
        let (log, recovery) = EmbeddedLog::open(config, Arc::clone(&clock))?;
        let tokens = FileTokens::open(tokens, &*clock)?;
        Ok(OpenStorage { log: Some(Arc::new(log)), tokens: Arc::new(tokens), recovery: Some(recovery) })
    });
    opening.await.map_err(StorageError::Panicked)?
}
