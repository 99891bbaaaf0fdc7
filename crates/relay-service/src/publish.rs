//! Publishing from within this process: a draft is checked as one from outside is, and handed to the sink.

use relay_core::{Draft, EventSink, PublishAck};

use crate::error::PublishError;

/// Publishes `draft`, after checking that its payload fits its kind.
pub(crate) async fn publish(sink: &dyn EventSink, draft: Draft) -> Result<PublishAck, PublishError> {
    Ok(sink.publish(relay_events::check(draft)?).await?)
}
