//! Envelopes and drafts from clients: `cargo +nightly fuzz run json`. A decoded event encodes and decodes to the same event.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::DocumentId;
use relay_events::json;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(event) = json::decode(bytes) {
        assert_eq!(json::decode(&json::encode(&event)).as_ref().ok(), Some(&event));
    }
    if let Ok(document) = DocumentId::new("doc") {
        let _ = json::decode_draft(&document, bytes);
    }
});
