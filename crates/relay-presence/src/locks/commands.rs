//! The commands about locks: `lock:acquire`, `lock:renew` and `lock:release`. Each is answered with the lease.

use std::time::Duration;

use relay_core::{Command, FencingToken, Lease, LockScope, MemoryShare, Region};
use serde::{Deserialize, Deserializer};

/// The arguments of [`Locks::acquire`](super::Locks::acquire).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AcquireRequest {
    /// The part of the document to lock.
    pub scope: LockScope,
    /// The length of the lease; [`LockConfig::default_ttl`](super::LockConfig::default_ttl) if not given.
    pub ttl: Option<Duration>,
    /// The longest time to wait for the lock. With zero the request does not wait.
    pub wait: Duration,
    /// The share of memory of the client, to which the lock counts; `None` where it counts to no client.
    pub memory: Option<MemoryShare>,
}

impl AcquireRequest {
    /// A request for `scope` that does not wait, for a lease of the default length.
    pub const fn new(scope: LockScope) -> Self {
        Self { scope, ttl: None, wait: Duration::ZERO, memory: None }
    }

    /// Sets the length of the lease.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the longest time to wait for the lock.
    pub const fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sets the share of memory to which the lock counts.
    pub fn memory(mut self, memory: Option<MemoryShare>) -> Self {
        self.memory = memory;
        self
    }
}

/// Acquires a lock for the participant. Waits for the lock as long as `wait` allows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AcquireLock {
    /// The region to lock; the whole document if not given.
    pub region: Option<Region>,
    /// The length of the lease in milliseconds; [`LockConfig::default_ttl`](super::LockConfig::default_ttl) if not given.
    #[serde(rename = "ttl_ms", default, deserialize_with = "millis")]
    pub ttl: Option<Duration>,
    /// The longest time to wait for the lock, in milliseconds; zero if not given.
    #[serde(rename = "wait_ms", default, deserialize_with = "millis")]
    pub wait: Option<Duration>,
}

impl AcquireLock {
    /// The arguments with which the command calls [`Locks::acquire`](super::Locks::acquire).
    pub fn into_request(self) -> AcquireRequest {
        let Self { region, ttl, wait } = self;
        AcquireRequest { scope: LockScope::of(region), ttl, wait: wait.unwrap_or_default(), memory: None }
    }
}

impl Command for AcquireLock {
    const NAME: &'static str = "lock:acquire";
    type Reply = Lease;
}

/// Prolongs one of the participant's leases.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RenewLock {
    /// The token of the lock.
    pub token: FencingToken,
    /// The length of the lease from now on, in milliseconds; the default if not given.
    #[serde(rename = "ttl_ms", default, deserialize_with = "millis")]
    pub ttl: Option<Duration>,
}

impl Command for RenewLock {
    const NAME: &'static str = "lock:renew";
    type Reply = Lease;
}

/// Releases one of the participant's locks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ReleaseLock {
    /// The token of the lock.
    pub token: FencingToken,
}

impl Command for ReleaseLock {
    const NAME: &'static str = "lock:release";
    type Reply = Lease;
}

fn millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
}
