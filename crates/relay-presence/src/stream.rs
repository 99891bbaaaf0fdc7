//! [`LocalPresenceStream`]: a reader of a document's presence. It holds a position and nothing else.

use std::sync::Arc;
use std::task::{Context, Poll};

use relay_core::{DocumentId, PresenceChange, PresenceStream};

use crate::documents::Documents;
use crate::flushing::ReaderId;
use crate::version::Version;

/// A reader of the presence of one document of this server.
pub(crate) struct LocalPresenceStream {
    documents: Arc<Documents>,
    document: DocumentId,
    /// The version that was read last; `None` before the snapshot.
    position: Option<Version>,
    reader: ReaderId,
}

impl LocalPresenceStream {
    /// A reader that begins with the snapshot of `document`.
    pub(crate) fn new(documents: Arc<Documents>, document: DocumentId) -> Self {
        Self { reader: documents.next_reader(), documents, document, position: None }
    }
}

impl PresenceStream for LocalPresenceStream {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>> {
        let (position, reader) = (self.position, self.reader);
        let read = self
            .documents
            .with_document(&self.document, |document| document.read(position, reader, cx.waker()));
        // A document without participants does not exist, and has no change to give. Its reader is about to leave.
        let Some(Some((change, position))) = read else { return Poll::Pending };
        self.position = Some(position);
        self.documents.counters().count_change(&change);
        Poll::Ready(Some(change))
    }

    fn position(&self) -> u64 {
        self.position.unwrap_or_default()
    }

    fn fork(&self) -> Box<dyn PresenceStream> {
        Box::new(Self {
            documents: Arc::clone(&self.documents),
            document: self.document.clone(),
            position: self.position,
            reader: self.documents.next_reader(),
        })
    }
}

impl Drop for LocalPresenceStream {
    fn drop(&mut self) {
        self.documents.with_document(&self.document, |document| document.remove_reader(self.reader));
    }
}
