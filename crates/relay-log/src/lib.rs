//! The embedded durable log.

mod config;
mod directory;
mod embedded;
mod error;
mod heads;
mod record;
mod recovery;
mod retention;
mod shared;
mod stats;
mod store;
mod witness;
mod writer;

pub use config::{LogConfig, LogDurability};
pub use embedded::EmbeddedLog;
pub use error::OpenError;
pub use recovery::RecoveryReport;
pub use stats::LogStats;
