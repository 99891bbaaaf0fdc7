//! Replays: requests to send history to a target again, and their progress.

use std::num::NonZeroU32;

use relay_core::{DocumentId, Offset, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

/// A request to send history again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ReplayRequest {
    /// The start of the history to send.
    pub from: ReplayStart,
    /// The document to send events of; all documents if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentId>,
    /// The most events per second.
    #[serde(default = "ReplayRequest::default_rate")]
    pub rate: NonZeroU32,
}

impl ReplayRequest {
    /// A request for all history from `from` on, at 100 events per second.
    pub fn new(from: ReplayStart) -> Self {
        Self { from, document: None, rate: Self::default_rate() }
    }

    fn default_rate() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(99)
    }
}

/// The first event of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReplayStart {
    /// The event at this offset.
    Offset(Offset),
    /// The first event of this time or later.
    Time(Timestamp),
}

/// A replay and its progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Replay {
    /// The replay's id.
    pub id: u64,
    /// The target that gets the events.
    pub target: ServiceName,
    /// The only document whose events are sent, if the request named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentId>,
    /// The most events per second.
    pub rate: NonZeroU32,
    /// The offset before the first event of the replay.
    pub after: Offset,
    /// The last offset of the replay: the log's end at the time of the request.
    pub through: Offset,
    /// The last offset that was looked at.
    pub position: Offset,
    /// The number of events that were queued.
    pub queued: u64,
    /// The time of the request.
    pub started_at: Timestamp,
    /// The state of the replay.
    pub state: ReplayState,
}

/// The state of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReplayState {
    /// Events are being queued.
    Running,
    /// All events are queued.
    Finished,
    /// An operator cancelled the replay.
    Cancelled,
}
