//! CloudEvents from services: `cargo +nightly fuzz run cloudevents`. What is read is written and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::DocumentId;
use relay_events::cloudevents;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(event) = cloudevents::decode(bytes) {
        assert_eq!(cloudevents::decode(&cloudevents::encode(&event)).as_ref().ok(), Some(&event));
    }
    if let Ok(document) = DocumentId::new("doc") {
        let _ = cloudevents::decode_draft_batch(&document, bytes);
    }
});
