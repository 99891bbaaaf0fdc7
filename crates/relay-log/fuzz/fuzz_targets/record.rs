//! Arbitrary bytes as records: decoding does not panic, and a decoded record encodes to the same bytes.
#![no_main]
#![allow(dead_code)]

#[path = "../../src/record.rs"]
mod record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (at, found) in record::find_all(bytes) {
        let time_is_clamped = found.encode().unwrap() != bytes[at..at + found.len()];
        assert!(!time_is_clamped || found.time.as_micros() == 0 || found.time == relay_core::Timestamp::MAX);
        let _ = found.event();
    }
    let _ = record::Record::decode(bytes);
});
