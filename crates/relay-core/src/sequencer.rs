//! [`Sequencer`]: a stage inside the critical section in which a document's events get their places.

use std::fmt;

use crate::checked::CheckedDraft;
use crate::id::DocumentId;
use crate::position::{Epoch, Seq};
use crate::pubsub::PublishError;

/// The place that an event gets in its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The incarnation of the document's history.
    pub epoch: Epoch,
    /// The event's seq.
    pub seq: Seq,
}

impl Place {
    /// The place `seq` in `epoch`.
    pub const fn new(epoch: Epoch, seq: Seq) -> Self {
        Self { epoch, seq }
    }
}

/// A stage through which every sequenced draft passes at the moment at which it gets its place: locks refuse it, conflict
/// resolution rewrites it. A channel has a list of stages; each sees the draft as the stages before it left it.
///
/// # Contract
/// - **Order.** All calls for one document come from inside its critical section, one after the other. First
///   [`check`](Self::check) is called on each stage in turn. When none refuses, [`placed`](Self::placed) is called on each
///   stage in turn, before any later draft is checked. A draft that a stage refuses gets no place, and the next draft is
///   offered the same one.
/// - **Rewriting.** A stage replaces the payload and nothing else, by [`CheckedDraft::rewrite`].
/// - **Duplicates.** A draft that was published before is answered without passing the stages. It is recognised by its id,
///   kind, actor, and payload as its publisher sent it. Once the document was closed and opened again, only its stored events
///   are known, and a stage may have rewritten them. So where a stage [rewrites](Self::rewrites), a stored event recognises
///   its draft by id, kind and actor alone.
/// - **Speed.** The methods are quick, do not block, and do not call the event's sink.
/// - **State.** Only `placed` changes the state that a stage keeps of a document; `check` changes nothing but the draft. A place
///   is not durable yet: when the log does not take the batch, the channel calls [`dropped`](Self::dropped). It does so, too,
///   when it ends other than with the bus or by eviction: this server lost the document, or the log failed. Then other servers
///   may place events, so that the log alone knows the document.
/// - **Ephemeral** drafts get no place and pass no stage.
pub trait Sequencer: fmt::Debug + Send + Sync + 'static {
    /// Refuses `draft`, or lets it pass, rewritten if need be. It would get `place`.
    ///
    /// # Errors
    /// The refusal that its publisher is told, for instance [`PublishError::Locked`].
    fn check(&self, draft: &mut CheckedDraft, place: Place) -> Result<(), PublishError>;

    /// True when [`check`](Self::check) may rewrite a draft. The answer never changes.
    fn rewrites(&self) -> bool;

    /// Takes note that `draft` has got `place`.
    fn placed(&self, draft: &CheckedDraft, place: Place);

    /// Gives up what was noted of places in `document` that the log may not hold. What the stage still needs to know of the
    /// document, it reads from the log.
    fn dropped(&self, document: &DocumentId);
}
