//! The topics of documents: `document:` and the document's id.

use relay_core::DocumentId;

const PREFIX: &str = "document:";

/// The topic of a document.
pub(crate) fn topic(document: &DocumentId) -> String {
    format!("{PREFIX}{document}")
}

/// The document's id in a topic, valid or not. `None` for any other topic.
pub(crate) fn document_id(topic: &str) -> Option<&str> {
    topic.strip_prefix(PREFIX)
}
