//! [`HeadMemory`]: the memory of the head that a connection's client is sending.
//!
//! hyper keeps what it has read of a head until the head is whole, so that part counts. Most heads come whole with one read,
//! and cost nothing here. Between the head and the answer, hyper holds one read at most of a body or of the next request.
//! Those bytes are among the fixed cost of a connection.

use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::{BudgetFull, MemoryPurpose, MemoryShare, Reservation};

use super::connection::HEAD_BYTES;

/// The unit in which memory is reserved. The first unit of a head is never refused, so that small requests are answered while
/// others use the memory up.
const STEP_BYTES: usize = 4 * 1024;

/// The memory of one connection's heads. Its stream counts what is read, and its requests end the count. Clones are handles to
/// the same memory.
#[derive(Clone)]
pub(super) struct HeadMemory(Arc<Inner>);

struct Inner {
    share: MemoryShare,
    phase: Mutex<Phase>,
}

/// The part of an exchange that a connection is in.
enum Phase {
    /// A head arrives.
    Head {
        /// The bytes of it that hyper has.
        bytes: usize,
        reserved: Option<Reservation>,
    },
    /// A request is being answered.
    Answer,
}

impl Phase {
    /// The phase in which nothing of a head has arrived.
    const IDLE: Self = Self::Head { bytes: 0, reserved: None };
}

impl HeadMemory {
    /// The memory of a connection of which nothing is read, in the connection's share.
    pub(super) fn new(share: MemoryShare) -> Self {
        Self(Arc::new(Inner { share, phase: Mutex::new(Phase::IDLE) }))
    }

    /// Reserves the memory of an unfinished head. It is called before each read.
    pub(super) fn reserve(&self) -> Result<(), BudgetFull> {
        let Inner { share, phase } = &*self.0;
        let Phase::Head { bytes, reserved } = &mut *phase.lock() else { return Ok(()) };
        let wanted = bytes.next_multiple_of(STEP_BYTES).min(HEAD_BYTES);
        match reserved {
            _ if *bytes == 0 => {}
            Some(reserved) if reserved.bytes() >= wanted => {}
            Some(reserved) => reserved.try_resize(wanted)?,
            None if wanted == STEP_BYTES => *reserved = Some(share.charge(MemoryPurpose::Heads, wanted)),
            None => *reserved = Some(share.try_reserve(MemoryPurpose::Heads, wanted)?),
        }
        Ok(())
    }

    /// Counts `more` bytes that were read.
    pub(super) fn add(&self, more: usize) {
        if let Phase::Head { bytes, .. } = &mut *self.0.phase.lock() {
            *bytes = bytes.saturating_add(more);
        }
    }

    /// Ends the count, since the head is whole. Returns the reservation, for as long as the request has the head.
    pub(super) fn begin_answer(&self) -> Option<Reservation> {
        match std::mem::replace(&mut *self.0.phase.lock(), Phase::Answer) {
            Phase::Head { reserved, .. } => reserved,
            Phase::Answer => None,
        }
    }

    /// Begins to count the next head.
    pub(super) fn end_answer(&self) {
        *self.0.phase.lock() = Phase::IDLE;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use relay_core::{MemoryBudget, MemoryLimits};

    use super::*;

    #[test]
    fn a_head_counts_in_steps_from_its_second_read_to_its_end() {
        let budget = MemoryBudget::default();
        let held = || budget.held(MemoryPurpose::Heads);
        let heads = HeadMemory::new(budget.connection(Some(Ipv4Addr::LOCALHOST.into())));
        heads.reserve().unwrap();
        heads.add(1);
        assert_eq!(held(), 0);
        for (more, reserved) in [(0, 1), (STEP_BYTES - 1, 1), (1, 2), (HEAD_BYTES, 16), (HEAD_BYTES, 16)] {
            heads.add(more);
            heads.reserve().unwrap();
            assert_eq!(held(), reserved * STEP_BYTES);
        }
        let reserved = heads.begin_answer();
        assert_eq!(held(), HEAD_BYTES, "the request has the head");
        drop(reserved);
        // Bytes of a body.
        heads.add(HEAD_BYTES);
        heads.reserve().unwrap();
        heads.end_answer();
        heads.reserve().unwrap();
        assert_eq!(held(), 0);
        heads.add(1);
        heads.reserve().unwrap();
        assert_eq!(held(), STEP_BYTES);
    }

    #[test]
    fn a_share_that_is_used_up_refuses_the_second_step_and_not_the_first() {
        let mut limits = MemoryLimits::default();
        (limits.max_address_bytes, limits.max_connection_bytes) = (STEP_BYTES, STEP_BYTES);
        let budget = MemoryBudget::new(limits);
        let [first, second] =
            [(); 2].map(|()| HeadMemory::new(budget.connection(Some(Ipv4Addr::LOCALHOST.into()))));
        first.add(STEP_BYTES);
        first.reserve().unwrap();
        second.add(1);
        second.reserve().unwrap();
        for heads in [&first, &second] {
            heads.add(STEP_BYTES);
            assert!(heads.reserve().is_err());
        }
        assert_eq!(budget.held(MemoryPurpose::Heads), 2 * STEP_BYTES);
    }
}
