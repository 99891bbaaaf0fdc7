//! Any bytes at all are a journal with something wrong, never a panic, and the findings lie within the file.
#![no_main]

#[path = "../../src/journal.rs"]
mod journal;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let scan = journal::scan(bytes, 0);
    assert!(scan.whole <= scan.used && scan.used <= bytes.len());
    let mut end = scan.whole;
    for batch in &scan.later {
        assert!(batch.start >= end && batch.end <= bytes.len());
        end = batch.end;
    }
    // What is whole is whole by itself too.
    let whole = journal::scan(&bytes[..scan.whole], 0);
    assert!(whole.is_clean() && whole.sequence == scan.sequence);
});
