//! Excerpts of text from clients, for messages that quote it.

/// Returns the first `max_chars` characters of `text`.
pub(crate) fn excerpt(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}
