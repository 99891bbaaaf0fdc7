//! The compression of messages by `permessage-deflate` (RFC 7692), without context takeover: every message is compressed by
//! itself. The ratio is worse than with a context, but no connection needs a window, which takes 256 KiB and more. A
//! broadcast is compressed once for all members that agreed to the same window.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::header::SEC_WEBSOCKET_EXTENSIONS;
use http::{HeaderMap, HeaderValue};

use super::{OpCode, put_header};

/// The size in bytes from which messages are compressed. Compression saves next to nothing of smaller ones.
const MIN_BYTES: usize = 128;
/// The bytes at the end of a flush, which senders leave out (RFC 7692, 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// The bytes that are inflated at once.
const STEP_BYTES: usize = 16 * 1024;
/// The logarithm of the largest window, which is used unless the client wants a smaller one.
const MAX_WINDOW_BITS: u8 = 15;

/// The parameters that were agreed on for the server's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeflateParams {
    window_bits: u8,
}

/// Chooses the first of a client's offers that the server can meet. Returns the parameters, and the header that agrees to
/// them. `None` when there is no such offer.
pub fn negotiate(headers: &HeaderMap) -> Option<(DeflateParams, HeaderValue)> {
    let values = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).find_map(accept)
}

/// Answers one offer. Returns `None` when it is malformed or cannot be met.
fn accept(offer: &str) -> Option<(DeflateParams, HeaderValue)> {
    let mut parts = offer.split(';').map(str::trim);
    if parts.next()? != "permessage-deflate" {
        return None;
    }
    let (mut seen, mut asked) = (Vec::new(), None);
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        // A number has no sign and no leading zeros.
        let written_as = |bits: &u8| value.is_some_and(|value| value == bits.to_string());
        let bits = value.map(|value| value.parse().ok().filter(written_as));
        let bits = bits.map(|bits| bits.filter(|bits| (8..=MAX_WINDOW_BITS).contains(bits)));
        match (name, bits) {
            // The server inflates with the largest window, which reads every smaller one.
            (
                "server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits",
                None,
            )
            | ("client_max_window_bits", Some(Some(_))) => {}
            // The deflate of zlib has no window of 8 bits.
            ("server_max_window_bits", Some(Some(bits))) if bits >= 9 => asked = Some(bits),
            _ => return None,
        }
    }
    let mut answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover".to_owned();
    if let Some(bits) = asked {
        answer.push_str("; server_max_window_bits=");
        answer.push_str(&bits.to_string());
    }
    let agreement = DeflateParams { window_bits: asked.unwrap_or(MAX_WINDOW_BITS) };
    Some((agreement, HeaderValue::from_str(&answer).ok()?))
}

/// A compressor of messages. It has no state between two messages, so connections share one.
#[derive(Debug, Default)]
pub struct Deflater {
    /// The compressors by window, from 9 bits on. Each is made when it is first used.
    compressors: [Option<Box<Compress>>; 7],
}

impl Deflater {
    /// Appends a message in one frame to `out`. It is compressed if that makes it smaller.
    pub fn encode(&mut self, agreed: DeflateParams, op_code: OpCode, payload: &[u8], out: &mut Vec<u8>) {
        match self.compress(agreed, payload) {
            Some(compressed) if payload.len() >= MIN_BYTES => {
                put_header(out, op_code, compressed.len(), true);
                out.extend_from_slice(&compressed);
            }
            _ => super::encode(out, op_code, payload),
        }
    }

    fn compress(&mut self, agreed: DeflateParams, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() < MIN_BYTES {
            return None;
        }
        let slot = self.compressors.get_mut(usize::from(agreed.window_bits.checked_sub(9)?))?;
        let compressor = slot.get_or_insert_with(|| {
            Box::new(Compress::new_with_window_bits(Compression::fast(), false, agreed.window_bits))
        });
        compressor.reset();
        let mut out = Vec::with_capacity(payload.len() / 2 + 64);
        loop {
            let taken = usize::try_from(compressor.total_in()).ok()?;
            let room = out.capacity() - out.len();
            compressor.compress_vec(payload.get(taken..)?, &mut out, FlushCompress::Sync).ok()?;
            let taken = usize::try_from(compressor.total_in()).ok()?;
            // The flush is complete when the output is not full.
            if taken == payload.len() && out.len() < out.capacity() && room > 0 {
                break;
            }
            out.reserve(out.len().max(64));
        }
        let length = out.strip_suffix(&TAIL)?.len();
        out.truncate(length);
        (out.len() < payload.len()).then_some(out)
    }
}

/// The reason for which a message cannot be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InflateError {
    Malformed,
    TooLarge,
}

/// Inflates a message to at most `max` bytes.
pub(super) fn inflate(payload: &[u8], max: usize) -> Result<Vec<u8>, InflateError> {
    let mut out = Vec::new();
    inflate_into(&mut out, payload, max).map(|()| out)
}

/// Inflates the first `max` bytes of a message that is longer, or as many as can be inflated.
pub(super) fn inflate_head(payload: &[u8], max: usize) -> Vec<u8> {
    let mut out = Vec::new();
    // A message that is cut off ends in the middle, and so does one that is longer than wanted.
    let _ = inflate_into(&mut out, payload, max);
    out.truncate(max);
    out
}

fn inflate_into(out: &mut Vec<u8>, payload: &[u8], max: usize) -> Result<(), InflateError> {
    let mut inflater = Decompress::new_with_window_bits(false, MAX_WINDOW_BITS);
    for mut rest in [payload, &TAIL] {
        loop {
            if out.len() == out.capacity() {
                // One byte beyond the limit distinguishes a message that is too large from one that just fits.
                out.reserve(STEP_BYTES.min((max + 1).saturating_sub(out.len())));
            }
            let (taken, length) = (inflater.total_in(), out.len());
            let status = inflater
                .decompress_vec(rest, out, FlushDecompress::Sync)
                .map_err(|_| InflateError::Malformed)?;
            if out.len() > max {
                return Err(InflateError::TooLarge);
            }
            let taken = usize::try_from(inflater.total_in() - taken).unwrap_or(rest.len());
            rest = rest.get(taken..).unwrap_or_default();
            if status == Status::StreamEnd {
                // The sender marked a block as the last. Others may follow (RFC 7692, 7.2.3.4).
                inflater.reset(false);
            } else if taken == 0 && out.len() == length && !rest.is_empty() {
                return Err(InflateError::Malformed);
            }
            if rest.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(offer: &str, answer: Option<&str>) {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_str(offer).unwrap());
        let taken = negotiate(&headers).map(|(_, answer)| answer);
        let rest = taken.as_ref().and_then(|answer| answer.to_str().ok()).map(|answer| {
            answer
                .strip_prefix("permessage-deflate; server_no_context_takeover; client_no_context_takeover")
                .unwrap()
        });
        assert_eq!(rest, answer, "{offer}");
    }

    #[test]
    fn the_first_offer_that_can_be_met_is_taken() {
        check("permessage-deflate", Some(""));
        check("permessage-deflate; client_max_window_bits", Some(""));
        check("x-webkit-deflate-frame, permessage-deflate; client_max_window_bits=\"10\"", Some(""));
        check("permessage-deflate; server_max_window_bits=9", Some("; server_max_window_bits=9"));
        check("permessage-deflate; server_max_window_bits=8, permessage-deflate", Some(""));
        // A client that asks for a window is told its size, also when it is the largest.
        check("permessage-deflate; server_max_window_bits=15", Some("; server_max_window_bits=15"));
        check("permessage-deflate; server_max_window_bits=16", None);
        check("permessage-deflate; server_max_window_bits=09", None);
        check("permessage-deflate; server_max_window_bits=+9", None);
        check("permessage-deflate; server_max_window_bits", None);
        check("permessage-deflate; client_max_window_bits; client_max_window_bits", None);
        check("permessage-deflate; whatever", None);
        check("deflate", None);
    }

    #[test]
    fn what_is_compressed_is_inflated_again_for_every_window() {
        let long: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).wrapping_mul(n).to_le_bytes()).collect();
        for bits in 9..=15 {
            let mut deflater = Deflater::default();
            for payload in [&b"abc".repeat(100)[..], &long, &long[..128]] {
                let agreed = DeflateParams { window_bits: bits };
                if let Some(compressed) = deflater.compress(agreed, payload) {
                    assert!(
                        inflate(&compressed, payload.len()).is_ok_and(|inflated| inflated == payload),
                        "{bits} {}",
                        payload.len()
                    );
                    assert_eq!(inflate(&compressed, payload.len() - 1), Err(InflateError::TooLarge));
                }
            }
        }
    }

    #[test]
    fn a_small_message_that_would_be_huge_is_refused_without_being_inflated_whole() {
        let bomb =
            Deflater::default().compress(DeflateParams { window_bits: 15 }, &vec![0; 10_000_000]).unwrap();
        assert!(bomb.len() < 200_000, "{}", bomb.len());
        assert_eq!(inflate(&bomb, 1_000_000), Err(InflateError::TooLarge));
    }

    #[test]
    fn the_examples_of_the_rfc_are_inflated() {
        // RFC 7692, 7.2.3.1 to 7.2.3.5: a compressed block, a stored one, one marked as the last, and two blocks.
        let examples: [&[u8]; 5] = [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
        ];
        for example in examples {
            assert_eq!(inflate(example, 5).unwrap(), b"Hello", "{example:02x?}");
        }
        assert_eq!(inflate(&[0], 0).unwrap(), b"");
        assert_eq!(inflate(&[], 0).unwrap(), b"");
    }

    #[test]
    fn a_message_of_very_many_last_blocks_needs_no_more_memory_than_another() {
        // Each is an empty block that is marked as the last.
        assert_eq!(inflate(&[0x03, 0x00].repeat(200_000), 1_000).unwrap(), b"");
    }

    #[test]
    fn what_is_not_deflate_is_refused() {
        assert_eq!(inflate(&[0xff; 64], 1_000), Err(InflateError::Malformed));
    }
}
