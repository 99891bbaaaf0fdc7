//! Bytes from a client: `cargo +nightly fuzz run framing`. Messages keep the limit, and how the bytes are cut into pieces
//! makes no difference.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/framing/pieces.rs"]
mod pieces;

fuzz_target!(|input: (u8, &[u8])| pieces::check(input.0, input.1));
