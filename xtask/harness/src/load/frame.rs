//! The WebSocket framing of a client that reads much: the bounds of each frame of a server.
//!
//! A server's frames are not masked, so a frame's payload is a slice of the bytes that were read. Nothing is copied.

/// The bytes with which every measured message's stamp begins. They need no escaping in JSON.
pub(crate) const MARK: &[u8; 4] = b"@~@~";

/// Decimal digits of a stamp: nanoseconds of the machine's monotonic clock.
const STAMP_DIGITS: usize = 20;

/// One frame of a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerFrame<'a> {
    pub(crate) kind: FrameKind,
    pub(crate) payload: &'a [u8],
}

/// The kind of a frame, by its opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Data,
    Ping,
    Pong,
    Close,
}

/// Returns the first frame of `bytes` and its whole length, or `None` while it is incomplete.
///
/// # Errors
/// When a server may not send such a frame.
pub(crate) fn first(bytes: &[u8]) -> anyhow::Result<Option<(ServerFrame<'_>, usize)>> {
    let [head, length, rest @ ..] = bytes else { return Ok(None) };
    anyhow::ensure!(length & 0x80 == 0, "the server sent a masked frame");
    let kind = match head & 0x0f {
        0..=2 => FrameKind::Data,
        8 => FrameKind::Close,
        9 => FrameKind::Ping,
        10 => FrameKind::Pong,
        other => anyhow::bail!("the server sent a frame with the opcode {other}"),
    };
    let (begin, length) = match length & 0x7f {
        126 => match rest.first_chunk::<2>() {
            Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Ok(None),
        },
        length => (2, u64::from(length)),
    };
    let end = usize::try_from(length)?.saturating_add(begin);
    Ok(bytes.get(begin..end).map(|payload| (ServerFrame { kind, payload }, end)))
}

/// Appends a client's frame. Its mask is zero, which leaves the payload as it is.
pub(crate) fn write(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    let length = payload.len();
    if let Some(length) = u8::try_from(length).ok().filter(|length| *length <= 125) {
        out.push(0x80 | length);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(0xfe);
        out.extend(length.to_be_bytes());
    } else {
        out.push(0xff);
        out.extend((length as u64).to_be_bytes());
    }
    out.extend([0; 4]);
    out.extend_from_slice(payload);
}

/// Returns a message of `bytes` bytes that begins with the mark and the stamp.
pub(crate) fn message(stamp: u64, bytes: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(bytes);
    message.extend_from_slice(MARK);
    message.extend_from_slice(format!("{stamp:0STAMP_DIGITS$}").as_bytes());
    message.resize(bytes.max(message.len()), b'x');
    message
}

/// Returns the stamp that follows a mark.
pub(crate) fn stamp(after_mark: &[u8]) -> Option<u64> {
    let digits = after_mark.get(..STAMP_DIGITS)?;
    digits.iter().try_fold(0u64, |stamp, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        stamp.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::{FrameKind, MARK, ServerFrame, first, message, stamp, write};

    #[test]
    fn a_frame_is_found_when_all_of_it_is_there() {
        for length in [0usize, 125, 126, 65_535, 65_536] {
            let mut bytes = Vec::new();
            write(&mut bytes, 2, &vec![7; length]);
            // A server's frame is a client's without the mask.
            let mask = bytes.len() - length - 4;
            bytes.drain(mask..mask + 4);
            bytes[1] &= 0x7f;
            let whole = bytes.len();
            bytes.extend([0x81, 1, b'x']);
            for missing in [0, 1, whole - 1] {
                assert_eq!(first(&bytes[..missing]).unwrap(), None, "{length} bytes, {missing} there");
            }
            let (frame, end) = first(&bytes).unwrap().unwrap();
            assert_eq!((frame.kind, frame.payload.len(), end), (FrameKind::Data, length, whole));
            let last = first(&bytes[end..]).unwrap().unwrap();
            assert_eq!(last, (ServerFrame { kind: FrameKind::Data, payload: b"x" }, 3));
        }
    }

    #[test]
    fn a_frame_that_no_server_sends_is_refused() {
        assert!(first(&[0x81, 0x81, 0, 0, 0, 0, 1]).unwrap_err().to_string().contains("masked"));
        assert!(first(&[0x83, 0]).unwrap_err().to_string().contains("opcode 3"));
    }

    #[test]
    fn a_message_has_its_length_and_its_stamp() {
        let message = message(1_234, 128);
        assert_eq!(message.len(), 128);
        assert_eq!(stamp(&message[MARK.len()..]), Some(1_234));
        assert_eq!(stamp(b"12"), None);
        assert_eq!(stamp(b"0000000000000000000x"), None);
    }
}
