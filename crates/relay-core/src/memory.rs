//! [`MemoryBudget`]: one budget in bytes for all that clients and services make a server hold.
//!
//! The budget is a tree of [shares](MemoryShare). A connection's share is part of its address's, a document's cache is part
//! of the share of all caches, and each ends in the total. Bytes count from the moment at which they are reserved until the
//! [`Reservation`] is dropped. So the numbers are those of the present, and nothing has to be counted back.
//!
//! A share that is used up refuses what a client asks for. A cache has another policy: it charges its bytes in any case,
//! and drops entries while its share is [over](MemoryShare::is_over) its limit.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::ConfigError;

const MIB: usize = 1024 * 1024;

/// The limits of a [`MemoryBudget`] in bytes. Each is at least 1, and none is larger than the total.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryLimits {
    /// The most that is held for all clients and services together; 1 GiB by default.
    pub max_bytes: usize,
    /// The part of it that caches take: events in memory and their encoded copies; 512 MiB by default. The caches of the
    /// documents that were used least recently give way.
    pub max_cache_bytes: usize,
    /// The most that is held for the connections of one address; 256 MiB by default.
    pub max_address_bytes: usize,
    /// The most that is held for one connection; 16 MiB by default.
    pub max_connection_bytes: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            max_bytes: 1024 * MIB,
            max_cache_bytes: 512 * MIB,
            max_address_bytes: 256 * MIB,
            max_connection_bytes: 16 * MIB,
        }
    }
}

impl MemoryLimits {
    /// Checks that each limit is at least 1, and at most the one around it.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let total = ("max_bytes", self.max_bytes);
        let address = ("max_address_bytes", self.max_address_bytes);
        let connection = ("max_connection_bytes", self.max_connection_bytes);
        let cache = ("max_cache_bytes", self.max_cache_bytes);
        for (field, bytes) in [total, cache, address, connection] {
            if bytes == 0 {
                return Err(ConfigError::new(field, "is 0; it must be at least 1"));
            }
        }
        let pairs = [(cache, total), (address, total), (connection, address)];
        match pairs.into_iter().find(|((_, bytes), (_, most))| bytes > most) {
            Some((inner, outer)) => Err(ConfigError::exceeds(inner, outer)),
            None => Ok(()),
        }
    }
}

macro_rules! names {
    ($(#[$doc:meta])* pub enum $name:ident { $( $(#[$variant_doc:meta])* $variant:ident = $text:literal, )* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $( $(#[$variant_doc])* $variant, )* }

        impl $name {
            /// All values.
            pub const ALL: &[Self] = &[$( Self::$variant, )*];

            /// The stable name, for labels of metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }
    };
}

names! {
    /// The purpose for which bytes are held. Each has a gauge of its own.
    pub enum MemoryPurpose {
        /// Sequenced events in memory, and their encoded copies.
        Events = "events",
        /// Ephemeral events, and their encoded copies.
        Ephemerals = "ephemerals",
        /// Open documents, without their events.
        Documents = "documents",
        /// Drafts that wait for the log.
        PublishQueue = "publish_queue",
        /// Topics that connections have joined, and streams of server-sent events.
        Subscriptions = "subscriptions",
        /// Locks, requests for them, and their changes that wait for the log.
        Locks = "locks",
        /// Participants' states, those of departed participants, and encoded rosters.
        Presence = "presence",
        /// Events about sessions and users that wait for the log.
        PresenceEvents = "presence_events",
        /// Requests that are not answered yet.
        Requests = "requests",
        /// WebSocket messages that have arrived in part.
        Messages = "messages",
        /// Heads of HTTP requests that have arrived in part.
        Heads = "heads",
        /// Bodies of HTTP requests.
        Bodies = "bodies",
        /// Bytes that wait for sockets.
        Outgoing = "outgoing",
    }
}

names! {
    /// The kind of a share, which a refusal names.
    pub enum ShareKind {
        /// All that the budget covers.
        Total = "total",
        /// The caches of all documents.
        Caches = "caches",
        /// One client address.
        Address = "address",
        /// One connection.
        Connection = "connection",
        /// One document.
        Document = "document",
        /// The clients of one address in one document.
        DocumentAddress = "document_address",
    }
}

/// The refusal of bytes, since a share is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{wanted} bytes more are too many for now: the memory for {} has a limit of {limit} bytes; try again later",
    match share {
        ShareKind::Total => "all clients",
        ShareKind::Caches => "caches",
        ShareKind::Address => "your address",
        ShareKind::Connection => "this connection",
        ShareKind::Document => "this document",
        ShareKind::DocumentAddress => "your address in this document",
    }
)]
#[non_exhaustive]
pub struct BudgetFull {
    /// The kind of the share that is used up.
    pub share: ShareKind,
    /// The limit of that share in bytes.
    pub limit: usize,
    /// The bytes that were asked for.
    pub wanted: usize,
}

/// A budget in bytes, and the shares of it. Clones are handles to the same budget.
///
/// ```
/// use relay_core::{MemoryBudget, MemoryLimits, MemoryPurpose};
///
/// let budget = MemoryBudget::new(MemoryLimits::default());
/// let connection = budget.connection(None);
/// let held = connection.try_reserve(MemoryPurpose::Requests, 1000)?;
/// assert_eq!(budget.held(MemoryPurpose::Requests), 1000);
/// drop(held);
/// assert_eq!(budget.total().used(), 0);
/// # Ok::<(), relay_core::BudgetFull>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Shares>);

#[derive(Debug)]
struct Shares {
    limits: MemoryLimits,
    total: MemoryShare,
    caches: MemoryShare,
    addresses: Mutex<Addresses>,
}

/// The shares of the addresses that hold something.
#[derive(Debug, Default)]
struct Addresses {
    shares: HashMap<IpAddr, Weak<Node>>,
    /// The length of the map at which the shares that are gone are removed from it.
    sweep_at: usize,
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::new(MemoryLimits::default())
    }
}

impl MemoryBudget {
    /// A budget with these limits, of which nothing is used.
    pub fn new(limits: MemoryLimits) -> Self {
        let total = Node {
            kind: ShareKind::Total,
            limit: limits.max_bytes,
            used: AtomicUsize::new(0),
            parent: None,
            address: None,
            gauges: Arc::new(Gauges::default()),
        };
        let total = MemoryShare(Arc::new(total));
        let caches = total.child(ShareKind::Caches, limits.max_cache_bytes);
        Self(Arc::new(Shares { limits, total, caches, addresses: Mutex::default() }))
    }

    /// The share that all others are part of.
    pub fn total(&self) -> &MemoryShare {
        &self.0.total
    }

    /// The share of all caches.
    pub fn caches(&self) -> &MemoryShare {
        &self.0.caches
    }

    /// Returns the share of an address. All callers get the same one while one of them has it.
    fn address(&self, address: IpAddr) -> MemoryShare {
        let Shares { limits, total, addresses, .. } = &*self.0;
        let mut addresses = addresses.lock();
        if let Some(node) = addresses.shares.get(&address).and_then(Weak::upgrade) {
            return MemoryShare(node);
        }
        let share = total.part(ShareKind::Address, limits.max_address_bytes, Some(address));
        if addresses.shares.len() >= addresses.sweep_at {
            addresses.shares.retain(|_, share| share.strong_count() > 0);
            addresses.sweep_at = 2 * addresses.shares.len() + 64;
        }
        addresses.shares.insert(address, Arc::downgrade(&share.0));
        share
    }

    /// Returns a new share for a connection from `address`. Without an address it is part of the total alone.
    pub fn connection(&self, address: Option<IpAddr>) -> MemoryShare {
        let limit = self.0.limits.max_connection_bytes;
        match address {
            Some(address) => self.address(address).child(ShareKind::Connection, limit),
            None => self.0.total.child(ShareKind::Connection, limit),
        }
    }

    /// The bytes that are held for `purpose`.
    pub fn held(&self, purpose: MemoryPurpose) -> usize {
        self.0.total.0.gauges.held[purpose as usize].load(Ordering::Relaxed)
    }

    /// The number of refusals by shares of `kind`.
    pub fn refusals(&self, kind: ShareKind) -> u64 {
        self.0.total.0.gauges.refusals[kind as usize].load(Ordering::Relaxed)
    }
}

/// A part of a budget, with a limit of its own. Clones are handles to the same share.
#[derive(Clone)]
pub struct MemoryShare(Arc<Node>);

struct Node {
    kind: ShareKind,
    limit: usize,
    used: AtomicUsize,
    parent: Option<Arc<Node>>,
    /// The address whose share it is, or is part of.
    address: Option<IpAddr>,
    gauges: Arc<Gauges>,
}

/// The numbers of a whole budget.
#[derive(Default)]
struct Gauges {
    held: [AtomicUsize; MemoryPurpose::ALL.len()],
    refusals: [AtomicU64; ShareKind::ALL.len()],
}

impl MemoryShare {
    /// Returns a new share that is part of this one.
    pub fn child(&self, kind: ShareKind, limit: usize) -> Self {
        self.part(kind, limit, self.0.address)
    }

    /// Returns a new share that is part of this one, and belongs to `address`.
    fn part(&self, kind: ShareKind, limit: usize, address: Option<IpAddr>) -> Self {
        Self(Arc::new(Node {
            kind,
            limit,
            used: AtomicUsize::new(0),
            parent: Some(Arc::clone(&self.0)),
            address,
            gauges: Arc::clone(&self.0.gauges),
        }))
    }

    /// Reserves `bytes`.
    ///
    /// # Errors
    /// [`BudgetFull`] when this share, or one that it is part of, has too little left.
    pub fn try_reserve(&self, purpose: MemoryPurpose, bytes: usize) -> Result<Reservation, BudgetFull> {
        self.0.try_charge(Some(purpose), bytes)?;
        Ok(Reservation { node: Arc::clone(&self.0), purpose: Some(purpose), bytes })
    }

    /// Reserves `bytes` if they are free, for a caller that has another way. It counts no refusal.
    pub fn reserve_if_free(&self, purpose: MemoryPurpose, bytes: usize) -> Option<Reservation> {
        self.0.charge_if_free(Some(purpose), bytes).ok()?;
        Some(Reservation { node: Arc::clone(&self.0), purpose: Some(purpose), bytes })
    }

    /// Reserves `bytes` in this share and those around it except the total, for bytes that count to the total by another
    /// share. A participant's state is held by its document, and counts to the client that set it beside that.
    ///
    /// # Errors
    /// [`BudgetFull`] when this share, or one that it is part of, has too little left.
    pub fn try_reserve_beside(&self, bytes: usize) -> Result<Reservation, BudgetFull> {
        self.0.try_charge(None, bytes)?;
        Ok(Reservation { node: Arc::clone(&self.0), purpose: None, bytes })
    }

    /// Reserves `bytes` whatever is left, for owners that make space themselves.
    pub fn charge(&self, purpose: MemoryPurpose, bytes: usize) -> Reservation {
        self.0.charge(Some(purpose), bytes);
        Reservation { node: Arc::clone(&self.0), purpose: Some(purpose), bytes }
    }

    /// Returns `bytes` as a buffer that is charged to this share until its last clone is dropped, whatever is left.
    pub fn charged_bytes(&self, purpose: MemoryPurpose, bytes: Bytes) -> Bytes {
        self.charge(purpose, bytes.len()).hold(bytes)
    }

    /// The address of the client whose share it is, if it is known. Limits that count in other units than bytes are by address,
    /// too.
    pub fn address(&self) -> Option<IpAddr> {
        self.0.address
    }

    /// The bytes that are reserved.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// True when more is charged than the limit.
    pub fn is_over(&self) -> bool {
        self.used() > self.0.limit
    }
}

impl fmt::Debug for MemoryShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryShare({}: {} of {})", self.0.kind.as_str(), self.used(), self.0.limit)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("kind", &self.kind).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Node {
    /// This share and those that it is part of, from the inside to the total. Without a purpose the total is left out.
    fn chain(&self, purpose: Option<MemoryPurpose>) -> impl Iterator<Item = &Self> {
        let nodes = std::iter::successors(Some(self), |node| node.parent.as_deref());
        nodes.filter(move |node| purpose.is_some() || node.kind != ShareKind::Total)
    }

    /// The gauge of a purpose.
    fn held(&self, purpose: Option<MemoryPurpose>) -> Option<&AtomicUsize> {
        purpose.map(|purpose| &self.gauges.held[purpose as usize])
    }

    fn charge(&self, purpose: Option<MemoryPurpose>, bytes: usize) {
        if bytes > 0 {
            for node in self.chain(purpose) {
                node.used.fetch_add(bytes, Ordering::Relaxed);
            }
            if let Some(held) = self.held(purpose) {
                held.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    fn try_charge(&self, purpose: Option<MemoryPurpose>, bytes: usize) -> Result<(), BudgetFull> {
        self.charge_if_free(purpose, bytes).map_err(|full| {
            self.gauges.refusals[full.kind as usize].fetch_add(1, Ordering::Relaxed);
            BudgetFull { share: full.kind, limit: full.limit, wanted: bytes }
        })
    }

    /// Charges `bytes`, or returns the share that is used up.
    fn charge_if_free(&self, purpose: Option<MemoryPurpose>, bytes: usize) -> Result<(), &Self> {
        if bytes == 0 {
            return Ok(());
        }
        for (count, node) in self.chain(purpose).enumerate() {
            let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= node.limit);
            if node.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err() {
                for charged in self.chain(purpose).take(count) {
                    charged.used.fetch_sub(bytes, Ordering::Relaxed);
                }
                return Err(node);
            }
        }
        if let Some(held) = self.held(purpose) {
            held.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn release(&self, purpose: Option<MemoryPurpose>, bytes: usize) {
        if bytes > 0 {
            for node in self.chain(purpose) {
                node.used.fetch_sub(bytes, Ordering::Relaxed);
            }
            if let Some(held) = self.held(purpose) {
                held.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }
}

/// Bytes that are reserved in a share, and in all that it is part of. Dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping it gives the bytes back"]
pub struct Reservation {
    node: Arc<Node>,
    /// `None` for bytes that count to the total by another share.
    purpose: Option<MemoryPurpose>,
    bytes: usize,
}

impl Reservation {
    /// The bytes that are reserved.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it `bytes`. A smaller number is always possible.
    ///
    /// # Errors
    /// [`BudgetFull`] when too little is left; the reservation is as before.
    pub fn try_resize(&mut self, bytes: usize) -> Result<(), BudgetFull> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.node.try_charge(self.purpose, more)?,
            None => self.node.release(self.purpose, self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Makes it `bytes` whatever is left; see [`MemoryShare::charge`].
    pub fn resize(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.node.charge(self.purpose, more),
            None => self.node.release(self.purpose, self.bytes - bytes),
        }
        self.bytes = bytes;
    }
}

impl Reservation {
    /// Returns `bytes` as a buffer that keeps the reservation until its last clone is dropped.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        struct Held {
            bytes: Bytes,
            _reservation: Reservation,
        }
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        if bytes.is_empty() {
            return bytes;
        }
        Bytes::from_owner(Held { bytes, _reservation: self })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.node.release(self.purpose, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const ADA: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const BEN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
    const REQUESTS: MemoryPurpose = MemoryPurpose::Requests;

    fn limits(total: usize, address: usize, connection: usize) -> MemoryLimits {
        MemoryLimits {
            max_bytes: total,
            max_cache_bytes: total,
            max_address_bytes: address,
            max_connection_bytes: connection,
        }
    }

    #[test]
    fn what_counts_beside_another_share_counts_to_the_client_alone() {
        let budget = MemoryBudget::new(limits(100, 50, 40));
        let document = budget.total().child(ShareKind::Document, 100);
        let _state = document.try_reserve(MemoryPurpose::Presence, 30).unwrap();
        let [first, second] = [(); 2].map(|()| budget.connection(Some(ADA)));
        let mut held = first.try_reserve_beside(30).unwrap();
        assert_eq!((first.used(), budget.total().used()), (30, 30));
        assert_eq!(second.try_reserve_beside(30).unwrap_err().share, ShareKind::Address);
        assert_eq!(held.try_resize(41).unwrap_err().share, ShareKind::Connection);
        held.try_resize(10).unwrap();
        assert!(second.try_reserve_beside(30).is_ok());
        drop(held);
        assert_eq!((first.used(), budget.total().used(), budget.held(MemoryPurpose::Presence)), (0, 30, 30));
        assert_eq!((first.address(), document.address()), (Some(ADA), None));
    }

    #[test]
    fn each_share_refuses_by_its_name_and_a_refusal_takes_nothing() {
        let budget = MemoryBudget::new(limits(30, 20, 10));
        let [first, second, third] = [Some(ADA), Some(ADA), Some(BEN)].map(|of| budget.connection(of));
        let mut held = first.try_reserve(REQUESTS, 10).unwrap();
        let full = |share, limit, wanted| Err(BudgetFull { share, limit, wanted });
        assert_eq!(held.try_resize(11), full(ShareKind::Connection, 10, 1));
        let _second = second.try_reserve(REQUESTS, 10).unwrap();
        let refused = budget.connection(Some(ADA)).try_reserve(REQUESTS, 1).map(drop);
        assert_eq!(refused, full(ShareKind::Address, 20, 1));
        let _third = third.try_reserve(REQUESTS, 9).unwrap();
        assert_eq!(budget.connection(None).try_reserve(REQUESTS, 2).map(drop), full(ShareKind::Total, 30, 2));
        assert_eq!((budget.total().used(), budget.held(REQUESTS)), (29, 29));
        held.try_resize(4).unwrap();
        assert!(budget.connection(None).try_reserve(REQUESTS, 7).is_ok());
        let refusals = || {
            let kinds = [ShareKind::Connection, ShareKind::Address, ShareKind::Total];
            kinds.map(|kind| budget.refusals(kind))
        };
        assert_eq!(refusals(), [1, 1, 1]);
        assert!(first.reserve_if_free(REQUESTS, 7).is_none());
        assert_eq!((first.used(), refusals()), (4, [1, 1, 1]));
        assert_eq!(first.reserve_if_free(REQUESTS, 6).map(|six| six.bytes()), Some(6));
    }

    #[test]
    fn charged_bytes_count_once_and_until_their_last_clone_is_gone() {
        let budget = MemoryBudget::default();
        let bytes = budget.caches().charged_bytes(MemoryPurpose::Events, Bytes::from_static(b"abc"));
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!((&part[..], budget.caches().used(), budget.total().used()), (&b"bc"[..], 3, 3));
        drop(part);
        assert_eq!((budget.total().used(), budget.held(MemoryPurpose::Events)), (0, 0));
    }

    #[test]
    fn a_cache_may_go_past_its_limit_and_sees_that_it_has() {
        let budget = MemoryBudget::default();
        let document = budget.caches().child(ShareKind::Document, 10);
        let mut held = document.charge(MemoryPurpose::Events, 11);
        assert!(document.is_over());
        held.resize(10);
        assert!(!document.is_over());
    }

    #[test]
    fn nothing_of_an_address_stays_behind() {
        let budget = MemoryBudget::default();
        for last in 0..10_000_u32 {
            drop(budget.address(IpAddr::V4(Ipv4Addr::from_bits(last))));
        }
        assert!(budget.0.addresses.lock().shares.len() <= 128);
        let share = budget.address(ADA);
        let _held = share.charge(REQUESTS, 1);
        assert_eq!(budget.address(ADA).used(), 1);
    }

    #[test]
    fn a_limit_that_is_larger_than_the_one_around_it_is_refused() {
        assert_eq!(MemoryLimits::default().validate(), Ok(()));
        let error = limits(10, 11, 5).validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`max_address_bytes` is 11; it must be at most `max_bytes`, which is 10"
        );
        let error = limits(10, 10, 0).validate().unwrap_err();
        assert_eq!(error.to_string(), "`max_connection_bytes` is 0; it must be at least 1");
    }

    proptest! {
        /// Compared with plain sums.
        #[test]
        fn shares_never_hold_more_than_their_limits(
            steps in prop::collection::vec((0..3_usize, 0..40_usize, any::<prop::sample::Index>()), 1..100),
        ) {
            let budget = MemoryBudget::new(limits(90, 50, 30));
            let shares = [Some(ADA), Some(ADA), Some(BEN)].map(|of| budget.connection(of));
            let mut held: Vec<(usize, Reservation)> = Vec::new();
            let sum = |held: &[(usize, Reservation)], of: &[usize]| -> usize {
                held.iter().filter(|(owner, _)| of.contains(owner)).map(|(_, one)| one.bytes()).sum()
            };
            for (owner, bytes, index) in steps {
                if bytes % 3 == 0 && !held.is_empty() {
                    drop(held.swap_remove(index.index(held.len())));
                } else {
                    let of_address: &[usize] = if owner < 2 { &[0, 1] } else { &[2] };
                    let fits = sum(&held, &[owner]) + bytes <= 30
                        && sum(&held, of_address) + bytes <= 50
                        && sum(&held, &[0, 1, 2]) + bytes <= 90;
                    let reserved = shares[owner].try_reserve(REQUESTS, bytes);
                    prop_assert_eq!(reserved.is_ok(), fits);
                    held.extend(reserved.ok().map(|one| (owner, one)));
                }
                prop_assert_eq!(budget.total().used(), sum(&held, &[0, 1, 2]));
                prop_assert_eq!(budget.held(REQUESTS), sum(&held, &[0, 1, 2]));
            }
            held.clear();
            prop_assert_eq!(shares.map(|share| share.used()), [0, 0, 0]);
        }
    }
}
