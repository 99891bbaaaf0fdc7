//! Locks on the wire: requests as JSON, leases as JSON.

use std::time::Duration;

use relay_core::{
    CommandError, ErrorCode, FencingToken, JsonText, LockScope, Membership, Region, Timestamp, UserId,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{AcquireRequest, Lease, Locks};
use crate::commands::json;
use relay_core::DocumentId;

#[derive(Deserialize)]
struct Acquire {
    region: Option<Region>,
    ttl_ms: Option<u64>,
    wait_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Renew {
    token: FencingToken,
    ttl_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Release {
    token: FencingToken,
}

/// A lease on the wire.
#[derive(Serialize)]
struct LeaseForm<'a> {
    token: FencingToken,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<&'a Region>,
    holder: &'a UserId,
    expires_at: Timestamp,
    ttl_ms: u64,
}

impl<'a> From<&'a Lease> for LeaseForm<'a> {
    fn from(lease: &'a Lease) -> Self {
        Self {
            token: lease.token,
            region: lease.scope.region(),
            holder: &lease.holder,
            expires_at: lease.expires_at,
            ttl_ms: u64::try_from(lease.ttl.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The locks that are held in a document, as a JSON array.
pub fn held_json(locks: &Locks, document: &DocumentId) -> JsonText {
    let held = locks.held(document);
    let forms: Vec<LeaseForm<'_>> = held.iter().map(LeaseForm::from).collect();
    json(&forms).unwrap_or_else(|_| JsonText::from_raw(serde_json::value::RawValue::NULL))
}

/// Does what a participant asks for: `lock:acquire` `{region?, ttl_ms?, wait_ms?}`, `lock:renew` `{token, ttl_ms?}` or
/// `lock:release` `{token}`. The answer is the lease, `{token, region?, holder, expires_at, ttl_ms}`. `None` when it is none of
/// them.
///
/// Cancel-safe, as [`Locks::acquire`], [`Locks::renew`] and [`Locks::release`] are.
///
/// # Errors
/// `invalid_request`, and those of [`LockError`](super::LockError).
pub async fn request(
    locks: &Locks,
    membership: &Membership,
    name: &str,
    payload: &JsonText,
) -> Option<Result<JsonText, CommandError>> {
    Some(match name {
        "lock:acquire" => acquire(locks, membership, payload).await,
        "lock:renew" => renew(locks, membership, payload).await,
        "lock:release" => release(locks, membership, payload).await,
        _ => return None,
    })
}

async fn acquire(
    locks: &Locks,
    membership: &Membership,
    payload: &JsonText,
) -> Result<JsonText, CommandError> {
    let Acquire { region, ttl_ms, wait_ms } = parse(payload)?;
    let request = AcquireRequest {
        scope: LockScope::of(region),
        ttl: ttl_ms.map(Duration::from_millis),
        wait: Duration::from_millis(wait_ms.unwrap_or(0)),
    };
    lease(&locks.acquire(&membership.document, &membership.user, request).await?)
}

async fn renew(locks: &Locks, membership: &Membership, payload: &JsonText) -> Result<JsonText, CommandError> {
    let Renew { token, ttl_ms } = parse(payload)?;
    lease(
        &locks
            .renew(&membership.document, &membership.user, token, ttl_ms.map(Duration::from_millis))
            .await?,
    )
}

async fn release(
    locks: &Locks,
    membership: &Membership,
    payload: &JsonText,
) -> Result<JsonText, CommandError> {
    let Release { token } = parse(payload)?;
    lease(&locks.release(&membership.document, &membership.user, token).await?)
}

fn parse<T: DeserializeOwned>(payload: &JsonText) -> Result<T, CommandError> {
    serde_json::from_str(payload.as_str()).map_err(|error| {
        CommandError::new(
            ErrorCode::InvalidRequest,
            format!("the payload is not what this request takes: {error}"),
        )
    })
}

fn lease(lease: &Lease) -> Result<JsonText, CommandError> {
    json(&LeaseForm::from(lease))
}
