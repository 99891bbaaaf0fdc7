//! Which connections are let in when they are accepted. Pure counting: a place is taken, and given back when dropped.
//!
//! A connection that is refused is told so, which costs a place too, of a fixed few; when those are taken as well
//! it is closed without a word.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many connections are told at once that they are refused.
pub(crate) const MAX_REFUSALS: usize = 256;

/// How many are let in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections that are open at once.
    pub(crate) connections: usize,
    /// Of them from one address.
    pub(crate) per_address: usize,
}

/// Counts who is in.
#[derive(Debug)]
pub(crate) struct Doors {
    limits: Limits,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    open: usize,
    refusals: usize,
    /// An entry lives as long as a connection of its address.
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    inside: Arc<Mutex<Inside>>,
    of: PlaceOf,
}

#[derive(Debug)]
enum PlaceOf {
    Guest(Option<IpAddr>),
    Refusal,
}

/// What becomes of a connection.
#[derive(Debug)]
pub(crate) enum Entry {
    LetIn(Place),
    /// It is to be told why not.
    Refused(Place, Refusal),
    /// It is closed.
    Ignored,
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full { max: usize },
    TooManyFromAddress { max: usize, address: IpAddr },
}

impl Doors {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, inside: Arc::default() }
    }

    /// How many are in.
    pub(crate) fn open(&self) -> usize {
        self.inside.lock().open
    }

    /// Decides about a connection from `address`; `None` is not counted by address.
    pub(crate) fn enter(&self, address: Option<IpAddr>) -> Entry {
        let Limits { connections, per_address } = self.limits;
        let mut inside = self.inside.lock();
        let from_address =
            address.map(|address| (address, inside.by_address.get(&address).copied().unwrap_or(0)));
        let refusal = match from_address {
            _ if inside.open >= connections => Refusal::Full { max: connections },
            Some((address, open)) if open >= per_address => {
                Refusal::TooManyFromAddress { max: per_address, address }
            }
            _ => {
                inside.open += 1;
                if let Some(address) = address {
                    *inside.by_address.entry(address).or_default() += 1;
                }
                return Entry::LetIn(self.place(PlaceOf::Guest(address)));
            }
        };
        if inside.refusals >= MAX_REFUSALS {
            return Entry::Ignored;
        }
        inside.refusals += 1;
        Entry::Refused(self.place(PlaceOf::Refusal), refusal)
    }

    fn place(&self, of: PlaceOf) -> Place {
        Place { inside: Arc::clone(&self.inside), of }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.inside.lock();
        match self.of {
            PlaceOf::Refusal => inside.refusals -= 1,
            PlaceOf::Guest(address) => {
                inside.open -= 1;
                if let Some(address) = address
                    && let Some(open) = inside.by_address.get_mut(&address)
                {
                    *open -= 1;
                    if *open == 0 {
                        inside.by_address.remove(&address);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ADA: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const BEN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    #[track_caller]
    fn let_in(entry: Entry) -> Place {
        match entry {
            Entry::LetIn(place) => place,
            other => panic!("not let in: {other:?}"),
        }
    }

    #[track_caller]
    fn refused(entry: Entry) -> (Place, Refusal) {
        match entry {
            Entry::Refused(place, refusal) => (place, refusal),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn each_limit_refuses_and_a_place_that_is_given_back_is_free() {
        let doors = Doors::new(Limits { connections: 3, per_address: 2 });
        let first = let_in(doors.enter(Some(ADA)));
        let _second = let_in(doors.enter(Some(ADA)));
        assert_eq!(refused(doors.enter(Some(ADA))).1, Refusal::TooManyFromAddress { max: 2, address: ADA });
        let _third = let_in(doors.enter(Some(BEN)));
        assert_eq!(refused(doors.enter(None)).1, Refusal::Full { max: 3 });
        drop(first);
        let _proxied = let_in(doors.enter(None));
        assert_eq!(doors.open(), 3);
    }

    #[test]
    fn nothing_of_an_address_stays_behind() {
        let doors = Doors::new(Limits { connections: 3, per_address: 2 });
        let places = [let_in(doors.enter(Some(ADA))), let_in(doors.enter(Some(BEN)))];
        drop(places);
        assert_eq!(doors.open(), 0);
        assert!(doors.inside.lock().by_address.is_empty());
    }

    #[test]
    fn only_so_many_are_told_that_they_are_refused() {
        let doors = Doors::new(Limits { connections: 1, per_address: 1 });
        let _in = let_in(doors.enter(None));
        let mut told: Vec<_> = (0..MAX_REFUSALS).map(|_| refused(doors.enter(None))).collect();
        assert!(matches!(doors.enter(None), Entry::Ignored));
        told.pop();
        refused(doors.enter(None));
    }
}
