//! The open connections: how many there may be, which of them has to be woken because a time has come, and whether
//! the server is stopping. One ticker looks after all of them instead of a timer in each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use relay_core::ConnectionId;

/// A moment, by the monotonic clock, at which a connection wants to be polled.
#[derive(Debug)]
pub(crate) struct Alarm {
    due_micros: AtomicU64,
    waker: AtomicWaker,
}

impl Alarm {
    fn new() -> Self {
        Self { due_micros: AtomicU64::new(u64::MAX), waker: AtomicWaker::new() }
    }

    /// Whom to wake.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// When to wake, by the monotonic clock; the former moment is forgotten.
    pub(crate) fn set(&self, due: Duration) {
        self.due_micros.store(u64::try_from(due.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn ring_if_due(&self, now: Duration) {
        if u128::from(self.due_micros.load(Ordering::Relaxed)) <= now.as_micros() {
            self.waker.wake();
        }
    }
}

/// Why a connection is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    Full { max: usize },
    Stopping,
}

#[derive(Debug)]
pub(crate) struct Registry {
    max: usize,
    open: Mutex<HashMap<ConnectionId, Arc<Alarm>>>,
    stopping: AtomicBool,
}

impl Registry {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, open: Mutex::default(), stopping: AtomicBool::new(false) }
    }

    /// Counts a connection as open for as long as the admission is held.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Admission, NotAdmitted> {
        let mut open = self.open.lock();
        if self.is_stopping() {
            return Err(NotAdmitted::Stopping);
        }
        if open.len() >= self.max {
            return Err(NotAdmitted::Full { max: self.max });
        }
        let (connection, alarm) = (ConnectionId::new(), Arc::new(Alarm::new()));
        open.insert(connection, Arc::clone(&alarm));
        Ok(Admission { registry: Arc::clone(self), connection, alarm })
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.open.lock().len()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Admits nobody any more and wakes everybody, so that they see it.
    pub(crate) fn stop(&self) {
        let open = self.open.lock();
        self.stopping.store(true, Ordering::Release);
        open.values().for_each(|alarm| alarm.waker.wake());
    }

    /// Wakes the connections whose moment has come.
    pub(crate) fn tick(&self, now: Duration) {
        self.open.lock().values().for_each(|alarm| alarm.ring_if_due(now));
    }
}

/// An open connection's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    registry: Arc<Registry>,
    pub(crate) connection: ConnectionId,
    pub(crate) alarm: Arc<Alarm>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.registry.open.lock().remove(&self.connection);
    }
}
