//! The wakers of the tasks that wait for a channel to change.
//!
//! A change wakes all of them, so they are kept in one list that is drained whole. A task keeps the key of its waker,
//! which is valid until the list is drained: polling again replaces the waker, and leaving frees its slot. So the list is
//! never longer than the number of tasks that wait.

use std::task::Waker;

#[derive(Debug, Default)]
pub(crate) struct WakerSet {
    wakers: Vec<Waker>,
    free: Vec<usize>,
    generation: u64,
}

/// The slot of one waker, valid until the set is drained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WakerKey {
    index: usize,
    generation: u64,
}

impl WakerSet {
    /// Adds `waker`, or replaces the one under `key`.
    pub(crate) fn register(&mut self, key: &mut Option<WakerKey>, waker: &Waker) {
        if let Some(WakerKey { index, generation }) = *key
            && generation == self.generation
            && let Some(present) = self.wakers.get_mut(index)
        {
            present.clone_from(waker);
            return;
        }
        let index = if let Some(index) = self.free.pop() {
            self.wakers[index].clone_from(waker);
            index
        } else {
            self.wakers.push(waker.clone());
            self.wakers.len() - 1
        };
        *key = Some(WakerKey { index, generation: self.generation });
    }

    /// Frees the slot of `key`.
    pub(crate) fn deregister(&mut self, key: Option<WakerKey>) {
        if let Some(WakerKey { index, generation }) = key
            && generation == self.generation
        {
            self.wakers[index].clone_from(Waker::noop());
            self.free.push(index);
        }
    }

    /// Takes all wakers out and adds them to `wakers`. Wake them after the lock is released.
    pub(crate) fn drain_into(&mut self, wakers: &mut Vec<Waker>) {
        if self.wakers.is_empty() {
            return;
        }
        self.generation += 1;
        self.free.clear();
        if wakers.is_empty() {
            let capacity = self.wakers.len();
            std::mem::swap(&mut self.wakers, wakers);
            self.wakers.reserve(capacity);
        } else {
            wakers.append(&mut self.wakers);
        }
    }
}

/// Wakes tasks. Not to be called under a lock that they take.
pub(crate) fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_never_longer_than_the_number_of_waiters() {
        let mut wakers = WakerSet::default();
        for _ in 0..100 {
            let mut key = None;
            for _ in 0..10 {
                wakers.register(&mut key, Waker::noop());
            }
            wakers.deregister(key);
        }
        assert_eq!(wakers.wakers.len(), 1);
        let mut drained = Vec::new();
        wakers.drain_into(&mut drained);
        assert_eq!(drained.len(), 1);
    }

    #[test]
    fn a_key_of_a_set_that_was_drained_is_void() {
        let mut wakers = WakerSet::default();
        let (mut old, mut new, mut drained) = (None, None, Vec::new());
        wakers.register(&mut old, Waker::noop());
        wakers.drain_into(&mut drained);
        wakers.register(&mut new, Waker::noop());
        wakers.deregister(old);
        wakers.drain_into(&mut drained);
        assert_eq!(drained.len(), 2);
        assert!(wakers.free.is_empty());
    }
}
