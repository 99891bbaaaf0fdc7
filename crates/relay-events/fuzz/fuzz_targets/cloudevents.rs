//! CloudEvents from services: `cargo +nightly fuzz run cloudevents`. A decoded event encodes and decodes to the same event.
//!
//! The bytes are read as the JSON format, and as headers (a `name: value` on each line) with a body after an empty line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::DocumentId;
use relay_events::cloudevents::{self, http};

fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = DocumentId::new("doc") else { return };
    if let Ok(event) = cloudevents::decode(bytes) {
        assert_eq!(cloudevents::decode(&cloudevents::encode(&event)).as_ref().ok(), Some(&event));
    }
    let _ = cloudevents::decode_draft(&document, bytes);

    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let headers = || head.lines().filter_map(|line| line.split_once(": "));
    if let Ok(event) = http::decode(headers(), body.to_owned().into()) {
        let http::Message { headers, body } = http::encode(&event);
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        assert_eq!(http::decode(headers, body).as_ref().ok(), Some(&event));
    }
    let _ = http::decode_draft(&document, headers(), body.to_owned().into());
});
