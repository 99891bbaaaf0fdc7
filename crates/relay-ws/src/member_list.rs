//! The members of a room, in the order in which they came.
//!
//! A member that leaves becomes a hole, so that a batch on its way finds the others where they were. Holes are removed when
//! they are half of the list or more, so that leaving takes constant time on average, after a binary search.

/// The key of a member in its room. It is never given out twice by one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The members of a room: each has a ticket, and the key of its connection in the shard.
#[derive(Debug, Default)]
pub(crate) struct MemberList {
    /// Ordered by ticket.
    slots: Vec<Slot>,
    /// The slots that are no holes.
    len: usize,
    next_ticket: u64,
}

#[derive(Debug)]
struct Slot {
    ticket: Ticket,
    /// `None` for a hole.
    connection: Option<usize>,
}

impl MemberList {
    /// Adds a member in a slot behind all others.
    pub(crate) fn push(&mut self, connection: usize) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.slots.push(Slot { ticket, connection: Some(connection) });
        self.len += 1;
        ticket
    }

    /// Makes the member with `ticket` a hole, if it is there.
    pub(crate) fn remove(&mut self, ticket: Ticket) {
        if let Ok(index) = self.slots.binary_search_by_key(&ticket, |slot| slot.ticket)
            && self.slots[index].connection.take().is_some()
        {
            self.len -= 1;
        }
    }

    /// Removes the holes if they are half of the slots or more. Slots get new indices.
    pub(crate) fn compact(&mut self) {
        if self.slots.len() >= 2 * self.len {
            self.slots.retain(|slot| slot.connection.is_some());
        }
    }

    /// True without members.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of slots, holes included.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The member in the slot at `index`; `None` for a hole.
    pub(crate) fn at(&self, index: usize) -> Option<(Ticket, usize)> {
        let slot = self.slots.get(index)?;
        Some((slot.ticket, slot.connection?))
    }

    /// The connections of all members.
    pub(crate) fn connections(&self) -> Vec<usize> {
        self.slots.iter().filter_map(|slot| slot.connection).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Remove(prop::sample::Index),
        Compact,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0_usize..100).prop_map(Step::Push),
            3 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => Just(Step::Compact),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Beside a plain list of all members that ever came.
        #[test]
        fn members_keep_their_order_and_their_tickets(steps in steps()) {
            let mut list = MemberList::default();
            let mut tickets: Vec<Ticket> = Vec::new();
            let mut model: Vec<(Ticket, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(connection) => {
                        let ticket = list.push(connection);
                        prop_assert!(tickets.iter().all(|earlier| *earlier < ticket));
                        tickets.push(ticket);
                        model.push((ticket, connection));
                    }
                    Step::Remove(index) if !tickets.is_empty() => {
                        let ticket = tickets[index.index(tickets.len())];
                        list.remove(ticket);
                        model.retain(|member| member.0 != ticket);
                    }
                    Step::Remove(_) => {}
                    Step::Compact => {
                        list.compact();
                        prop_assert!(list.slots() <= 2 * model.len());
                    }
                }
                let members: Vec<_> = (0..list.slots()).filter_map(|index| list.at(index)).collect();
                prop_assert_eq!(&members, &model);
                prop_assert_eq!(list.is_empty(), model.is_empty());
                prop_assert_eq!(list.connections(), model.iter().map(|member| member.1).collect::<Vec<_>>());
            }
        }
    }
}
