//! [`ShardResources`]: the state of a shard that its connections use in turns.

use std::sync::Arc;

use relay_core::Monotonic;

use crate::frame_writer::FrameWriter;
use crate::framing::Deflater;
use crate::room::Rooms;
use crate::shard_context::{ShardContext, ShardDeps};

/// The state of a shard that its connections use in turns.
pub(crate) struct ShardResources {
    pub(crate) deps: Arc<ShardDeps>,
    pub(crate) rooms: Rooms,
    pub(crate) deflater: Deflater,
    writer: FrameWriter,
}

impl ShardResources {
    pub(crate) fn new(deps: Arc<ShardDeps>, rooms: Rooms) -> Self {
        Self { deps, rooms, deflater: Deflater::default(), writer: FrameWriter::default() }
    }

    /// The monotonic time.
    pub(crate) fn now(&self) -> Monotonic {
        self.deps.parts.clock.monotonic()
    }

    /// The context of the connection at `key`, at the present moment.
    pub(crate) fn context(&mut self, key: usize) -> ShardContext<'_> {
        let now = self.now();
        let Self { deps, rooms, deflater, writer } = self;
        ShardContext { deps, rooms, writer, deflater, now, key }
    }
}
