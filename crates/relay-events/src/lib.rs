//! The vocabulary of Relay: the kinds of events with their [typed payloads](Body), and the encodings of events: the
//! [JSON envelope](json), the [binary record](binary) of the log, and [CloudEvents](cloudevents).
//!
//! ```
//! use relay_core::{DocumentId, Draft, Epoch, Seq, Timestamp};
//! use relay_events::{Body, DocumentEdited, Patch, TypedPayload, json};
//!
//! let edit = DocumentEdited::Patches {
//!     patches: vec![Patch { position: 0, deleted: 0, inserted: "h".into() }],
//!     base: None,
//! };
//! let draft = Draft::new(DocumentId::new("notes")?, DocumentEdited::KIND, edit.to_payload()?);
//! let event = draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::from_micros(0));
//!
//! let received = json::decode(&json::encode(&event))?;
//! assert_eq!(received, event);
//! assert_eq!(Body::of(&received)?, Body::DocumentEdited(edit));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod binary;
pub mod cloudevents;
mod error_body;
mod join_reply;
pub mod json;
mod read_json;
mod vocabulary;
mod written;

pub use error_body::ErrorBody;
pub use join_reply::JoinReply;
pub use vocabulary::*;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
