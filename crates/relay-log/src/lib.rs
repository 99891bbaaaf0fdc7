//! The embedded durable log.

mod config;
mod directory;
mod embedded;
mod error;
mod heads;
mod inspect;
mod journal;
mod record;
mod recovery;
mod retention;
mod salvage;
mod shared;
mod stats;
mod store;
mod witness;
mod writer;

pub use config::{LogConfig, LogDurability};
pub use embedded::EmbeddedLog;
pub use error::OpenError;
pub use inspect::{CheckReport, ExportReport, RepairReport, check, export, repair};
pub use recovery::{Cut, RecoveryReport};
pub use stats::LogStats;
