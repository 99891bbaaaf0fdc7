//! [`HeldMemory`]: the memory that a connection holds, reserved in its share of the budget.
//!
//! The connection reserves what it holds at the end of each poll. Within a poll its own limits bound it.

use relay_core::{BudgetFull, MemoryPurpose, MemoryShare, Reservation};

/// The most bytes of each purpose that a connection may hold whatever is left of the memory for all. So a client that sends
/// little and reads is not disconnected because of others.
const SMALL_BYTES: usize = 4 * 1024;

/// The reservations of one connection.
pub(super) struct HeldMemory {
    messages: Reservation,
    requests: Reservation,
    outgoing: Reservation,
}

/// The bytes that a connection holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldBytes {
    /// Those of a message that has arrived in part.
    pub(super) messages: usize,
    /// Those of requests that are not answered yet.
    pub(super) requests: usize,
    /// Those that wait for the socket, except bytes that are shared with other connections.
    pub(super) outgoing: usize,
}

impl HeldMemory {
    /// Reservations in `share`, of nothing yet.
    pub(super) fn new(share: &MemoryShare) -> Self {
        let nothing = |purpose| share.charge(purpose, 0);
        Self {
            messages: nothing(MemoryPurpose::Messages),
            requests: nothing(MemoryPurpose::Requests),
            outgoing: nothing(MemoryPurpose::Outgoing),
        }
    }

    /// Reserves `held`.
    ///
    /// # Errors
    /// [`BudgetFull`] when a share is used up, and more than a little is held.
    pub(super) fn reserve(&mut self, held: HeldBytes) -> Result<(), BudgetFull> {
        let Self { messages, requests, outgoing } = self;
        let mut parts = [(messages, held.messages), (requests, held.requests), (outgoing, held.outgoing)];
        // What is given back first may make space for the rest.
        parts.sort_by_key(|(reserved, bytes)| *bytes > reserved.bytes());
        parts.into_iter().try_for_each(|(reserved, bytes)| {
            if bytes <= SMALL_BYTES {
                reserved.resize(bytes);
                return Ok(());
            }
            reserved.try_resize(bytes)
        })
    }
}
