//! Ordered channels for documents: every sequenced event gets its place in its document's order, is kept as configured,
//! and reaches every subscriber once and in order. A subscriber that was away gets the events it missed, then live ones without a
//! gap or a duplicate.
//!
//! ```
//! use std::sync::Arc;
//! use relay_bus::{Bus, BusConfig, Filter, LagPolicy};
//! use relay_core::{DocumentId, Draft, Payload, Seq, StartPosition, SystemClock};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = Bus::new(BusConfig::default(), None, Arc::new(SystemClock::new()))?;
//! let notes = DocumentId::new("notes")?;
//! let kind = relay_events::kind("x-note")?;
//!
//! for text in ["one", "two"] {
//!     bus.publish(relay_events::check(Draft::new(notes.clone(), kind.clone(), Payload::json(&text)?))?).await?;
//! }
//! // A subscriber that has seen event 1 gets 2, and then what happens next.
//! let start = StartPosition::After { epoch: None, seq: Seq::new(1) };
//! let (ack, mut events) = bus.subscribe(&notes, start, Filter::all(), LagPolicy::Refill).await?;
//! assert_eq!(ack.head.last, Seq::new(2));
//! bus.publish(relay_events::check(Draft::new(notes.clone(), kind, Payload::json(&"three")?))?).await?;
//!
//! let mut seqs = Vec::new();
//! while seqs.len() < 2 {
//!     let event = events.next().await.ok_or("the bus stopped")??;
//!     seqs.extend(event.seq.map(Seq::get));
//! }
//! assert_eq!(seqs, [2, 3]);
//! # Ok(())
//! # }
//! ```
//!
//! One document: [`Bus::subscribe`]. Many at once: [`Bus::subscribe_all`]. Code that is called for events:
//! [`Bus::handle`] and [`Bus::handle_blocking`].

mod bus;
mod channel;
mod channel_map;
mod config;
mod context;
mod counters;
mod duplicate;
mod ephemeral;
mod event_cache;
mod filter;
mod handlers;
mod history;
mod idle_queue;
mod kind_counters;
mod mailbox;
mod multi_subscription;
mod recent_ids;
mod stages;
mod subscription;
mod waker_set;

pub use bus::{Bus, BusParts, ShutdownOutcome};
pub use config::BusConfig;
pub use counters::BusStats;
pub use filter::Filter;
pub use handlers::{BlockingHandler, EventHandler, HandlerError};
pub use mailbox::{FullPolicy, MailboxConfig};
pub use multi_subscription::{MultiSubscription, Received};
pub use subscription::{LagPolicy, Subscription};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
