//! [`FrameBatch`]: the next messages of a room, encoded once for all members. The bytes count to the total memory until the
//! last member's socket has them.

use bytes::Bytes;
use relay_core::{MemoryPurpose, MemoryShare};

use crate::codec::Frame;
use crate::frame_writer::op_code;
use crate::framing::{self, DeflateParams, Deflater};

/// Several messages that are written to each member with one call.
#[derive(Debug)]
pub(crate) struct FrameBatch {
    frames: Vec<Frame>,
    plain: Bytes,
    /// The compressed forms. Nearly all clients have the same parameters, so the list is short.
    deflated: Vec<(DeflateParams, Bytes)>,
    memory: MemoryShare,
}

impl FrameBatch {
    /// A batch of `frames`, which is charged to `memory`.
    pub(crate) fn new(frames: Vec<Frame>, memory: MemoryShare) -> Self {
        let mut plain = Vec::with_capacity(frames.iter().map(|frame| frame.bytes().len() + 10).sum());
        for frame in &frames {
            framing::encode(&mut plain, op_code(frame), frame.bytes());
        }
        let plain = memory.charged_bytes(MemoryPurpose::Outgoing, plain.into());
        Self { frames, plain, deflated: Vec::new(), memory }
    }

    /// The number of messages.
    pub(crate) fn messages(&self) -> u64 {
        self.frames.len() as u64
    }

    /// The number of bytes without compression.
    pub(crate) fn len(&self) -> u64 {
        self.plain.len() as u64
    }

    /// Returns the bytes to write to a socket. With parameters they are compressed, once for all members.
    pub(crate) fn bytes(&mut self, params: Option<DeflateParams>, deflater: &mut Deflater) -> &Bytes {
        let Some(params) = params else { return &self.plain };
        let known = self.deflated.iter().position(|(of, _)| *of == params);
        let index = known.unwrap_or_else(|| {
            let mut bytes = Vec::new();
            for frame in &self.frames {
                deflater.encode(params, op_code(frame), frame.bytes(), &mut bytes);
            }
            bytes.shrink_to_fit();
            let bytes = self.memory.charged_bytes(MemoryPurpose::Outgoing, bytes.into());
            self.deflated.push((params, bytes));
            self.deflated.len() - 1
        });
        &self.deflated[index].1
    }
}
