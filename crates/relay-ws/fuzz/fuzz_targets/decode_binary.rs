//! Bytes from a client: `cargo +nightly fuzz run decode_binary`. A decoded message accounts for every byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_ws::codec::{ClientPayload, decode_binary};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = decode_binary(bytes) {
        let length = |text: &Option<std::borrow::Cow<'_, str>>| text.as_ref().map_or(0, |text| text.len());
        let fields = length(&message.join_ref)
            + length(&message.reference)
            + message.topic.len()
            + message.event.len();
        let ClientPayload::Binary(payload) = message.payload else { panic!("bytes were read as JSON") };
        assert_eq!(5 + fields + payload.len(), bytes.len());
    }
});
