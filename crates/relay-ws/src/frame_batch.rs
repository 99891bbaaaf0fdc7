//! What all members of a room get next, encoded once for all of them.

use bytes::Bytes;

use crate::codec::Frame;
use crate::frame_writer::FrameWriter;
use crate::framing::{self, DeflateParams, OpCode};

/// Several messages that are written to each member with one call.
#[derive(Debug)]
pub(crate) struct FrameBatch {
    frames: Vec<Frame>,
    plain: Bytes,
    /// By what was agreed on: few ask for anything but the usual.
    deflated: Vec<(DeflateParams, Bytes)>,
}

impl FrameBatch {
    pub(crate) fn new(frames: Vec<Frame>) -> Self {
        let mut plain = Vec::with_capacity(frames.iter().map(|frame| frame.bytes().len() + 10).sum());
        for frame in &frames {
            framing::encode(&mut plain, op_code(frame), frame.bytes());
        }
        Self { frames, plain: plain.into(), deflated: Vec::new() }
    }

    /// How many messages there are.
    pub(crate) fn messages(&self) -> u64 {
        self.frames.len() as u64
    }

    /// The frames as they are written; compressed, for members that agreed to that.
    pub(crate) fn bytes(&mut self, params: Option<DeflateParams>, writer: &mut FrameWriter) -> Bytes {
        let Some(params) = params else { return self.plain.clone() };
        if let Some((_, bytes)) = self.deflated.iter().find(|(of, _)| *of == params) {
            return bytes.clone();
        }
        let mut bytes = Vec::new();
        for frame in &self.frames {
            writer.deflater().encode(params, op_code(frame), frame.bytes(), &mut bytes);
        }
        let bytes = Bytes::from(bytes);
        self.deflated.push((params, bytes.clone()));
        bytes
    }
}

pub(crate) fn op_code(frame: &Frame) -> OpCode {
    match frame {
        Frame::Text(_) => OpCode::Text,
        Frame::Binary(_) => OpCode::Binary,
    }
}
