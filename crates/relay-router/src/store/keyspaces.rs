//! The database's keyspaces, and the state that they hold at the start.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use relay_core::{Offset, ServiceName};

use super::error::{StoreError, parse};
use super::keys;
use super::letter_counts::{LetterChanges, LetterCounts};
use super::loss_ring::LossRing;
use super::write_batch::{Change, Column, NewValue, WriteDurability};
use crate::delivery::state::{LEAST_QUEUED, Overflow};
use crate::records::{DeadLetterId, QueuedEvent, RouteId, RouteRecord};

/// The memory for values that are read from disk. Reads are rare: at the start, and for requests about dead letters.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

type Keys = Vec<Vec<u8>>;
type KeyAndValue = (Vec<u8>, Vec<u8>);

/// The bytes of values after which a page ends.
const PAGE_BYTES: usize = 1024 * 1024;

/// Entries that are read together. At least one, if there is one; otherwise bounded in number and in [`PAGE_BYTES`].
pub(super) struct Page {
    pub(super) entries: Vec<KeyAndValue>,
    /// True if there are further entries behind these.
    pub(super) has_more: bool,
}

impl Page {
    fn read(
        entries: impl Iterator<Item = Result<fjall::KvPair, fjall::Error>>,
        limit: usize,
    ) -> Result<Self, fjall::Error> {
        let (mut page, mut bytes) = (Self { entries: Vec::new(), has_more: false }, 0);
        for entry in entries {
            let (key, value) = entry?;
            bytes += value.len();
            if page.entries.len() == limit || (bytes > PAGE_BYTES && !page.entries.is_empty()) {
                page.has_more = true;
                break;
            }
            page.entries.push((key.to_vec(), value.to_vec()));
        }
        Ok(page)
    }
}

/// The open keyspaces. Clones share the database.
#[derive(Clone)]
pub(super) struct Keyspaces {
    db: Database,
    pub(super) meta: Keyspace,
    pub(super) routes: Keyspace,
    pub(super) queue: Keyspace,
    pub(super) dead_letters: Keyspace,
    pub(super) replays: Keyspace,
    pub(super) services: Keyspace,
    pub(super) losses: Keyspace,
    pub(super) letter_counts: LetterCounts,
    loss_ring: LossRing,
    limits: StoreLimits,
}

/// The limits of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreLimits {
    /// The most events of each route that are read at the start.
    pub(crate) queued: usize,
    /// The most bytes of the events of all routes that are read at the start, beyond a few of each route.
    pub(crate) queued_bytes: usize,
    /// The most dead letters that are kept for each target. The latest stay.
    pub(crate) dead_letters: usize,
    /// The most decisions about losses that are kept. The latest stay.
    pub(crate) losses: usize,
}

/// The state of routing when the store was opened.
#[derive(Debug)]
pub(crate) struct PersistedState {
    /// The offset up to which the log was routed; none before anything was routed.
    pub(crate) cursor: Option<Offset>,
    pub(crate) routes: Vec<(RouteId, RouteRecord)>,
    /// The first events of each route.
    pub(crate) queue: Vec<(RouteId, Offset, QueuedEvent)>,
    /// The further events of the routes that have more.
    pub(crate) overflows: BTreeMap<RouteId, Overflow>,
}

impl Keyspaces {
    pub(super) fn open(directory: &Path, limits: StoreLimits) -> Result<Self, fjall::Error> {
        let db = Database::builder(directory).cache_size(CACHE_BYTES).manual_journal_persist(true).open()?;
        let keyspace = |name: &str| db.keyspace(name, KeyspaceCreateOptions::default);
        Ok(Self {
            meta: keyspace("meta")?,
            routes: keyspace("routes")?,
            queue: keyspace("queue")?,
            dead_letters: keyspace("dead_letters")?,
            replays: keyspace("replays")?,
            services: keyspace("services")?,
            losses: keyspace("losses")?,
            letter_counts: LetterCounts::default(),
            loss_ring: LossRing::default(),
            limits,
            db,
        })
    }

    fn column(&self, column: Column) -> &Keyspace {
        match column {
            Column::Meta => &self.meta,
            Column::Routes => &self.routes,
            Column::Queue => &self.queue,
            Column::DeadLetters => &self.dead_letters,
            Column::Replays => &self.replays,
            Column::Services => &self.services,
            Column::Losses => &self.losses,
        }
    }

    /// Writes all `changes` as one, without the oldest dead letters of targets that have too many, and removes the oldest
    /// losses where there are too many. Called by the writer alone, so that all numbers are exact and no two batches drop the
    /// same one.
    pub(super) fn write<'a>(
        &self,
        changes: impl Iterator<Item = &'a Change> + Clone,
        durability: WriteDurability,
    ) -> Result<(), fjall::Error> {
        let mut letters = self.letter_changes(changes.clone())?;
        let mut batch = self.db.batch();
        let mut dropped = HashSet::new();
        for (target, excess) in self.letter_counts.excess(&letters, self.limits.dead_letters) {
            let (stored, added) = self.excess_dead_letters(&target, changes.clone(), excess)?;
            let count = stored.len() + added.len();
            let all = self.letter_counts.dropped(&target) + count as u64;
            batch.insert(&self.meta, keys::dropped_letters(&target), all.to_string());
            letters.drop_excess(target, count, stored.last().cloned());
            dropped.extend(stored.into_iter().chain(added));
        }
        for key in &dropped {
            batch.remove(&self.dead_letters, key.as_slice());
        }
        let added_losses = changes.clone().filter(|change| change.column == Column::Losses);
        let added_losses: Vec<_> = added_losses.map(|change| change.key.as_slice()).collect();
        let old_losses = self.loss_ring.excess(&self.losses, added_losses.len(), self.limits.losses)?;
        for key in &old_losses {
            batch.remove(&self.losses, key.as_slice());
        }
        let mut increases = HashMap::<_, u64>::new();
        for Change { column, key, value } in changes {
            match value {
                _ if *column == Column::DeadLetters && dropped.contains(key) => {}
                NewValue::Put(value) => batch.insert(self.column(*column), key.as_slice(), value.as_slice()),
                NewValue::Removed => batch.remove(self.column(*column), key.as_slice()),
                NewValue::Increased(by) => *increases.entry((*column, key)).or_default() += by,
            }
        }
        for ((column, key), by) in increases {
            let keyspace = self.column(column);
            let stored = keyspace.get(key)?.map(|value| parse_number(&value)).transpose()?;
            let number = stored.unwrap_or(0).saturating_add(by);
            batch.insert(keyspace, key.as_slice(), number.to_string());
        }
        batch.commit()?;
        self.letter_counts.apply(letters);
        self.loss_ring.apply(&added_losses, &old_losses);
        self.db.persist(match durability {
            WriteDurability::Buffered => PersistMode::Buffer,
            WriteDurability::Synced => PersistMode::SyncAll,
        })
    }

    /// The keys of `count` letters of `target` that give way to those that `changes` write: the lowest of the stored ones, and
    /// then, where the written ones alone are too many, the lowest of these.
    fn excess_dead_letters<'a>(
        &self,
        target: &ServiceName,
        changes: impl Iterator<Item = &'a Change>,
        count: usize,
    ) -> Result<(Keys, Keys), fjall::Error> {
        let prefix = keys::dead_letters_of(target);
        let of_target =
            changes.filter(|change| change.column == Column::DeadLetters && change.key.starts_with(&prefix));
        let touched: BTreeMap<&[u8], bool> =
            of_target.map(|change| (change.key.as_slice(), change.is_put())).collect();
        let mut stored = Vec::new();
        let from = self.letter_counts.first_key(target).unwrap_or_else(|| prefix.clone());
        for item in self.dead_letters.range(from..) {
            let key = item.key()?;
            if !key.starts_with(&prefix) || stored.len() == count {
                break;
            }
            if !touched.contains_key(&*key) {
                stored.push(key.to_vec());
            }
        }
        let written = touched.iter().filter(|(_, exists)| **exists).map(|(key, _)| key.to_vec());
        let written = written.take(count - stored.len()).collect();
        Ok((stored, written))
    }

    /// The letters that `changes` add and remove. A letter that replaces one with the same id is neither.
    fn letter_changes<'a>(
        &self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Result<LetterChanges, fjall::Error> {
        let of_letters = changes.filter(|change| change.column == Column::DeadLetters);
        // Later changes of a key replace earlier ones.
        let last: HashMap<_, _> = of_letters.map(|change| (&change.key, change.is_put())).collect();
        let mut letters = LetterChanges::default();
        for (key, will_exist) in last {
            let Some(target) = keys::parse_dead_letter_target(key) else { continue };
            if will_exist {
                letters.write(target.clone(), key);
            }
            match (self.dead_letters.contains_key(key)?, will_exist) {
                (false, true) => letters.add(target),
                (true, false) => letters.remove(target),
                (false, false) | (true, true) => {}
            }
        }
        Ok(letters)
    }

    /// Up to `limit` queue entries of a route from `from` on.
    pub(super) fn queued(&self, route: RouteId, from: Offset, limit: usize) -> Result<Page, fjall::Error> {
        let range = keys::queued(route, from)..=keys::queued(route, Offset::new(u64::MAX));
        Page::read(self.queue.range(range).map(fjall::Guard::into_inner), limit)
    }

    /// Up to `limit` dead letters of `target` after `after`.
    pub(super) fn dead_letters(
        &self,
        target: &ServiceName,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<Page, fjall::Error> {
        let prefix = keys::dead_letters_of(target);
        let from = match after {
            // The first key after that of `after`.
            Some(after) => [keys::dead_letter(target, after), vec![0]].concat(),
            None => prefix.clone(),
        };
        let letters = self.dead_letters.range(from..).map(fjall::Guard::into_inner);
        let of_target =
            letters.take_while(|item| item.as_ref().map_or(true, |(key, _)| key.starts_with(&prefix)));
        Page::read(of_target, limit)
    }

    /// Reads everything that routing needs at its start, and counts the dead letters and the losses. Each route has its first
    /// events, up to the limit, and the number of the others.
    pub(super) fn read_all(&self, directory: &Arc<str>) -> Result<PersistedState, StoreError> {
        let failed = |error: fjall::Error| StoreError::failed(directory, &error);
        let malformed =
            |column: &str| StoreError::failed(directory, &format_args!("a key of `{column}` is malformed"));
        let cursor = self.meta.get(keys::CURSOR).map_err(failed)?;
        let cursor = cursor.map(|value| parse(directory, &value)).transpose()?;
        let mut routes = BTreeMap::<RouteId, RouteRecord>::new();
        for item in self.routes.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let route = keys::parse_route(&key).ok_or_else(|| malformed("routes"))?;
            routes.insert(route, parse(directory, &value)?);
        }
        let (mut queue, mut overflows) = (Vec::new(), BTreeMap::<RouteId, Overflow>::new());
        let (mut in_memory, mut bytes) = ((None, 0), 0);
        for item in self.queue.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let (route, offset) = keys::parse_queued(&key).ok_or_else(|| malformed("queue"))?;
            if in_memory.0 != Some(route) {
                in_memory = (Some(route), 0);
            }
            let is_full = bytes >= self.limits.queued_bytes && in_memory.1 >= LEAST_QUEUED;
            if in_memory.1 < self.limits.queued && !is_full {
                let queued: QueuedEvent = parse(directory, &value)?;
                in_memory.1 += 1;
                bytes += queued.approx_bytes();
                queue.push((route, offset, queued));
            } else {
                overflows.entry(route).or_insert(Overflow { from: offset, count: 0 }).count += 1;
            }
        }
        let mut letters = LetterChanges::default();
        for item in self.dead_letters.iter() {
            let key = item.key().map_err(failed)?;
            letters.add(keys::parse_dead_letter_target(&key).ok_or_else(|| malformed("dead_letters"))?);
        }
        self.letter_counts.apply(letters);
        for item in self.meta.prefix(keys::DROPPED_LETTERS) {
            let (key, value) = item.into_inner().map_err(failed)?;
            let target = keys::parse_dropped_letters(&key).ok_or_else(|| malformed("meta"))?;
            self.letter_counts.restore_dropped(target, parse(directory, &value)?);
        }
        let losses: Keys = self
            .losses
            .iter()
            .map(|item| Ok(item.key()?.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        self.loss_ring.apply(&losses, &[]);
        let routes = routes.into_iter().collect();
        Ok(PersistedState { cursor, routes, queue, overflows })
    }
}

/// Reads a number that a change increases.
fn parse_number(value: &[u8]) -> Result<u64, fjall::Error> {
    Ok(serde_json::from_slice(value).map_err(io::Error::from)?)
}
