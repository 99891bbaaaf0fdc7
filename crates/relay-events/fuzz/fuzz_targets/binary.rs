//! Records from a disk: `cargo +nightly fuzz run binary`. A decoded event encodes and decodes to the same event.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_events::binary;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(event) = binary::decode(bytes) {
        assert_eq!(binary::decode(&binary::encode(&event)).as_ref().ok(), Some(&event));
    }
});
