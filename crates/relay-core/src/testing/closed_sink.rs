//! A sink that takes nothing.

use async_trait::async_trait;

use crate::checked::CheckedDraft;
use crate::pubsub::{EventSink, PublishAck, PublishError};

/// A sink that is closed. It refuses every draft.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClosedSink;

#[async_trait]
impl EventSink for ClosedSink {
    async fn publish(&self, _: CheckedDraft) -> Result<PublishAck, PublishError> {
        Err(PublishError::Closed)
    }
}
