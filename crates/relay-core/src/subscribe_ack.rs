//! [`SubscribeAck`]: the answer to the position from which a subscriber wants a document's events.

use serde::{Deserialize, Serialize};

use crate::log::Head;
use crate::position::{Epoch, Seq};

/// The position from which a subscriber wants a document's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    /// From now on.
    Live,
    /// The events after a position that the subscriber knows, or thinks it knows. `After { epoch: None, .. }` takes
    /// the seq as one of the present epoch; with [`Seq::ZERO`] that is: everything that is kept.
    After {
        /// The epoch in which `seq` was seen.
        epoch: Option<Epoch>,
        /// The last event that is known.
        seq: Seq,
    },
}

/// The acknowledgement of a subscription. Serialised, it is the opening of the wire protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SubscribeAckForm", into = "SubscribeAckForm")]
#[non_exhaustive]
pub struct SubscribeAck {
    /// The head of the document.
    pub head: Head,
    /// The first sequenced event that will be delivered is `position.next()`.
    pub position: Seq,
    /// The way in which the wanted start was met.
    pub recovery: Recovery,
}

impl SubscribeAck {
    /// Decides how a subscriber that wants `start` is served by a history that stands at `head`. Every source uses
    /// this, so that all of them recover alike.
    ///
    /// Seq 0 is valid in any epoch: the reader holds no events.
    pub fn decide(start: StartPosition, head: Head) -> Self {
        let oldest = Seq::new(head.first.get().saturating_sub(1));
        let (position, recovery) = match start {
            StartPosition::Live => (head.last, Recovery::Live),
            StartPosition::After { epoch: Some(epoch), seq } if epoch != head.epoch && seq != Seq::ZERO => {
                (oldest, Recovery::Reset(ResetReason::EpochChanged))
            }
            StartPosition::After { seq, .. } if seq > head.last => {
                (oldest, Recovery::Reset(ResetReason::Ahead))
            }
            StartPosition::After { seq, .. } if seq < oldest => {
                (oldest, Recovery::Reset(ResetReason::Trimmed))
            }
            StartPosition::After { seq, .. } => (seq, Recovery::Recovered),
        };
        Self { head, position, recovery }
    }
}

/// A [`SubscribeAck`] on the wire.
#[derive(Serialize, Deserialize)]
struct SubscribeAckForm {
    epoch: Epoch,
    seq: Seq,
    first_seq: Seq,
    position: Seq,
    reset: bool,
    recovered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reset_reason: Option<ResetReason>,
}

impl From<SubscribeAck> for SubscribeAckForm {
    fn from(SubscribeAck { head, position, recovery }: SubscribeAck) -> Self {
        let reset_reason = match recovery {
            Recovery::Reset(reason) => Some(reason),
            Recovery::Live | Recovery::Recovered => None,
        };
        Self {
            epoch: head.epoch,
            seq: head.last,
            first_seq: head.first,
            position,
            reset: reset_reason.is_some(),
            recovered: recovery == Recovery::Recovered,
            reset_reason,
        }
    }
}

impl From<SubscribeAckForm> for SubscribeAck {
    fn from(form: SubscribeAckForm) -> Self {
        let recovery = match form.reset_reason {
            Some(reason) => Recovery::Reset(reason),
            None if form.recovered => Recovery::Recovered,
            None => Recovery::Live,
        };
        let head = Head { epoch: form.epoch, first: form.first_seq, last: form.seq };
        Self { head, position: form.position, recovery }
    }
}

/// The way in which a wanted start was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovery {
    /// Live events alone were wanted.
    Live,
    /// Everything after the wanted position follows, without a gap.
    Recovered,
    /// The subscriber's state cannot be continued. It must drop that state and take what follows, which is all that is
    /// kept.
    Reset(ResetReason),
}

/// The reason for which a subscriber has to start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResetReason {
    /// The subscriber's seqs are those of another incarnation of the history.
    EpochChanged,
    /// Retention has dropped events that the subscriber has not seen.
    Trimmed,
    /// The subscriber has seen more than there is.
    Ahead,
}

impl ResetReason {
    /// A short stable name for wire protocols.
    pub const fn code(self) -> &'static str {
        match self {
            Self::EpochChanged => "epoch_changed",
            Self::Trimmed => "trimmed",
            Self::Ahead => "ahead",
        }
    }
}
