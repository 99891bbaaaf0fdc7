//! Excerpts of text that came from outside, for messages that quote it.

/// Returns the first characters of `text`.
pub(crate) fn excerpt(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}
