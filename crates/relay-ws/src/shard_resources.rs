//! [`ShardResources`]: the state of a shard that its connections use in turns.

use std::sync::Arc;

use relay_core::Monotonic;

use crate::connection::Connection;
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

    /// Calls `act` with the connection at `key` and its context. Messages that `act` has not flushed move into the
    /// connection's queue, so that none of them is written to another connection. `act` catches the panics that the shard survives.
    pub(crate) fn with_context<R>(
        &mut self,
        key: usize,
        connection: &mut Connection,
        act: impl FnOnce(&mut Connection, &mut ShardContext<'_>) -> R,
    ) -> R {
        let now = self.now();
        let Self { deps, rooms, deflater, writer } = self;
        let result = act(connection, &mut ShardContext { deps, rooms, writer, deflater, now, key });
        connection.queue_unflushed(writer);
        result
    }
}
