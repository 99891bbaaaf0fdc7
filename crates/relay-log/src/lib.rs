//! The embedded durable log: the events of all documents in one directory, committed in groups, and recovered after any
//! crash.
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
//! // The log's head gives the epoch and the next seq; the log refuses an event that does not follow it.
//! let head = log.head(&notes).await?;
//! let draft = Draft::new(notes.clone(), relay_events::kind("x-note")?, Payload::json(&"hello")?);
//! let event = draft.into_event(head.epoch, Some(head.last.next()), Timestamp::from_micros(0));
//! log.append(&notes, &[event]).await?; // returns once it is on the disk
//!
//! let kept = log.read_document(&notes, Seq::ZERO, ReadLimit::default()).await?;
//! assert_eq!(kept[0].seq, Some(Seq::FIRST));
//! log.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The [`RecoveryReport`] tells the findings of opening. A damaged log is refused with an [`OpenError`]; [`check`],
//! [`export`] and [`repair`] report and save its readable events.

mod commit_marker;
mod config;
mod directory;
mod embedded;
mod error;
mod journal;
mod journal_files;
mod maintenance;
mod record;
mod recovery;
mod rescue;
mod stats;
mod status;
mod store;
mod writer;

pub use config::{LogConfig, LogDurability, LoggedRetention};
pub use embedded::EmbeddedLog;
pub use error::OpenError;
pub use journal_files::TornTail;
pub use maintenance::{CheckReport, ExportReport, RepairReport, check, export, repair};
pub use recovery::RecoveryReport;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
