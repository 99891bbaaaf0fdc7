//! Rules: the targets of each event.
//!
//! A rule document (TOML or JSON) becomes a [`RuleSet`], which is checked as a whole, immutable, and shared
//! as an `Arc`. [`RuleSet::matches`], the hot path, returns the rules that match an event.
//! [`RuleSet::explain`] returns a verdict for every rule. Both always agree. `order` chooses among a rule's
//! targets at the time of delivery. This module does no I/O and does not know which services are registered.
//!
//! ```
//! use relay_router::rules::{RuleFormat, RuleSet};
//!
//! let rules = RuleSet::parse(
//!     r#"
//!     [[rules]]
//!     name = "english"
//!     kinds = ["document.edited"]
//!     documents = ["notes/*"]
//!     when = 'event.metadata["lang"] == "en"'
//!     targets = ["capability:quality"]
//!     "#,
//!     RuleFormat::Toml,
//! )?;
//! assert_eq!(&*rules.rules()[0].name, "english");
//!
//! let wrong = RuleSet::parse("[[rules]]\nname = 'a'\ntargets = ['b']\nwhen = 'event.knd == 1'", RuleFormat::Toml);
//! assert!(wrong.unwrap_err().to_string().starts_with("line 4, rule a: "));
//! # Ok::<(), relay_router::rules::RuleSetError>(())
//! ```

mod capability;
mod closest_match;
mod condition;
pub(crate) mod duration_text;
mod index;
mod parse;
mod probe_spec;
mod problems;
mod rule;
mod rule_document;
mod rule_set;
mod strategy;
mod target_spec;
mod tree;

pub use self::capability::{Capability, InvalidCapability};
pub use self::condition::Condition;
pub use self::probe_spec::{ProbeCheck, ProbeSpec};
pub use self::problems::{RuleProblem, RuleSetError};
pub use self::rule::{Pattern, Rule, TargetRef};
pub use self::rule_document::{RuleDocument, RuleFormat};
pub use self::rule_set::{Matches, RuleSet, RuleVerdict, VerdictReason};
pub use self::strategy::Strategy;
pub(crate) use self::strategy::{Candidate, order};
pub use self::target_spec::{
    BreakerConfig, DeliveryFormat, DeliveryOrder, RetryPolicy, RetryStatuses, TargetPolicy, TargetSpec,
};
