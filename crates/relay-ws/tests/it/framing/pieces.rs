//! The decoding of one sequence of bytes in several ways, which make no difference. The fuzz target `framing` includes this file.

use relay_ws::framing::{Decoder, FramingError, HEAD_BYTES, Message};

/// The most bytes of a message.
const MAX: usize = 1_000;
/// The most bytes that the decoder may hold: a message, its compressed form, and a piece.
const MAX_HELD: usize = 8 * MAX;

/// The messages, and the error that ended them.
type Decoded = (Vec<String>, Option<FramingError>);

/// Decodes `bytes` whole, in pieces of the size `piece`, and in such pieces of which the rest is carried over after each message.
pub(crate) fn check(piece: u8, bytes: &[u8]) {
    let piece = usize::from(piece).max(1);
    let whole = decode(bytes, bytes.len().max(1), false);
    assert_eq!(decode(bytes, piece, false), whole);
    assert_eq!(decode(bytes, piece, true), whole);
}

fn decode(bytes: &[u8], piece: usize, carries_over: bool) -> Decoded {
    let (mut decoder, mut messages) = (Decoder::new(MAX, true), Vec::new());
    for piece in bytes.chunks(piece) {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            match decoder.next(&mut input) {
                Ok(Some(message)) => {
                    match message {
                        Message::Text(text) => assert!(text.len() <= MAX),
                        Message::Binary(bytes) => assert!(bytes.len() <= MAX),
                        Message::TooLarge { head, .. } => assert!(head.len() <= HEAD_BYTES),
                        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => {}
                    }
                    messages.push(format!("{message:?}"));
                    if carries_over {
                        decoder.keep(input);
                        input = &mut [];
                    }
                }
                // Otherwise a caller that reads all carried-over bytes first would never end.
                Ok(None) => {
                    assert!(input.is_empty() && !decoder.has_carry_over());
                    break;
                }
                Err(error) => {
                    assert!(decoder.next(&mut [].as_mut_slice()).is_err(), "every later call fails");
                    return (messages, Some(error));
                }
            }
        }
        // A length that a header claims is not allocated.
        assert!(decoder.held_bytes() <= MAX_HELD, "{} bytes are held", decoder.held_bytes());
    }
    (messages, None)
}
