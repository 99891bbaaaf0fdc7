//! The framing of WebSocket (RFC 6455): it converts messages to bytes and back, without any I/O.
//!
//! All sockets of a shard are read into one shared buffer, and a [`Decoder`] takes messages straight out of it. It holds
//! memory only while a message has arrived in part, so an idle connection costs a few words. The existing libraries keep a
//! buffer of several KiB for each connection. Tungstenite reads and writes the headers of frames.
//!
//! Of a message that is too large the decoder keeps the head, so that its sender can be answered.
//!
//! Two rules hold. The length in a header never causes an allocation. A text is refused at its first byte that is not
//! UTF-8, even when its frame has arrived in part.
//!
//! ```
//! use relay_ws::framing::{Decoder, Message};
//!
//! // A ping of a client, with a mask of zeros.
//! let mut bytes = *b"\x89\x82\0\0\0\0hi";
//! let mut input = &mut bytes[..];
//! let mut decoder = Decoder::new(1024, false);
//! assert_eq!(decoder.next(&mut input)?, Some(Message::Ping(b"hi")));
//! assert_eq!(decoder.next(&mut input)?, None);
//! # Ok::<(), relay_ws::framing::FramingError>(())
//! ```

mod decoder;
mod deflate;
mod utf8;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode as RawOpCode};

pub use self::decoder::{Decoder, FramingError, HEAD_BYTES, Message};
pub use self::deflate::{DeflateParams, Deflater, negotiate};

/// The kind of a frame that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpCode {
    /// A text message.
    Text,
    /// A binary message.
    Binary,
    /// A ping.
    Ping,
    /// The answer to a ping.
    Pong,
    /// A close message, the last message of its sender.
    Close,
}

impl From<OpCode> for RawOpCode {
    fn from(op_code: OpCode) -> Self {
        match op_code {
            OpCode::Text => Self::Data(Data::Text),
            OpCode::Binary => Self::Data(Data::Binary),
            OpCode::Ping => Self::Control(Control::Ping),
            OpCode::Pong => Self::Control(Control::Pong),
            OpCode::Close => Self::Control(Control::Close),
        }
    }
}

/// The most bytes of a control frame's payload.
const MAX_CONTROL_BYTES: usize = 125;

fn put_header(out: &mut Vec<u8>, op_code: OpCode, length: usize, compressed: bool) {
    let header = FrameHeader { opcode: op_code.into(), rsv1: compressed, ..FrameHeader::default() };
    // Writing into a vector does not fail.
    let _ = header.format(length as u64, out);
}

/// Appends the header of a message of `length` bytes in one frame to `out`. The caller appends the payload.
pub fn encode_header(out: &mut Vec<u8>, op_code: OpCode, length: usize) {
    put_header(out, op_code, length, false);
}

/// Appends a message in one frame to `out`.
pub fn encode(out: &mut Vec<u8>, op_code: OpCode, payload: &[u8]) {
    encode_header(out, op_code, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close message to `out`. The reason is cut to 123 bytes, the most that its frame takes.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let fits = (0..=reason.len().min(MAX_CONTROL_BYTES - 2)).rev().find(|end| reason.is_char_boundary(*end));
    let reason = &reason[..fits.unwrap_or(0)];
    encode_header(out, OpCode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}
