//! [`Decoder`]: the messages out of a client's bytes, in whatever pieces the network delivers them.

use std::io::Cursor;
use std::ops::Range;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::MAX_CONTROL_BYTES;
use super::deflate::{InflateError, inflate, inflate_head};
use super::utf8::Utf8;

/// A whole message from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// A ping. Its answer is a pong with the same content.
    Ping(&'a [u8]),
    /// A pong, which answers a ping or shows that the client lives.
    Pong(&'a [u8]),
    /// A close message, with its code and reason. Messages after it must be ignored.
    Close(Option<(u16, &'a str)>),
    /// The beginning of a message that is larger than allowed, at most [`HEAD_BYTES`]. The rest was discarded.
    TooLarge {
        /// The message's first bytes. A text may be cut within a character.
        head: &'a [u8],
        /// True for a text.
        is_text: bool,
    },
}

/// The most bytes of a message that is too large that the decoder keeps.
pub const HEAD_BYTES: usize = 2048;

/// The multiple of the largest allowed message up to which a larger one is discarded. Beyond it the decoder fails.
const DISCARD_FACTOR: usize = 16;

/// The reason for which bytes are no messages of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// The bytes break a rule of RFC 6455 or RFC 7692.
    #[error("not WebSocket: {detail}")]
    Protocol {
        /// A phrase for the part of the bytes that breaks the rule, for instance `a reserved bit is set`.
        detail: &'static str,
    },
    /// A text message, or the reason of a close message, is not UTF-8.
    #[error("a text is not UTF-8")]
    NotUtf8,
    /// A message is larger than what is discarded: sixteen times as large as allowed.
    #[error("a message has more than {max} bytes, the most that are discarded")]
    TooLarge {
        /// The limit in bytes.
        max: usize,
    },
}

const fn protocol(detail: &'static str) -> FramingError {
    FramingError::Protocol { detail }
}

/// The decoder of one connection. Between messages it holds no memory beside itself.
#[derive(Debug, Default)]
pub struct Decoder {
    assembly: Assembly,
    /// The bytes that come before the next input, from `at` on. They are the beginning of a header or of a control frame, or
    /// the bytes of [`Decoder::keep`].
    carry_over: Vec<u8>,
    at: usize,
    /// True when the carried-over bytes are the beginning of a frame, whose next bytes are needed first.
    needs_more: bool,
}

/// The part of the decoder that assembles messages out of frames.
#[derive(Debug, Default)]
struct Assembly {
    max_message_bytes: usize,
    compression: bool,
    /// Set while a message has arrived in part.
    partial: Option<Box<PartialMessage>>,
    /// The message that was assembled last. The caller borrows it until the next call.
    assembled: Vec<u8>,
    has_failed: bool,
}

/// A message that has arrived in part.
#[derive(Debug)]
struct PartialMessage {
    is_text: bool,
    is_compressed: bool,
    utf8: Utf8,
    /// The payload, or the head of a message that is too large.
    payload: Vec<u8>,
    /// The bytes that have arrived, and those that the present frame announces.
    length: usize,
    is_too_large: bool,
    /// The frame whose payload arrives at present.
    frame: Option<PartialFrame>,
}

#[derive(Debug)]
struct PartialFrame {
    /// The bytes of its payload that have not arrived.
    left: usize,
    is_final: bool,
    /// The mask, rotated so that it begins with the byte for the next byte of the payload.
    mask: [u8; 4],
}

/// A checked header of a frame.
struct CheckedHeader {
    /// The kind of the message that begins. `None` for a continuation.
    op_code: Option<OpCode>,
    is_final: bool,
    is_compressed: bool,
    mask: [u8; 4],
    /// The size of the header in bytes.
    bytes: usize,
    /// The size of the payload in bytes.
    length: usize,
}

/// The kind of a message that was found.
#[derive(Debug, Clone, Copy)]
enum MessageKind {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
    /// The head of a message that is too large.
    Head {
        is_text: bool,
    },
}

/// The outcome of looking for a message.
enum Scan {
    /// No whole message.
    Incomplete,
    /// A message in this range of the bytes.
    InPlace(MessageKind, Range<usize>),
    /// A message in [`Assembly::assembled`].
    Assembled(MessageKind),
}

impl Decoder {
    /// A decoder for messages of at most `max_message_bytes` after decompression. Of a larger one it keeps the head. With
    /// `compression` the client may compress messages.
    pub fn new(max_message_bytes: usize, compression: bool) -> Self {
        let assembly = Assembly { max_message_bytes, compression, ..Assembly::default() };
        Self { assembly, ..Self::default() }
    }

    /// Copies bytes that were read and not decoded. [`Decoder::next`] takes them before its input.
    pub fn keep(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            self.carry_over.extend_from_slice(rest);
            self.needs_more = false;
        }
    }

    /// True when a message has arrived in part. Control messages may come between its frames.
    pub fn is_partial(&self) -> bool {
        self.assembly.partial.is_some() || (self.needs_more && self.at < self.carry_over.len())
    }

    /// The bytes that the decoder holds in memory.
    pub fn held_bytes(&self) -> usize {
        let partial = self.assembly.partial.as_ref().map_or(0, |partial| partial.payload.capacity());
        partial + self.assembly.assembled.capacity() + self.carry_over.capacity()
    }

    /// Returns true when [`Decoder::next`] may return a message without input. It is false after `next` has returned `None`.
    pub fn has_carry_over(&self) -> bool {
        self.at < self.carry_over.len() && !self.needs_more
    }

    /// Returns the next message, out of the carried-over bytes and then out of `input`. `input` is advanced past the bytes
    /// that were used. `None` means that all of it was used, and that more bytes are needed. The bytes are unmasked in place.
    ///
    /// # Errors
    /// [`FramingError`]. Every later call fails too.
    #[allow(clippy::mut_mut, reason = "the input is advanced, as `Read` for slices does it")]
    pub fn next<'m, 'i: 'm>(
        &'m mut self,
        input: &mut &'i mut [u8],
    ) -> Result<Option<Message<'m>>, FramingError> {
        self.needs_more = false;
        if self.has_carry_over() {
            let (used, found) = self.assembly.step(&mut self.carry_over[self.at..])?;
            let begin = self.at;
            self.at += used;
            match found {
                Scan::Incomplete if input.is_empty() => {
                    self.needs_more = true;
                    return Ok(None);
                }
                // The rest of the carried-over bytes needs those of the input.
                Scan::Incomplete => {
                    self.carry_over.drain(..self.at);
                    self.at = 0;
                    if !self.carry_over.is_empty() {
                        let more = std::mem::take(input);
                        self.carry_over.extend_from_slice(more);
                        return self.next(input);
                    }
                }
                Scan::InPlace(kind, range) => {
                    let bytes = &self.carry_over[begin + range.start..begin + range.end];
                    return message(kind, bytes, &mut self.assembly.has_failed).map(Some);
                }
                Scan::Assembled(kind) => return self.assembly.message(kind).map(Some),
            }
        }
        self.carry_over = Vec::new();
        self.at = 0;
        let bytes = std::mem::take(input);
        let (used, found) = self.assembly.step(bytes)?;
        let (taken, rest) = bytes.split_at_mut(used);
        match found {
            Scan::Incomplete => {
                self.carry_over.extend_from_slice(rest);
                self.needs_more = true;
                Ok(None)
            }
            Scan::InPlace(kind, range) => {
                *input = rest;
                message(kind, &taken[range], &mut self.assembly.has_failed).map(Some)
            }
            Scan::Assembled(kind) => {
                *input = rest;
                self.assembly.message(kind).map(Some)
            }
        }
    }
}

impl Assembly {
    /// Looks for the next message in `bytes`. Returns the number of bytes that were used.
    fn step(&mut self, bytes: &mut [u8]) -> Result<(usize, Scan), FramingError> {
        if self.has_failed {
            return Err(protocol("the bytes follow others that could not be read"));
        }
        let found = self.find(bytes);
        if found.is_err() {
            self.has_failed = true;
            self.partial = None;
        }
        found
    }

    /// Looks for the next message in `bytes`. Returns the number of bytes that were used.
    fn find(&mut self, bytes: &mut [u8]) -> Result<(usize, Scan), FramingError> {
        self.assembled = Vec::new();
        let mut used = 0;
        loop {
            if let Some(partial) = &mut self.partial
                && partial.frame.is_some()
            {
                used += partial.take(&mut bytes[used..])?;
                match &partial.frame {
                    Some(frame) if frame.left > 0 => return Ok((used, Scan::Incomplete)),
                    Some(frame) if frame.is_final => return Ok((used, self.finish()?)),
                    _ => partial.frame = None,
                }
            }
            let Some(header) = self.header(&bytes[used..])? else { return Ok((used, Scan::Incomplete)) };
            let payload = used + header.bytes..(used + header.bytes).saturating_add(header.length);
            let is_here = payload.end <= bytes.len();
            let kind = match header.op_code {
                Some(OpCode::Control(Control::Ping)) => MessageKind::Ping,
                Some(OpCode::Control(Control::Pong)) => MessageKind::Pong,
                Some(OpCode::Control(_)) => MessageKind::Close,
                Some(OpCode::Data(Data::Text)) if is_here && self.is_whole_message(&header) => {
                    MessageKind::Text
                }
                Some(OpCode::Data(Data::Binary)) if is_here && self.is_whole_message(&header) => {
                    MessageKind::Binary
                }
                begins => {
                    self.begin_frame(&header, begins);
                    used += header.bytes;
                    continue;
                }
            };
            // A control frame is small, so it is decoded once it has arrived whole.
            if !is_here {
                return Ok((used, Scan::Incomplete));
            }
            unmask(&mut bytes[payload.clone()], header.mask);
            return Ok((payload.end, Scan::InPlace(kind, payload)));
        }
    }

    /// True when the frame of `header` is a message by itself that needs no work.
    const fn is_whole_message(&self, header: &CheckedHeader) -> bool {
        header.is_final && !header.is_compressed && header.length <= self.max_message_bytes
    }

    fn begin_frame(&mut self, header: &CheckedHeader, begins: Option<OpCode>) {
        let CheckedHeader { is_final, mask, length, .. } = *header;
        let partial = self.partial.get_or_insert_with(|| {
            Box::new(PartialMessage {
                is_text: matches!(begins, Some(OpCode::Data(Data::Text))),
                is_compressed: header.is_compressed,
                utf8: Utf8::default(),
                payload: Vec::new(),
                length: 0,
                is_too_large: false,
                frame: None,
            })
        });
        partial.length += length;
        partial.frame = Some(PartialFrame { left: length, is_final, mask });
        let max = self.max_message_bytes;
        if partial.length > if partial.is_compressed { most_compressed(max) } else { max } {
            partial.is_too_large = true;
            partial.payload.truncate(HEAD_BYTES);
            partial.payload.shrink_to_fit();
        }
    }

    /// Reads and checks a header. Returns `None` when it has arrived in part.
    fn header(&self, bytes: &[u8]) -> Result<Option<CheckedHeader>, FramingError> {
        let mut cursor = Cursor::new(bytes);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| protocol("an opcode is reserved"))?;
        let Some((header, length)) = parsed else { return Ok(None) };
        if cursor.position() != header.len(length) as u64 {
            return Err(protocol("a length takes more bytes than it needs"));
        }
        if header.rsv2 || header.rsv3 {
            return Err(protocol("a reserved bit is set"));
        }
        let mask = header.mask.ok_or(protocol("a frame of a client is not masked"))?;
        let begun = self.partial.as_deref();
        let is_control = matches!(header.opcode, OpCode::Control(_));
        match header.opcode {
            OpCode::Control(_) if !header.is_final => return Err(protocol("a control frame is fragmented")),
            OpCode::Control(_) if length > MAX_CONTROL_BYTES as u64 => {
                return Err(protocol("a control frame has more than 125 bytes"));
            }
            OpCode::Data(Data::Continue) if begun.is_none() => {
                return Err(protocol("a continuation has no message"));
            }
            OpCode::Data(Data::Text | Data::Binary) if begun.is_some() => {
                return Err(protocol("a message begins within another"));
            }
            _ => {}
        }
        let begins = header.opcode != OpCode::Data(Data::Continue);
        if header.rsv1 && (is_control || !begins || !self.compression) {
            return Err(protocol("a frame is compressed and must not be"));
        }
        let before = begun.filter(|_| !is_control).map_or(0, |partial| partial.length);
        let max = self.max_message_bytes.saturating_mul(DISCARD_FACTOR);
        let length = usize::try_from(length)
            .ok()
            .filter(|length| is_control || before.saturating_add(*length) <= max)
            .ok_or(FramingError::TooLarge { max })?;
        Ok(Some(CheckedHeader {
            op_code: begins.then_some(header.opcode),
            is_final: header.is_final,
            is_compressed: header.rsv1,
            mask,
            bytes: usize::try_from(cursor.position()).unwrap_or(usize::MAX),
            length,
        }))
    }

    /// The message that was assembled last.
    fn message(&mut self, kind: MessageKind) -> Result<Message<'_>, FramingError> {
        message(kind, &self.assembled, &mut self.has_failed)
    }

    /// Finishes the message, which has arrived whole.
    fn finish(&mut self) -> Result<Scan, FramingError> {
        let Some(partial) = self.partial.take() else { return Ok(Scan::Incomplete) };
        let PartialMessage { is_text, is_compressed, is_too_large, utf8, payload, .. } = *partial;
        let whole = if is_text { MessageKind::Text } else { MessageKind::Binary };
        let head = MessageKind::Head { is_text };
        if is_text && !is_compressed && !utf8.is_whole() {
            return Err(FramingError::NotUtf8);
        }
        let (assembled, kind) = match is_compressed {
            false => (payload, if is_too_large { head } else { whole }),
            true if is_too_large => (inflate_head(&payload, HEAD_BYTES), head),
            true => match inflate(&payload, self.max_message_bytes) {
                Ok(inflated) => (inflated, whole),
                Err(InflateError::TooLarge) => (inflate_head(&payload, HEAD_BYTES), head),
                Err(InflateError::Malformed) => {
                    return Err(protocol("a compressed message cannot be inflated"));
                }
            },
        };
        self.assembled = assembled;
        Ok(Scan::Assembled(kind))
    }
}

impl PartialMessage {
    /// Takes the part of the present frame's payload that `bytes` begin with. Returns its length.
    fn take(&mut self, bytes: &mut [u8]) -> Result<usize, FramingError> {
        let Some(frame) = &mut self.frame else { return Ok(0) };
        let count = frame.left.min(bytes.len());
        let kept =
            if self.is_too_large { HEAD_BYTES.saturating_sub(self.payload.len()).min(count) } else { count };
        if self.payload.capacity() - self.payload.len() < kept {
            // It grows with what has arrived, and not past the end of the frame.
            self.payload.reserve_exact(self.payload.len().clamp(kept, frame.left));
        }
        let bytes = &mut bytes[..count];
        unmask(bytes, frame.mask);
        frame.mask.rotate_left(count % 4);
        frame.left -= count;
        if self.is_text && !self.is_compressed && !self.utf8.take(bytes) {
            return Err(FramingError::NotUtf8);
        }
        self.payload.extend_from_slice(&bytes[..kept]);
        Ok(count)
    }
}

/// The most bytes that a compressed message of `bytes` takes. Compression may add a few bytes to each block.
const fn most_compressed(bytes: usize) -> usize {
    bytes.saturating_add(bytes / 1024).saturating_add(64)
}

/// Reads a message from its bytes. Without one the decoder has failed.
fn message<'m>(
    kind: MessageKind,
    bytes: &'m [u8],
    has_failed: &mut bool,
) -> Result<Message<'m>, FramingError> {
    let message = checked_message(kind, bytes);
    *has_failed = message.is_err();
    message
}

fn checked_message(kind: MessageKind, bytes: &[u8]) -> Result<Message<'_>, FramingError> {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| FramingError::NotUtf8);
    Ok(match kind {
        MessageKind::Text => Message::Text(text(bytes)?),
        MessageKind::Binary => Message::Binary(bytes),
        MessageKind::Ping => Message::Ping(bytes),
        MessageKind::Pong => Message::Pong(bytes),
        MessageKind::Head { is_text } => Message::TooLarge { head: bytes, is_text },
        MessageKind::Close => Message::Close(match bytes {
            [] => None,
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                    return Err(protocol("a close message has a code that must not be sent"));
                }
                Some((code, text(reason)?))
            }
            [_] => return Err(protocol("a close message has half a code")),
        }),
    })
}

/// Applies the mask, which removes it where it was applied before.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = bytes.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_a_message_under_way_holds_no_memory_but_itself() {
        const LENGTH: usize = 100_000;
        assert!(size_of::<Decoder>() <= 12 * size_of::<usize>());
        let mut message = [&[0x82, 0xff][..], &(LENGTH as u64).to_be_bytes(), &vec![0; 4 + LENGTH]].concat();
        let mut decoder = Decoder::new(LENGTH, false);
        for piece in message.chunks_mut(1_500) {
            let mut input = &mut *piece;
            while decoder.next(&mut input).is_ok_and(|message| message.is_some()) {}
        }
        let Decoder { assembly, carry_over, .. } = decoder;
        assert!(assembly.partial.is_none());
        assert_eq!((assembly.assembled.capacity(), carry_over.capacity()), (0, 0));
    }
}
