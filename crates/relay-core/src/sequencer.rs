//! [`Sequencer`]: a stage inside the critical section in which a document's events get their places.

use std::fmt;

use async_trait::async_trait;

use crate::checked::CheckedDraft;
use crate::id::DocumentId;
use crate::log::{Head, LogError};
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

    /// True for `from`, and for the places after it in its epoch.
    pub const fn is_from(self, from: Self) -> bool {
        self.epoch.as_u64() == from.epoch.as_u64() && self.seq.get() >= from.seq.get()
    }
}

/// A stage through which every sequenced draft passes at the moment at which it gets its place: locks refuse it, conflict
/// resolution rewrites it. A channel has a list of stages; each sees the draft as the stages before it left it.
///
/// # Contract
/// - **Life of a channel.** [`open`](Self::open) is called on each stage before a document's channel opens. Then come the
///   calls for its drafts, and at last [`closed`](Self::closed). A document has one channel at a time, and all calls for it
///   come one after the other.
/// - **Order.** First [`check`](Self::check) is called on each stage in turn. When none refuses, [`placed`](Self::placed) is
///   called on each stage in turn, before any later draft is checked. A draft that a stage refuses gets no place, and the
///   next draft is offered the same one.
/// - **Rewriting.** A stage replaces the payload and nothing else, by [`CheckedDraft::rewrite`].
/// - **Duplicates.** A draft that was published before is answered without passing the stages. It is recognised by its id,
///   kind, actor, and payload as its publisher sent it. Once the document was closed and opened again, only its stored events
///   are known, and a stage may have rewritten them. So where a stage [rewrites](Self::rewrites), a stored event recognises
///   its draft by id, kind and actor alone.
/// - **Speed.** All methods but `open` are quick, do not block, and do not call the event's sink.
/// - **State.** Only `placed` changes the state that a stage keeps of a document; `check` changes nothing but the draft. A place
///   is not durable yet: when the log does not take the batch, the channel calls [`dropped`](Self::dropped).
/// - **Logged and ephemeral** drafts get no place and pass no stage.
#[async_trait]
pub trait Sequencer: fmt::Debug + Send + Sync + 'static {
    /// Makes the stage ready for the drafts of `document`, whose history ends at `head`. A stage that needs the
    /// document's events reads them here, from the [`EventLog`](crate::EventLog). It calls neither the sink nor the source of
    /// the document: they wait for the opening. The channel opens when all stages are ready.
    ///
    /// The future may be dropped before its end. Then, and when a stage fails, [`closed`](Self::closed) is called on all
    /// stages.
    ///
    /// # Errors
    /// The failure of the log. The opening fails with it.
    async fn open(&self, document: &DocumentId, head: Head) -> Result<(), LogError>;

    /// Refuses `draft`, or lets it pass, rewritten if need be. It would get `place`.
    ///
    /// # Errors
    /// The refusal that its publisher is told, for instance [`PublishError::Locked`].
    fn check(&self, draft: &mut CheckedDraft, place: Place) -> Result<(), PublishError>;

    /// True when [`check`](Self::check) may rewrite a draft. The answer never changes.
    fn rewrites(&self) -> bool;

    /// Takes note that `draft` has got `place`.
    fn placed(&self, draft: &CheckedDraft, place: Place);

    /// Gives up what was noted of the places in `document` [from `from` on](Place::is_from). The log has not taken them, or
    /// may not have. The events before them are durable.
    ///
    /// The next draft is offered `from`, unless the channel closes.
    fn dropped(&self, document: &DocumentId, from: Place);

    /// Takes note that the document's channel is closed. It was idle, the bus stops, the log failed, or this server lost the
    /// document. From now on, other servers may place events, so that the log alone knows the document.
    fn closed(&self, document: &DocumentId);
}
