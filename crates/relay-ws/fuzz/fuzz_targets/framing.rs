//! Bytes from a client: `cargo +nightly fuzz run framing`. Messages keep the limit, and how the bytes are cut into pieces
//! makes no difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_ws::framing::{Decoder, FramingError, Message};

const MAX: usize = 1_000;

fn decode(bytes: &[u8], piece: usize) -> (Vec<String>, Option<FramingError>) {
    let (mut decoder, mut messages) = (Decoder::new(MAX, true), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            match decoder.next(&mut input) {
                Ok(Some(message)) => {
                    if let Message::Text(text) = message {
                        assert!(text.len() <= MAX);
                    }
                    messages.push(format!("{message:?}"));
                }
                // Otherwise a caller that reads all carried-over bytes first would never end.
                Ok(None) => {
                    assert!(input.is_empty() && !decoder.has_carry_over());
                    break;
                }
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let (pieces, whole) = (decode(bytes, usize::from(piece)), decode(bytes, bytes.len()));
    assert_eq!(pieces.0, whole.0);
});
