//! The embedded durable log: every document's events in one directory, committed in groups, found whole again after
//! any crash.
//!
//! ```
//! use std::sync::Arc;
//! use relay_core::{DocumentId, Draft, EventLog, Payload, ReadLimit, Seq, SystemClock, Timestamp};
//! use relay_log::{EmbeddedLog, LogConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let directory = scratch.path().join("log");
//! let notes = DocumentId::new("notes")?;
//! let (log, report) = EmbeddedLog::open(LogConfig::new(&directory), Arc::new(SystemClock::new()))?;
//! assert!(report.created);
//!
//! // The next seq and the epoch are the log's to say; it refuses what does not follow.
//! let head = log.head(&notes).await?;
//! let draft = Draft::new(notes.clone(), relay_events::kind("x-note")?, Payload::json(&"hello")?);
//! let event = draft.into_event(head.epoch, Some(head.last.next()), Timestamp::from_micros(0));
//! log.append(&notes, &[event]).await?; // on the disk when this returns
//!
//! let kept = log.read_document(&notes, Seq::ZERO, ReadLimit::default()).await?;
//! assert_eq!(kept[0].seq, Some(Seq::FIRST));
//! log.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! What opening found and did is in the [`RecoveryReport`]; a log that is damaged is refused with [`OpenError`], and
//! [`check`], [`export`] and [`repair`] show and save what is left.

mod commit_marker;
mod config;
mod directory;
mod embedded;
mod error;
mod head_cache;
mod journal;
mod maintenance;
mod record;
mod recovery;
mod rescue;
mod retention;
mod stats;
mod status;
mod store;
mod writer;

pub use config::{LogConfig, LogDurability};
pub use embedded::EmbeddedLog;
pub use error::OpenError;
pub use maintenance::{CheckReport, ExportReport, RepairReport, check, export, repair};
pub use recovery::{RecoveryReport, TornTail};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
