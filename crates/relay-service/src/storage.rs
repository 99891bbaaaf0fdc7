//! [`Storage`]: the storage of the events of a service, and of its fencing tokens with them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use relay_core::{Clock, EventLog, Offset, TokenSource};
use relay_log::{EmbeddedLog, LogConfig, OpenError, RecoveryReport};
use relay_presence::{FileTokens, MemoryTokens, TokenFileError};
use relay_tasks::{Supervisor, call_blocking};

/// The file of the fencing tokens in the log's directory.
const TOKENS: &str = "fencing-tokens";

/// The file in the log's directory that tells which sessions and locks are open.
const CHECKPOINT: &str = "open-sessions";

/// The storage of events.
#[derive(Clone)]
#[non_exhaustive]
pub enum Storage {
    /// In memory: the events are gone when the service stops.
    Memory,
    /// In a log on disk, in a directory that one service uses at a time.
    Embedded(LogConfig),
    /// In a log of the caller's own.
    ///
    /// The service appends to the log, reads and trims it by the contract of [`EventLog`], and closes it when it stops.
    /// Nothing else may append to it meanwhile. Three things are the log owner's to provide:
    ///
    /// - Retention. The log drops old events by itself; `retention` of [`BusConfig`](relay_bus::BusConfig) is for histories
    ///   in memory. What is still in the log can be replayed.
    /// - Size. The log takes events of at least `max_payload_bytes` of [`BusConfig`](relay_bus::BusConfig), and 64 KiB for
    ///   the rest of the event. A smaller limit refuses publishers, with
    ///   [`LogError::TooLarge`](relay_core::LogError::TooLarge).
    /// - Tokens, which must keep growing for as long as the log lives.
    Custom {
        /// The log, open.
        log: Arc<dyn EventLog>,
        /// The source of fencing tokens. A data store behind a lock refuses a token that is smaller than the last, so a
        /// source that restarts lower than the last one ended makes every new lock useless. [`FileTokens`] beside the log
        /// holds whatever the clock does; [`MemoryTokens`] are enough where the wall clock never goes back.
        tokens: Arc<dyn TokenSource>,
        /// The file in which the service keeps which sessions and locks are open, for one log alone. With it the next service
        /// ends what a killed one left open, before it serves anybody. Where the file is missing, that one reads the whole log.
        /// `None`: they stay open in the log.
        open_sessions: Option<PathBuf>,
    },
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::Embedded(config) => f.debug_tuple("Embedded").field(config).finish(),
            Self::Custom { tokens, open_sessions, .. } => f
                .debug_struct("Custom")
                .field("tokens", tokens)
                .field("open_sessions", open_sessions)
                .finish_non_exhaustive(),
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
    /// The file of open sessions and locks, if there is one.
    pub(crate) checkpoint: Option<PathBuf>,
}

impl Storage {
    /// Opens the storage. A log that is routed keeps all it has until the router says what it needs.
    pub(crate) async fn open(
        self,
        clock: &Arc<dyn Clock>,
        supervisor: &Supervisor,
        is_routed: bool,
    ) -> Result<OpenStorage, StorageError> {
        match self {
            Self::Memory => {
                let tokens = Arc::new(MemoryTokens::new(&**clock));
                Ok(OpenStorage { log: None, tokens, recovery: None, checkpoint: None })
            }
            Self::Custom { log, tokens, open_sessions } => {
                Ok(OpenStorage { log: Some(log), tokens, recovery: None, checkpoint: open_sessions })
            }
            Self::Embedded(mut config) => {
                if is_routed {
                    config.initial_hold = Some(Offset::ZERO);
                }
                open_embedded(config, Arc::clone(clock), supervisor.clone()).await
            }
        }
    }
}

/// Opens the log, and beside it, in the directory that the log has locked, the file of the fencing tokens.
async fn open_embedded(
    config: LogConfig,
    clock: Arc<dyn Clock>,
    supervisor: Supervisor,
) -> Result<OpenStorage, StorageError> {
    let opening = call_blocking(move || {
        let tokens = config.directory.join(TOKENS);
        let checkpoint = Some(config.directory.join(CHECKPOINT));
        let (log, recovery) = EmbeddedLog::open_supervised(config, Arc::clone(&clock), &supervisor)?;
        let tokens = FileTokens::open(tokens, &*clock)?;
        let (log, tokens): (_, Arc<dyn TokenSource>) = (Arc::new(log), Arc::new(tokens));
        Ok(OpenStorage { log: Some(log), tokens, recovery: Some(recovery), checkpoint })
    });
    opening.await.map_err(StorageError::Panicked)?
}
