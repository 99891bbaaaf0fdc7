//! [`MemberList`]: the members of a room, in the order in which they entered.
//!
//! A member that leaves becomes a hole, so that the others keep their slots while a batch is delivered. Holes are removed
//! when they are half of the list or more. So leaving takes a binary search, and constant time on average.

/// The key of a member in its room. A room never uses one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MemberId(u64);

/// The members of a room: each has an id, and the key of its connection in the shard.
#[derive(Debug, Default)]
pub(crate) struct MemberList {
    /// Ordered by id.
    slots: Vec<Slot>,
    /// The slots that are no holes.
    len: usize,
    next_id: u64,
}

#[derive(Debug)]
struct Slot {
    id: MemberId,
    /// `None` for a hole.
    connection: Option<usize>,
}

impl MemberList {
    /// Adds a member in a new slot at the end.
    pub(crate) fn push(&mut self, connection: usize) -> MemberId {
        let id = MemberId(self.next_id);
        self.next_id += 1;
        self.slots.push(Slot { id, connection: Some(connection) });
        self.len += 1;
        id
    }

    /// Makes the member with `id` a hole, if it is there.
    pub(crate) fn remove(&mut self, id: MemberId) {
        if let Ok(index) = self.slots.binary_search_by_key(&id, |slot| slot.id)
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

    /// The number of members.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number of slots, holes included.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The member in the slot at `index`; `None` for a hole.
    pub(crate) fn at(&self, index: usize) -> Option<(MemberId, usize)> {
        let slot = self.slots.get(index)?;
        Some((slot.id, slot.connection?))
    }

    /// Removes the last member. Returns its connection.
    pub(crate) fn pop(&mut self) -> Option<usize> {
        let connection = std::iter::from_fn(|| self.slots.pop()).find_map(|slot| slot.connection)?;
        self.len -= 1;
        Some(connection)
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
        Pop,
        Compact,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0_usize..100).prop_map(Step::Push),
            3 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => Just(Step::Pop),
            1 => Just(Step::Compact),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Compared with a plain list of all members that ever entered.
        #[test]
        fn members_keep_their_order_and_their_tickets(steps in steps()) {
            let mut list = MemberList::default();
            let mut ids: Vec<MemberId> = Vec::new();
            let mut model: Vec<(MemberId, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(connection) => {
                        let id = list.push(connection);
                        prop_assert!(ids.iter().all(|earlier| *earlier < id));
                        ids.push(id);
                        model.push((id, connection));
                    }
                    Step::Remove(index) if !ids.is_empty() => {
                        let id = ids[index.index(ids.len())];
                        list.remove(id);
                        model.retain(|member| member.0 != id);
                    }
                    Step::Remove(_) => {}
                    Step::Pop => prop_assert_eq!(list.pop(), model.pop().map(|member| member.1)),
                    Step::Compact => {
                        list.compact();
                        prop_assert!(list.slots() <= 2 * model.len());
                    }
                }
                let members: Vec<_> = (0..list.slots()).filter_map(|index| list.at(index)).collect();
                prop_assert_eq!(&members, &model);
                prop_assert_eq!(list.is_empty(), model.is_empty());
                prop_assert_eq!(list.len(), model.len());
            }
        }
    }
}
