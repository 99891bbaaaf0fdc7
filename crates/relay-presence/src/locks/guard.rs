//! Whether an edit may have its place: the one question that is asked of locks inside a document's order.

use relay_core::{Actor, Draft, FencingToken, LockScope, PublishError, Region, UserId, WriteGuard};
use relay_events::{DOCUMENT_EDITED, DOCUMENT_UNLOCKED};

use super::{Lease, Locks};

impl WriteGuard for Locks {
    /// Edits are checked, and the ends of locks are noted as they pass; everything else passes.
    ///
    /// An edit touches the region that its metadata names, or else the whole document. Locks of others that overlap that
    /// keep it out. One that names a token is made under that lock, which must be the author's, cover the edit, and not
    /// have ended.
    fn check(&self, draft: &Draft) -> Result<(), PublishError> {
        if draft.kind == DOCUMENT_UNLOCKED {
            if let Some(event) = draft.id {
                let mut shard = self.shard(&draft.document).lock();
                shard.get_mut(&draft.document).into_iter().for_each(|entry| entry.note_placed(event));
            }
            return Ok(());
        }
        if draft.kind != DOCUMENT_EDITED {
            return Ok(());
        }
        let claim = Claim::of(draft)?;
        let monotonic = self.0.clock.monotonic();
        let shard = self.shard(&draft.document).lock();
        match shard.get(&draft.document) {
            Some(entry) => claim.check(entry.table().live(monotonic)),
            None => claim.check(std::iter::empty()),
        }
    }
}

/// What an edit says of itself.
struct Claim<'a> {
    user: Option<&'a UserId>,
    scope: LockScope,
    token: Option<FencingToken>,
}

impl<'a> Claim<'a> {
    fn of(draft: &'a Draft) -> Result<Self, PublishError> {
        let invalid = |key, detail| PublishError::InvalidClaim { key, detail };
        let region = draft.metadata.get(LockScope::REGION_KEY).map(Region::new).transpose();
        let region = region.map_err(|error| invalid(LockScope::REGION_KEY, error.to_string()))?;
        let token = draft.metadata.get(LockScope::TOKEN_KEY).map(|text| {
            let detail = || {
                format!(
                    "`{}` is no token; it must be a whole number",
                    text.chars().take(32).collect::<String>()
                )
            };
            text.parse().map(FencingToken::new).map_err(|_| invalid(LockScope::TOKEN_KEY, detail()))
        });
        let user = match &draft.actor {
            Actor::User(user) => Some(user),
            Actor::Service(_) | Actor::System => None,
        };
        Ok(Self { user, scope: LockScope::of(region), token: token.transpose()? })
    }

    fn check<'l>(&self, live: impl Iterator<Item = &'l Lease>) -> Result<(), PublishError> {
        let (mut is_covered, mut in_the_way) = (false, None);
        for lease in live.filter(|lease| lease.scope.overlaps(&self.scope)) {
            if Some(&lease.holder) != self.user {
                in_the_way.get_or_insert(lease);
            } else if Some(lease.token) == self.token {
                is_covered = lease.scope == LockScope::Document || lease.scope == self.scope;
            }
        }
        match (self.token, in_the_way) {
            (Some(token), _) if !is_covered => {
                Err(PublishError::StaleLock { token, holder: in_the_way.map(|lease| lease.holder.clone()) })
            }
            (_, Some(lease)) => {
                Err(PublishError::Locked { scope: lease.scope.clone(), holder: lease.holder.clone() })
            }
            _ => Ok(()),
        }
    }
}
