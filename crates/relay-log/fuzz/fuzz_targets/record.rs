//! Any bytes at all are a record or none, never a panic; a record's bytes come back as they were.
#![no_main]
#![allow(dead_code)]

#[path = "../../src/record.rs"]
mod record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (at, found) in record::find_all(bytes) {
        let time_is_clamped = found.encode() != bytes[at..at + found.len()];
        assert!(!time_is_clamped || found.time.as_micros() == 0 || found.time == relay_core::Timestamp::MAX);
        let _ = found.event();
    }
    let _ = record::Record::decode(bytes);
});
