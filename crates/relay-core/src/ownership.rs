//! [`Ownership`]: which server gives out the seqs of a document. One process owns all of its documents; several servers
//! agree on one owner for each.

use std::fmt;

use async_trait::async_trait;

use crate::error::ErrorCode;
use crate::id::{DocumentId, NodeId};

/// Decides which server owns a document. A channel is opened only by the document's owner.
///
/// # Contract
/// - **Exclusivity.** At most one server owns a document at a time: while it holds a [`Tenure`], the others are refused.
///   The log's head check is the fence behind it: a server that does not know yet that it was deposed cannot append.
/// - **Repetition.** A server that acquires a document which it owns already gets one more tenure. It owns the document
///   until the last of them is dropped. Other servers may notice that a moment later.
/// - **Loss.** A loss ends all tenures of the document, for good. The next `acquire` that succeeds gives a new one.
/// - **Cancellation.** `acquire` is cancel-safe: dropped before it returns, it holds nothing.
#[async_trait]
pub trait Ownership: fmt::Debug + Send + Sync + 'static {
    /// Makes this server the owner of `document`, or says who is. Returns the tenure, which lasts until it is dropped or
    /// lost. An implementation renews it by itself.
    ///
    /// # Errors
    /// See [`OwnershipError`].
    async fn acquire(&self, document: &DocumentId) -> Result<Box<dyn Tenure>, OwnershipError>;
}

/// The ownership of one document, from [`Ownership::acquire`] until it is dropped or lost.
pub trait Tenure: fmt::Debug + Send + Sync {
    /// True as long as this server owns the document. Quick, and never true again after it was false. A channel asks before
    /// it gives out a seq, and before it serves a new subscriber or a page of history.
    fn is_held(&self) -> bool;
}

/// A refusal to make this server the owner of a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OwnershipError {
    /// Another server owns the document. Ask there.
    #[error(transparent)]
    NotOwner(#[from] NotOwner),
    /// It is not known who owns the document. Try again later.
    #[error("it is not known which server owns `{document}`: {detail}; try again later")]
    Unknown {
        /// The document.
        document: DocumentId,
        /// The cause, for people.
        detail: String,
    },
}

impl OwnershipError {
    /// The kind of the refusal, for programs to decide by: [`ErrorCode::NotOwner`] for both. A client does the same in both
    /// cases, it comes back in a moment. The message tells operators which one it is.
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::NotOwner
    }
}

/// Another server owns the document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this server does not own `{document}`; come back in a moment")]
#[non_exhaustive]
pub struct NotOwner {
    /// The document.
    pub document: DocumentId,
    /// The owner, where it is known.
    pub owner: Option<NodeId>,
}

impl NotOwner {
    /// `owner` has `document`, as far as is known.
    pub const fn new(document: DocumentId, owner: Option<NodeId>) -> Self {
        Self { document, owner }
    }
}

/// The ownership of a process that is alone: it owns every document for as long as it runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoleOwner;

#[async_trait]
impl Ownership for SoleOwner {
    async fn acquire(&self, _document: &DocumentId) -> Result<Box<dyn Tenure>, OwnershipError> {
        // A value without a size: boxing it allocates nothing.
        Ok(Box::new(Self))
    }
}

impl Tenure for SoleOwner {
    fn is_held(&self) -> bool {
        true
    }
}
