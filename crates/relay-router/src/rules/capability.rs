//! Capabilities: words by which rules select services instead of by name.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// A capability of a service, for instance `tags`: text of 1 to 64 bytes without control characters.
///
/// ```
/// use relay_router::rules::Capability;
///
/// assert_eq!(Capability::new("tags")?.as_str(), "tags");
/// assert!(Capability::new("").is_err());
/// # Ok::<(), relay_router::rules::InvalidCapability>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Capability(Arc<str>);

/// A text that is not a valid capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("capability `{text}` is refused; it must have 1 to {max} bytes and no control characters", max = Capability::MAX_BYTES)]
#[non_exhaustive]
pub struct InvalidCapability {
    /// The text, cut to its first characters.
    pub text: String,
}

impl Capability {
    /// The most bytes of a capability.
    pub const MAX_BYTES: usize = 64;

    /// Checks `text` and makes a capability of it.
    ///
    /// # Errors
    /// [`InvalidCapability`], if it is empty, too long, or has control characters.
    pub fn new(text: &str) -> Result<Self, InvalidCapability> {
        if text.is_empty() || text.len() > Self::MAX_BYTES || text.chars().any(char::is_control) {
            return Err(InvalidCapability { text: text.escape_debug().take(Self::MAX_BYTES).collect() });
        }
        Ok(Self(text.into()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}
