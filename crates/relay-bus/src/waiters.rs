//! The tasks that wait for a channel to change.
//!
//! A change wakes them all, so they stand in one list that is taken whole. Each waiter knows its place in the list
//! (while the list is the one it entered), so that polling again does not enter it twice and leaving frees the place:
//! the list is never longer than there are waiters.

use std::task::Waker;

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    wakers: Vec<Waker>,
    free: Vec<usize>,
    generation: u64,
}

/// A waiter's place in the list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    index: usize,
    generation: u64,
}

impl Waiters {
    /// Enters `waker`, or replaces the one that is at `place`.
    pub(crate) fn enter(&mut self, place: &mut Option<Place>, waker: &Waker) {
        if let Some(Place { index, generation }) = *place
            && generation == self.generation
            && let Some(entered) = self.wakers.get_mut(index)
        {
            entered.clone_from(waker);
            return;
        }
        let index = if let Some(index) = self.free.pop() {
            self.wakers[index].clone_from(waker);
            index
        } else {
            self.wakers.push(waker.clone());
            self.wakers.len() - 1
        };
        *place = Some(Place { index, generation: self.generation });
    }

    /// Gives up a place.
    pub(crate) fn leave(&mut self, place: Option<Place>) {
        if let Some(Place { index, generation }) = place
            && generation == self.generation
        {
            self.wakers[index].clone_from(Waker::noop());
            self.free.push(index);
        }
    }

    /// All who wait. Wake them after the lock is released.
    pub(crate) fn take(&mut self) -> Vec<Waker> {
        if self.wakers.is_empty() {
            return Vec::new();
        }
        self.generation += 1;
        self.free.clear();
        let capacity = self.wakers.len();
        std::mem::replace(&mut self.wakers, Vec::with_capacity(capacity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_never_longer_than_there_are_waiters() {
        let mut waiters = Waiters::default();
        for _ in 0..100 {
            let mut place = None;
            for _ in 0..10 {
                waiters.enter(&mut place, Waker::noop());
            }
            waiters.leave(place);
        }
        assert_eq!(waiters.wakers.len(), 1);
        assert_eq!(waiters.take().len(), 1);
    }

    #[test]
    fn a_place_in_a_list_that_was_taken_is_void() {
        let mut waiters = Waiters::default();
        let (mut old, mut new) = (None, None);
        waiters.enter(&mut old, Waker::noop());
        waiters.take();
        waiters.enter(&mut new, Waker::noop());
        waiters.leave(old);
        assert_eq!(waiters.take().len(), 1);
        assert!(waiters.free.is_empty());
    }
}
