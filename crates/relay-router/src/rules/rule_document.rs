//! A rule document before it is parsed: its text and its format.

use serde::{Deserialize, Serialize};

/// The rules that ship with Relay: the four services of the first installation, each by what it can do. Where no
/// service has the capability, a rule costs nothing.
const DEFAULT_RULES: &str = include_str!("default.toml");

/// The language that a rule document is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RuleFormat {
    /// TOML 1.1.
    Toml,
    /// JSON of the same shape.
    Json,
}

/// Rules as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDocument {
    /// The text.
    pub text: String,
    /// What it is written in.
    pub format: RuleFormat,
}

impl Default for RuleDocument {
    /// The rules for the four services of the examples.
    fn default() -> Self {
        Self { text: DEFAULT_RULES.to_owned(), format: RuleFormat::Toml }
    }
}
