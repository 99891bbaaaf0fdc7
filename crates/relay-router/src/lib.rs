//! Routes events to backend services by rules: in order, across crashes, and with a record of every decision.
//!
//! A [`Router`] follows an [`EventLog`](relay_core::EventLog). [Rules](rules) name the
//! [`Target`](relay_core::Target)s of each event. Each target gets a document's events in order and at least
//! once, also when the process is killed. Services [register](registry) themselves, and their [`health`] is
//! watched. The [decision log](decisions) explains where each event went.
//!
//! Rules can be tried without a router:
//!
//! ```
//! use relay_core::{DocumentId, Draft, Epoch, Payload, Seq, Timestamp};
//! use relay_router::rules::{RuleFormat, RuleSet};
//!
//! let rules = RuleSet::parse(
//!     r#"
//!     [[rules]]
//!     name = "reviews"
//!     kinds = ["x-review"]
//!     when = "event.payload.stars < 3"
//!     targets = ["capability:support"]
//!     "#,
//!     RuleFormat::Toml,
//! )?;
//! let payload = Payload::json(&serde_json::json!({"stars": 2}))?;
//! let draft = Draft::new(DocumentId::new("shop")?, relay_events::kind("x-review")?, payload);
//! let event = draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
//! let names: Vec<_> = rules.matches(&event).into_iter().map(|rule| &*rule.name).collect();
//! assert_eq!(names, ["reviews"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The README has a complete example with a router.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test ends with its tasks"))]

mod config;
pub mod decisions;
mod delivery;
mod dispatch;
pub mod health;
mod log_page;
mod loop_detection;
mod metrics;
mod monitor;
mod records;
pub mod registry;
mod router;
mod routing_table;
pub mod rules;
mod store;
#[cfg(test)]
mod suite_tests;
pub mod target;
#[cfg(test)]
mod test_support;

pub use self::config::RouterConfig;
pub use self::loop_detection::{CAUSES_KEY, CausesKey, VerifiedSink};
pub use self::metrics::{RouterStats, TargetStats};
pub use self::records::{
    Attempt, DeadLetter, DeadLetterId, DeadReason, InvalidDeadLetterId, Replay, ReplayRequest, ReplayStart,
    ReplayState,
};
pub use self::router::{
    ActiveRules, DamagedDeadLetter, DeadLetterPage, DryDecision, DryRoute, DryRun, Router, RouterError,
    RouterParts, RulesError, RulesSource, SERVICES_DOCUMENT, TargetError, TargetInfo,
};
pub use self::store::StoreError;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
