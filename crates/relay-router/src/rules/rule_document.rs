//! A rule document before it is parsed: its text and its format.

use serde::{Deserialize, Serialize};

/// The rules that ship with Relay: for the four services of its examples, each found by its capability. A
/// rule costs nothing while no service has the capability.
const DEFAULT_RULES: &str = include_str!("default.toml");

/// The language of a rule document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RuleFormat {
    /// TOML 1.1.
    Toml,
    /// JSON of the same shape.
    Json,
}

/// A rule document as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDocument {
    /// The text.
    pub text: String,
    /// The language of the text.
    pub format: RuleFormat,
}

impl Default for RuleDocument {
    /// The rules for the four services of the examples.
    fn default() -> Self {
        Self { text: DEFAULT_RULES.to_owned(), format: RuleFormat::Toml }
    }
}
