//! Arbitrary bytes as a journal: the scan does not panic, and its findings lie within the file.
#![no_main]

#[path = "../../src/journal.rs"]
mod journal;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let scan = journal::scan(bytes, 0);
    assert!(scan.intact_end <= scan.used_end && scan.used_end <= bytes.len());
    let mut end = scan.intact_end;
    for batch in &scan.later_batches {
        assert!(batch.start >= end && batch.end <= bytes.len());
        end = batch.end;
    }
    // The intact part alone is a clean journal.
    let intact = journal::scan(&bytes[..scan.intact_end], 0);
    assert!(intact.is_clean() && intact.last_sequence == scan.last_sequence);
});
