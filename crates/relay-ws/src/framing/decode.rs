//! From a client's bytes to its messages.

use std::io::Cursor;
use std::mem;
use std::ops::Range;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{self, CloseCode, Control, Data};

use super::{Compression, MAX_CONTROL_BYTES, OpCode};

/// The longest header of a client's frame: two bytes, a length of eight, a mask of four.
const MAX_HEADER_BYTES: usize = 14;

/// A whole message of a client, which lies in the buffer that was read or in the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// UTF-8.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
    /// To be answered with a pong of the same bytes.
    Ping(&'a [u8]),
    /// The answer to a ping, or a sign of life.
    Pong(&'a [u8]),
    /// The client's last message, with its code and reason if it gives any. To be answered with the same code.
    Close(Option<(u16, &'a str)>),
}

/// Why a client's bytes are refused. The connection is to be closed with the code that the variant names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// They break a rule of the protocol: close code 1002.
    #[error("the bytes are not WebSocket frames of a client: {0}")]
    Protocol(#[from] Violation),
    /// A text or the reason of a close is not UTF-8: close code 1007.
    #[error("the text is not UTF-8: send it as a binary message")]
    NotUtf8,
    /// The message is larger than the server takes: close code 1009.
    #[error("the message has {bytes} bytes or more, and at most {limit} are taken: send it in parts")]
    TooLarge {
        /// What is known of its size: the bytes that arrived or were inflated, and those that a header announced.
        bytes: u64,
        /// The most that is taken.
        limit: usize,
    },
}

/// The rule that a client's frame breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A client masks each of its frames.
    #[error("a frame is not masked")]
    Unmasked,
    /// A bit is set that no agreed extension gives a meaning, here or at all.
    #[error("a reserved bit is set")]
    ReservedBit,
    /// The opcode has no meaning.
    #[error("opcode {0} is reserved")]
    ReservedOpCode(u8),
    /// The length takes more bytes than it needs, or its highest bit is set.
    #[error("a length of {0} is not written in the fewest bytes")]
    OverlongLength(u64),
    /// A control frame has at most 125 bytes.
    #[error("a control frame has {0} bytes, more than 125")]
    LargeControl(u64),
    /// A control frame is one frame.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// Only what was begun can continue.
    #[error("a frame continues a message, and none was begun")]
    StrayContinuation,
    /// A message begins when the one before it is whole.
    #[error("a message begins inside another")]
    Interleaved,
    /// A close frame is empty, or has a code of two bytes first.
    #[error("a close frame has one byte, which is half a code")]
    HalfCloseCode,
    /// The close code is not one that a client may send.
    #[error("close code {0} must not be sent")]
    CloseCode(u16),
}

/// Turns what is read from a client into messages.
///
/// It is idle between messages, and has no heap then. After a close frame, or an error, it drops all further bytes.
#[derive(Debug)]
pub struct Decoder {
    max_message_bytes: usize,
    compression: Compression,
    ended: bool,
    /// What arrived in part; `None` when idle.
    partial: Option<Box<Partial>>,
}

#[derive(Debug, Default)]
struct Partial {
    /// Bytes that were read but whose turn has not come: those from `held_from` on.
    held: Vec<u8>,
    held_from: usize,
    /// A header that has not arrived whole.
    header: [u8; MAX_HEADER_BYTES],
    header_bytes: usize,
    /// The frame whose payload has not arrived whole.
    frame: Option<OpenFrame>,
    /// The payload of `frame`, if it is a control frame.
    control: Vec<u8>,
    /// The data message that has not arrived whole, or that was returned last.
    message: Option<Assembly>,
    /// `control` or `message` was returned by the last call, and goes with the next.
    returned: Option<OpCode>,
}

/// A frame whose header was read.
#[derive(Debug, Clone, Copy)]
struct OpenFrame {
    /// `None` continues a message.
    opcode: Option<OpCode>,
    is_final: bool,
    is_compressed: bool,
    /// Turned so that its first byte is for the next byte of the payload.
    mask: [u8; 4],
    /// Bytes of the payload that have not arrived.
    missing: usize,
}

/// A data message of several frames, or of a frame that arrives in parts.
#[derive(Debug)]
struct Assembly {
    opcode: OpCode,
    is_compressed: bool,
    bytes: Vec<u8>,
    /// How many of the bytes are known to be UTF-8.
    valid: usize,
}

/// Where a whole message lies.
enum Place {
    /// In the bytes that were given.
    Input(Range<usize>),
    /// In the bytes that were held.
    Held(Range<usize>),
    /// In the payload of a control frame that arrived in parts.
    Control,
    /// In the message that was put together.
    Assembly,
}

impl Decoder {
    /// A decoder at the start of a connection, which takes messages of `max_message_bytes` at most, inflated if they
    /// come compressed.
    pub fn new(max_message_bytes: usize, compression: Compression) -> Self {
        Self { max_message_bytes, compression, ended: false, partial: None }
    }

    /// The next whole message. `input` is advanced past what was used of it, and what was used is unmasked in place.
    /// `None` means that all of `input` was taken in, and that more must be read. What the call before returned is
    /// freed.
    ///
    /// # Errors
    ///
    /// As soon as a byte shows that the client's bytes are to be refused.
    #[expect(
        clippy::mut_mut,
        reason = "the rest of the slice keeps its lifetime, so that calls can follow in a loop"
    )]
    pub fn next<'a, 'b: 'a>(
        &'a mut self,
        input: &mut &'b mut [u8],
    ) -> Result<Option<Message<'a>>, FramingError> {
        self.free_returned();
        if self.ended {
            *input = &mut [];
            return Ok(None);
        }
        let (used, found) = self.find(input).inspect_err(|_| self.ended = true)?;
        let (used, rest) = mem::take(input).split_at_mut(used);
        *input = rest;
        let Some((opcode, place)) = found else { return Ok(None) };
        self.ended = opcode == OpCode::Close;
        let Self { partial, ended, .. } = self;
        let bytes: &[u8] = match (place, partial) {
            (Place::Input(range), _) => &used[range],
            (Place::Held(range), Some(partial)) => &partial.held[range],
            (Place::Control, Some(partial)) => &partial.control,
            (Place::Assembly, Some(partial)) => {
                partial.message.as_ref().map_or(&[], |message| message.bytes.as_slice())
            }
            (_, None) => &[],
        };
        message(opcode, bytes).map(Some).inspect_err(|_| *ended = true)
    }

    /// Keeps bytes that were read but whose turn has not come; [`next`](Self::next) takes them before its input. The
    /// caller bounds them: it reads no more while there are any.
    pub fn hold(&mut self, rest: &[u8]) {
        if rest.is_empty() || self.ended {
            return;
        }
        let partial = self.partial.get_or_insert_default();
        partial.held.drain(..partial.held_from);
        partial.held_from = 0;
        partial.held.extend_from_slice(rest);
    }

    /// Whether bytes are held whose turn has not come.
    pub fn has_held(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.held_from < partial.held.len())
    }

    /// Bytes of heap that this connection takes now: none when it is idle.
    pub fn heap_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, |message| message.bytes.capacity());
            size_of::<Partial>() + partial.held.capacity() + partial.control.capacity() + message
        })
    }

    /// Frees what the last call returned, and everything if nothing is left.
    fn free_returned(&mut self) {
        let Some(partial) = &mut self.partial else { return };
        match partial.returned.take() {
            Some(OpCode::Text | OpCode::Binary) => partial.message = None,
            Some(OpCode::Ping | OpCode::Pong | OpCode::Close) => partial.control = Vec::new(),
            None => {}
        }
        if partial.held_from == partial.held.len() {
            partial.held = Vec::new();
            partial.held_from = 0;
        }
        let is_idle = partial.held.is_empty()
            && partial.header_bytes == 0
            && partial.frame.is_none()
            && partial.message.is_none();
        if is_idle || self.ended {
            self.partial = None;
        }
    }

    /// Looks through what is held, then through `input`: how much of `input` was used, and the message found.
    fn find(&mut self, input: &mut [u8]) -> Result<(usize, Option<(OpCode, Place)>), FramingError> {
        if let Some(partial) = &mut self.partial
            && !partial.held.is_empty()
        {
            let (mut held, from) = (mem::take(&mut partial.held), partial.held_from);
            let (used, found) = self.advance(&mut held[from..])?;
            let partial = self.partial.get_or_insert_default();
            if let Some((opcode, place)) = found {
                let place = match place {
                    Place::Input(range) => Place::Held(range.start + from..range.end + from),
                    place => place,
                };
                partial.held = held;
                partial.held_from = from + used;
                return Ok((0, Some((opcode, place))));
            }
            partial.held_from = 0;
        }
        let found = self.advance(input)?;
        // What was only held may have left nothing behind.
        if found.1.is_none() {
            self.free_returned();
        }
        Ok(found)
    }

    /// Takes in `bytes` up to the end of the next whole message: how many were used, and the message.
    fn advance(&mut self, bytes: &mut [u8]) -> Result<(usize, Option<(OpCode, Place)>), FramingError> {
        let mut at = 0;
        loop {
            let open = self.partial.as_mut().and_then(|partial| partial.frame.take());
            let Some(mut frame) =
                open.map_or_else(|| self.header(bytes, &mut at), |frame| Ok(Some(frame)))?
            else {
                return Ok((at, None));
            };
            let arrived = at..at + frame.missing.min(bytes.len() - at);
            at = arrived.end;
            frame.missing -= arrived.len();
            unmask(&mut bytes[arrived.clone()], &mut frame.mask);
            let found = match frame.opcode {
                Some(opcode @ (OpCode::Ping | OpCode::Pong | OpCode::Close)) => {
                    self.control(opcode, frame, bytes, arrived)
                }
                _ => self.data(frame, bytes, arrived)?,
            };
            if frame.missing > 0 {
                self.partial.get_or_insert_default().frame = Some(frame);
            }
            if found.is_some() || at == bytes.len() {
                return Ok((at, found));
            }
        }
    }

    /// Reads a header from `bytes[*at..]`, after what arrived of it before. `None` if it is not whole yet.
    fn header(&mut self, bytes: &[u8], at: &mut usize) -> Result<Option<OpenFrame>, FramingError> {
        let rest = &bytes[*at..];
        let Some(partial) = self.partial.as_mut().filter(|partial| partial.header_bytes > 0) else {
            let Some((header, length, used)) = parse(rest)? else {
                if !rest.is_empty() {
                    let partial = self.partial.get_or_insert_default();
                    partial.header[..rest.len()].copy_from_slice(rest);
                    partial.header_bytes = rest.len();
                    *at = bytes.len();
                }
                return Ok(None);
            };
            *at += used;
            return self.open(&header, length).map(Some);
        };
        let before = partial.header_bytes;
        let taken = rest.len().min(MAX_HEADER_BYTES - before);
        partial.header[before..before + taken].copy_from_slice(&rest[..taken]);
        let Some((header, length, used)) = parse(&partial.header[..before + taken])? else {
            partial.header_bytes += taken;
            *at += taken;
            return Ok(None);
        };
        partial.header_bytes = 0;
        *at += used - before;
        self.open(&header, length).map(Some)
    }

    /// Checks a header against the rules and against the message under way.
    fn open(&self, header: &FrameHeader, length: u64) -> Result<OpenFrame, FramingError> {
        let Some(mask) = header.mask else { return Err(Violation::Unmasked.into()) };
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        let opcode = match header.opcode {
            coding::OpCode::Data(Data::Continue) => None,
            coding::OpCode::Data(Data::Text) => Some(OpCode::Text),
            coding::OpCode::Data(Data::Binary) => Some(OpCode::Binary),
            coding::OpCode::Control(Control::Ping) => Some(OpCode::Ping),
            coding::OpCode::Control(Control::Pong) => Some(OpCode::Pong),
            coding::OpCode::Control(Control::Close) => Some(OpCode::Close),
            reserved @ (coding::OpCode::Data(Data::Reserved(_))
            | coding::OpCode::Control(Control::Reserved(_))) => {
                return Err(Violation::ReservedOpCode(reserved.into()).into());
            }
        };
        let begins = matches!(opcode, Some(OpCode::Text | OpCode::Binary));
        if header.rsv2
            || header.rsv3
            || (header.rsv1 && !(begins && self.compression == Compression::Deflate))
        {
            return Err(Violation::ReservedBit.into());
        }
        match (opcode, message) {
            (Some(OpCode::Ping | OpCode::Pong | OpCode::Close), _) => {
                if !header.is_final {
                    return Err(Violation::FragmentedControl.into());
                }
                if length > MAX_CONTROL_BYTES as u64 {
                    return Err(Violation::LargeControl(length).into());
                }
            }
            (Some(_), Some(_)) => return Err(Violation::Interleaved.into()),
            (None, None) => return Err(Violation::StrayContinuation.into()),
            (Some(_), None) | (None, Some(_)) => {}
        }
        let is_compressed = message.map_or(header.rsv1, |message| message.is_compressed);
        let before =
            if begins || opcode.is_none() { message.map_or(0, |message| message.bytes.len()) } else { 0 };
        let (bytes, limit) = (length.saturating_add(before as u64), self.max_message_bytes);
        match usize::try_from(length) {
            Ok(missing) if bytes <= limit as u64 => {
                Ok(OpenFrame { opcode, is_final: header.is_final, is_compressed, mask, missing })
            }
            _ => Err(FramingError::TooLarge { bytes, limit }),
        }
    }

    /// Takes in `bytes[arrived]` of a control frame.
    fn control(
        &mut self,
        opcode: OpCode,
        frame: OpenFrame,
        bytes: &[u8],
        arrived: Range<usize>,
    ) -> Option<(OpCode, Place)> {
        let in_parts = self.partial.as_ref().is_some_and(|partial| !partial.control.is_empty());
        if frame.missing == 0 && !in_parts {
            return Some((opcode, Place::Input(arrived)));
        }
        let partial = self.partial.get_or_insert_default();
        partial.control.extend_from_slice(&bytes[arrived]);
        if frame.missing > 0 {
            return None;
        }
        partial.returned = Some(opcode);
        Some((opcode, Place::Control))
    }

    /// Takes in `bytes[arrived]` of a data frame.
    fn data(
        &mut self,
        frame: OpenFrame,
        bytes: &[u8],
        arrived: Range<usize>,
    ) -> Result<Option<(OpCode, Place)>, FramingError> {
        let is_whole = frame.missing == 0 && frame.is_final;
        let begun = self.partial.as_mut().and_then(|partial| partial.message.as_mut());
        if let (None, Some(opcode), true, false) = (&begun, frame.opcode, is_whole, frame.is_compressed) {
            return Ok(Some((opcode, Place::Input(arrived))));
        }
        let partial = self.partial.get_or_insert_default();
        let message = partial.message.get_or_insert_with(|| Assembly {
            opcode: frame.opcode.unwrap_or(OpCode::Binary),
            is_compressed: frame.is_compressed,
            bytes: Vec::new(),
            valid: 0,
        });
        message.push(&bytes[arrived])?;
        if !is_whole {
            return Ok(None);
        }
        partial.returned = Some(message.opcode);
        Ok(Some((message.opcode, Place::Assembly)))
    }
}

impl Assembly {
    /// Appends bytes, and checks the text as far as they allow.
    fn push(&mut self, bytes: &[u8]) -> Result<(), FramingError> {
        self.bytes.extend_from_slice(bytes);
        if self.opcode != OpCode::Text || self.is_compressed {
            return Ok(());
        }
        match str::from_utf8(&self.bytes[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            // A character whose bytes have not all arrived.
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(FramingError::NotUtf8),
        }
        Ok(())
    }
}

/// The header at the start of `bytes`, the length of the payload, and the bytes that it takes.
fn parse(bytes: &[u8]) -> Result<Option<(FrameHeader, u64, usize)>, Violation> {
    let mut cursor = Cursor::new(&bytes[..bytes.len().min(MAX_HEADER_BYTES)]);
    let parsed = FrameHeader::parse(&mut cursor);
    // The opcode is the only thing that it refuses.
    let opcode = bytes.first().map_or(0, |first| first & 0x0F);
    let Some((header, length)) = parsed.map_err(|_| Violation::ReservedOpCode(opcode))? else {
        return Ok(None);
    };
    let used = header.len(length);
    if cursor.position() != used as u64 || length > i64::MAX as u64 {
        return Err(Violation::OverlongLength(length));
    }
    Ok(Some((header, length, used)))
}

/// Unmasks `bytes`, and turns `mask` so that it fits what follows them.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let (words, rest) = bytes.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(*mask)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(&*mask) {
        *byte ^= key;
    }
    mask.rotate_left(rest.len());
}

/// The message of these bytes.
fn message(opcode: OpCode, bytes: &[u8]) -> Result<Message<'_>, FramingError> {
    let text = |bytes| str::from_utf8(bytes).map_err(|_| FramingError::NotUtf8);
    Ok(match opcode {
        OpCode::Text => Message::Text(text(bytes)?),
        OpCode::Binary => Message::Binary(bytes),
        OpCode::Ping => Message::Ping(bytes),
        OpCode::Pong => Message::Pong(bytes),
        OpCode::Close => Message::Close(match bytes {
            [] => None,
            [_] => return Err(Violation::HalfCloseCode.into()),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !CloseCode::from(code).is_allowed() {
                    return Err(Violation::CloseCode(code).into());
                }
                Some((code, text(reason)?))
            }
        }),
    })
}
