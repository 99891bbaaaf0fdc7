//! Who is in a document, as readers see it: versions, so that each reader is told what leads from what it knows to what is.
//!
//! Every change gives its entry a new version. What was there and is not is remembered for a while, with the versions
//! between which it was: a reader that has seen it is told that it left, and one that has not is told nothing of it. A reader
//! that stands before all that is remembered is given the whole state. Texts that several readers want are made once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;

use bytes::Bytes;
use relay_core::{ConnectionId, JsonText, PresenceChange, UserId};

use crate::crdt::{Entry, EntryKey, Merged, Replica};

/// A point in the changes of all documents: it only grows.
pub(crate) type Version = u64;

/// The most departures that are remembered. A reader that has not read for so many gets the whole state.
const MAX_DEPARTED: usize = 4_096;
/// Diffs that are kept for others who want the same.
const KEPT_DIFFS: usize = 4;

/// An entry that is no more.
#[derive(Debug)]
struct Departed {
    came: Version,
    went: Version,
    key: EntryKey,
    entry: Entry,
}

#[derive(Debug)]
pub(crate) struct Roster {
    replica: Replica,
    /// When each entry came.
    came: HashMap<EntryKey, Version>,
    departed: VecDeque<Departed>,
    /// Readers before this cannot be told what has changed.
    floor: Version,
    version: Version,
    state: Option<(Version, JsonText)>,
    diffs: VecDeque<(Version, Version, JsonText)>,
}

impl Roster {
    /// An empty roster, at a version that no reader of an earlier one has reached.
    pub(crate) fn new(replica: Replica, version: Version) -> Self {
        Self {
            replica,
            came: HashMap::new(),
            departed: VecDeque::new(),
            floor: version,
            version,
            state: None,
            diffs: VecDeque::new(),
        }
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Puts in or changes the presence of a connection of this node.
    pub(crate) fn put(&mut self, version: Version, connection: ConnectionId, user: UserId, state: Box<str>) {
        let key = self.replica.key(connection);
        let (replaced, _delta) = self.replica.put(connection, user, state);
        if let Some(entry) = replaced {
            self.depart(version, key, entry);
        }
        self.came.insert(key, version);
        self.version = version;
    }

    /// Takes out the presence of a connection of this node.
    pub(crate) fn remove(&mut self, version: Version, connection: ConnectionId) {
        let key = self.replica.key(connection);
        if let Some((entry, _delta)) = self.replica.remove(connection) {
            self.depart(version, key, entry);
            self.version = version;
        }
    }

    /// Takes in what another node tells.
    pub(crate) fn merge(&mut self, version: Version, merge: impl FnOnce(&mut Replica) -> Merged) {
        let Merged { added, removed } = merge(&mut self.replica);
        if added.is_empty() && removed.is_empty() {
            return;
        }
        for (key, entry) in removed {
            self.depart(version, key, entry);
        }
        self.came.extend(added.into_iter().map(|key| (key, version)));
        self.version = version;
    }

    fn depart(&mut self, went: Version, key: EntryKey, entry: Entry) {
        let came = self.came.remove(&key).unwrap_or_default();
        self.departed.push_back(Departed { came, went, key, entry });
        if self.departed.len() > MAX_DEPARTED
            && let Some(forgotten) = self.departed.pop_front()
        {
            self.floor = forgotten.went;
        }
    }

    /// What a reader that has read up to `position` is told next, and where it stands then. One that has read nothing gets
    /// the state. A text that was made for another reader is good enough if it leads to `visible` at least, so that while
    /// many come at once a text is made for each time that changes become visible, and not for each who comes.
    pub(crate) fn read(&mut self, position: Option<Version>, visible: Version) -> (PresenceChange, Version) {
        match position {
            Some(position) if position >= self.floor => {
                let (version, diff) = self.diff(position, visible);
                (PresenceChange::Diff(diff), version)
            }
            _ => {
                let (version, state) = self.state(visible);
                (PresenceChange::State(state), version)
            }
        }
    }

    /// Who is there just now.
    pub(crate) fn present(&self) -> JsonText {
        match &self.state {
            Some((version, state)) if *version == self.version => state.clone(),
            _ => object(self.replica.iter()),
        }
    }

    /// Forgets texts that were made for readers.
    pub(crate) fn forget_texts(&mut self) {
        self.state = None;
        self.diffs.clear();
    }

    fn state(&mut self, visible: Version) -> (Version, JsonText) {
        if let Some((version, state)) = &self.state
            && *version >= self.floor.max(visible)
        {
            return (*version, state.clone());
        }
        let state = object(self.replica.iter());
        self.state = Some((self.version, state.clone()));
        (self.version, state)
    }

    fn diff(&mut self, from: Version, visible: Version) -> (Version, JsonText) {
        let is_enough = |(of, until, _): &&(Version, Version, JsonText)| *of == from && *until >= visible;
        if let Some((_, until, diff)) = self.diffs.iter().find(is_enough) {
            return (*until, diff.clone());
        }
        let to = self.version;
        let joins =
            self.replica.iter().filter(|(key, _)| self.came.get(key).is_some_and(|came| *came > from));
        let leaves = self.departed.iter().rev().take_while(|departed| departed.went > from);
        let leaves =
            leaves.filter(|departed| departed.came <= from).map(|departed| (&departed.key, &departed.entry));
        let (joins, leaves) = (object(joins), object(leaves));
        let diff = text(format!(r#"{{"joins":{},"leaves":{}}}"#, joins.as_str(), leaves.as_str()));
        self.diffs.push_back((from, to, diff.clone()));
        if self.diffs.len() > KEPT_DIFFS {
            self.diffs.pop_front();
        }
        (to, diff)
    }
}

/// Entries as the `phoenix` client has them: `{user: {"metas": [meta, …]}}`.
fn object<'a>(entries: impl Iterator<Item = (&'a EntryKey, &'a Entry)>) -> JsonText {
    let mut users: BTreeMap<&UserId, Vec<(&EntryKey, &Entry)>> = BTreeMap::new();
    for (key, entry) in entries {
        users.entry(&entry.user).or_default().push((key, entry));
    }
    let mut json = String::from("{");
    for (user, mut metas) in users {
        if json.len() > 1 {
            json.push(',');
        }
        // The order of coming, as far as one node knows it.
        metas.sort_by_key(|(key, entry)| (key.node, entry.counter));
        let name = serde_json::Value::from(user.as_str());
        let _ = write!(json, r#"{name}:{{"metas":["#);
        for (index, (key, entry)) in metas.into_iter().enumerate() {
            if index > 0 {
                json.push(',');
            }
            meta(&mut json, *key, entry);
        }
        json.push_str("]}");
    }
    json.push('}');
    text(json)
}

fn meta(json: &mut String, key: EntryKey, entry: &Entry) {
    let node = key.node.as_u64();
    let _ = write!(json, r#"{{"phx_ref":"{node:x}.{:x}""#, entry.counter);
    if let Some(previous) = entry.previous {
        let _ = write!(json, r#","phx_ref_prev":"{node:x}.{previous:x}""#);
    }
    if !entry.state.is_empty() {
        json.push(',');
        json.push_str(&entry.state);
    }
    json.push('}');
}

fn text(json: String) -> JsonText {
    // It is put together of JSON; `null` would be the harmless consequence of a bug.
    JsonText::parse(Bytes::from(json))
        .unwrap_or_else(|_| JsonText::from_raw(serde_json::value::RawValue::NULL))
}
