//! Opening.
use relay_core::{Epoch, Offset};

use crate::config::LogConfig;
use crate::directory::Directory;
use crate::error::OpenError;
use crate::store::Store;
use crate::witness::Witness;

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// True when there was no log before.
    pub created: bool,
    /// The last offset that was given out.
    pub last_offset: Offset,
}

pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) epoch: Epoch,
    pub(crate) last_offset: Offset,
    pub(crate) witness: Witness,
    pub(crate) report: RecoveryReport,
}

pub(crate) fn open(config: &LogConfig) -> Result<Opened, OpenError> {
    let directory = Directory::new(&config.directory);
    directory.create()?;
    let lock = directory.lock()?;
    let created = !directory.exists();
    directory.claim_format()?;
    let bad = |e: String| OpenError::Damaged { directory: config.directory.clone(), file: directory.engine(), position: 0, what: e };
    let store = Store::open(&directory.engine(), config.cache_bytes, Some(lock)).map_err(|e| bad(e.to_string()))?;
    let epoch = match store.epoch().map_err(|e| bad(e.to_string()))? {
        Some(e) => e,
        None => {
            let epoch = Epoch::random();
            let mut batch = store.db.batch();
            store.put_epoch(&mut batch, epoch);
            batch.durability(Some(fjall::PersistMode::SyncAll)).commit().map_err(|e| bad(e.to_string()))?;
            epoch
        }
    };
    let last_offset = store.last_offset().map_err(|e| bad(e.to_string()))?;
    let witness = Witness::begin(&directory.witness(), last_offset, config.durability).map_err(OpenError::io("write", &directory.witness()))?;
    Ok(Opened { store, epoch, last_offset, witness, report: RecoveryReport { created, last_offset } })
}
