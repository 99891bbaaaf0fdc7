//! WebSocket messages (RFC 6455) to bytes and back, without any I/O.
//!
//! Sockets of a shard are read into one buffer that they share, and messages are taken straight out of it. So a
//! [`Decoder`] holds memory only while a message has come in part: an idle connection costs a few words. The libraries
//! that there are keep a buffer of several KiB for each connection. Reading and writing frame headers is tungstenite's
//! work.
//!
//! What must hold: nothing is allocated because a header claims a length; a text is refused with its first byte that is
//! not UTF-8, whole frame or not.

mod decoder;
mod deflate;
mod utf8;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode as RawOpCode};

pub use self::decoder::{Decoder, FramingError, Message};
pub use self::deflate::{DeflateParams, Deflater, negotiate};

/// What a frame is that is written.
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
    /// The end.
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

/// The most bytes that a control frame carries.
const MAX_CONTROL_BYTES: usize = 125;

fn put_header(out: &mut Vec<u8>, op_code: OpCode, length: usize, compressed: bool) {
    let header = FrameHeader { opcode: op_code.into(), rsv1: compressed, ..FrameHeader::default() };
    // Writing into a vector does not fail.
    let _ = header.format(length as u64, out);
}

/// Writes the header of a message of `length` bytes that is sent in one frame. The payload is to follow.
pub fn encode_header(out: &mut Vec<u8>, op_code: OpCode, length: usize) {
    put_header(out, op_code, length, false);
}

/// Writes a message in one frame.
pub fn encode(out: &mut Vec<u8>, op_code: OpCode, payload: &[u8]) {
    encode_header(out, op_code, payload.len());
    out.extend_from_slice(payload);
}

/// Writes a close message. The reason is cut to what a control frame takes.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let fits = (0..=reason.len().min(MAX_CONTROL_BYTES - 2)).rev().find(|end| reason.is_char_boundary(*end));
    let reason = &reason[..fits.unwrap_or(0)];
    encode_header(out, OpCode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}
