//! The offsets of the events that wait, so that the log keeps them until they are delivered.

use std::collections::BTreeMap;

use relay_core::Offset;

/// The offsets of waiting events, each with the number of its queue entries.
#[derive(Debug, Default)]
pub(super) struct NeededOffsets(BTreeMap<Offset, usize>);

impl NeededOffsets {
    pub(super) fn add(&mut self, offset: Offset) {
        *self.0.entry(offset).or_default() += 1;
    }

    /// Undoes one [`NeededOffsets::add`].
    pub(super) fn remove(&mut self, offset: Offset) {
        if let Some(count) = self.0.get_mut(&offset) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&offset);
            }
        }
    }

    pub(super) fn first(&self) -> Option<Offset> {
        self.0.first_key_value().map(|(offset, _)| *offset)
    }
}
