//! Frames of the server: final, not masked.

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{self, Control, Data};

use super::{MAX_CONTROL_BYTES, OpCode};

/// Appends one message as one frame to `out`. The payload of a control frame ends after 125 bytes.
pub fn encode(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let (opcode, payload) = match opcode {
        OpCode::Text => (coding::OpCode::Data(Data::Text), payload),
        OpCode::Binary => (coding::OpCode::Data(Data::Binary), payload),
        OpCode::Ping => (coding::OpCode::Control(Control::Ping), control(payload)),
        OpCode::Pong => (coding::OpCode::Control(Control::Pong), control(payload)),
        OpCode::Close => (coding::OpCode::Control(Control::Close), control(payload)),
    };
    append(out, &FrameHeader { opcode, ..FrameHeader::default() }, payload);
}

/// Appends a close frame to `out`. The reason ends before the first character that does not fit its 123 bytes.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut end = reason.len().min(MAX_CONTROL_BYTES - size_of::<u16>());
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let payload = [&code.to_be_bytes(), &reason.as_bytes()[..end]].concat();
    encode(out, OpCode::Close, &payload);
}

/// Appends `header`, completed with the payload's length, and the payload.
pub(super) fn append(out: &mut Vec<u8>, header: &FrameHeader, payload: &[u8]) {
    let length = payload.len() as u64;
    out.reserve(header.len(length) + payload.len());
    let written = header.format(length, out);
    debug_assert!(written.is_ok(), "a Vec takes every write");
    out.extend_from_slice(payload);
}

fn control(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(MAX_CONTROL_BYTES)]
}
