//! Text from a client: `cargo +nightly fuzz run decode_text`. A decoded message keeps the protocol's limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_ws::codec::decode_text;

fuzz_target!(|text: &str| {
    if let Ok(message) = decode_text(text) {
        let references = [message.join_ref, message.reference];
        assert!(references.iter().flatten().all(|reference| reference.len() <= 255));
    }
});
