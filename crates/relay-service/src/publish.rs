//! Publishing from within this process: a draft is checked against the vocabulary, and handed to the bus.

use relay_bus::Bus;
use relay_core::{Draft, PublishAck};

use crate::error::PublishError;

/// Publishes `draft`, after checking that its payload fits its kind.
pub(crate) async fn publish(bus: &Bus, draft: Draft) -> Result<PublishAck, PublishError> {
    Ok(bus.publish(relay_events::check(draft)?).await?)
}
