//! [`VerifiedSink`]: the sink for services, which takes a chain of causes with the router's signature only.

use std::sync::Arc;

use async_trait::async_trait;
use relay_core::{CheckedDraft, EventSink, PublishAck, PublishError};

use super::{CAUSES_KEY, CausesKey};

/// The most characters of a refused value that the error shows.
const MAX_SHOWN_CHARS: usize = 64;

/// A sink that refuses drafts whose [`CAUSES_KEY`] the router has not signed. It publishes the others
/// without the signature, so that what is stored does not depend on a key.
///
/// Every entrance at which a publisher may call itself a service publishes through it.
#[derive(Clone)]
pub struct VerifiedSink {
    sink: Arc<dyn EventSink>,
    key: CausesKey,
}

impl VerifiedSink {
    /// A sink in front of `sink`, for chains that `key` has signed.
    pub fn new(sink: Arc<dyn EventSink>, key: CausesKey) -> Self {
        Self { sink, key }
    }

    /// Replaces a signed chain by the chain alone.
    fn verify(&self, draft: &mut CheckedDraft) -> Result<(), PublishError> {
        let Some(value) = draft.metadata.get(CAUSES_KEY) else { return Ok(()) };
        let verified = self.key.verify(value);
        let chain = verified.map_err(|error| refusal(value, &format!("{error}; {ADVICE}")))?.to_owned();
        draft
            .set_server_metadata(CAUSES_KEY, chain.clone())
            .map_err(|error| refusal(&chain, &error.to_string()))
    }
}

/// The way to mend a chain that is refused.
const ADVICE: &str = "copy it unchanged from the delivery of the event that led to this one, or leave it out";

fn refusal(value: &str, detail: &str) -> PublishError {
    let value = match value.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    };
    PublishError::InvalidMetadata { key: CAUSES_KEY, value, detail: detail.to_owned() }
}

#[async_trait]
impl EventSink for VerifiedSink {
    async fn publish(&self, mut draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        self.verify(&mut draft)?;
        self.sink.publish(draft).await
    }
}
