//! The values that services and the registry exchange: registrations, heartbeats, leases and their errors.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use relay_core::{ServiceName, Timestamp};
use relay_events::ServiceState;
use serde::{Deserialize, Serialize};

use crate::rules::{Capability, DeliveryFormat, ProbeSpec};
use crate::store::StoreError;
use crate::target::OutboundError;

/// A service's registration.
///
/// ```
/// use relay_router::registry::Registration;
///
/// let json = r#"{"url": "https://sift.example/events", "capabilities": ["quality"], "probe": {"type": "tcp"}}"#;
/// let registration: Registration = serde_json::from_str(json)?;
/// assert_eq!(registration.weight.get(), 1);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Registration {
    /// The address of deliveries, `http` or `https`; at most 2,048 bytes.
    pub url: String,
    /// The version, for display; at most 128 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The capabilities; at most 32.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// The weight among the targets of a rule.
    #[serde(default = "one")]
    pub weight: NonZeroU32,
    /// Further details for operators; at most 32 entries of 1,024 bytes each.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// The form of deliveries.
    #[serde(default)]
    pub format: DeliveryFormat,
    /// The probe of its health; heartbeats alone by default.
    #[serde(default)]
    pub probe: ProbeSpec,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl Registration {
    /// A service at `url`, with the defaults for everything else.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            version: None,
            capabilities: Vec::new(),
            weight: one(),
            metadata: BTreeMap::new(),
            format: DeliveryFormat::default(),
            probe: ProbeSpec::default(),
        }
    }

    /// Checks the limits that the types of the fields do not express.
    pub(crate) fn validate(&self) -> Result<(), RegisterError> {
        let too_long = |field, bytes: usize, max| Err(RegisterError::TooLong { field, bytes, max });
        if self.url.len() > 2_048 {
            return too_long("url", self.url.len(), 2_048);
        }
        if let Some(version) = self.version.as_ref().filter(|version| version.len() > 128) {
            return too_long("version", version.len(), 128);
        }
        if self.capabilities.len() > 32 {
            return Err(RegisterError::TooMany {
                what: "capabilities",
                count: self.capabilities.len(),
                max: 32,
            });
        }
        if self.metadata.len() > 32 {
            return Err(RegisterError::TooMany {
                what: "metadata entries",
                count: self.metadata.len(),
                max: 32,
            });
        }
        match self.metadata.iter().map(|(key, value)| key.len() + value.len()).max() {
            Some(bytes) if bytes > 1_024 => too_long("metadata", bytes, 1_024),
            _ => Ok(()),
        }
    }
}

/// The id of a lease. Its holder may renew and end the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(u128);

impl LeaseId {
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for LeaseId {
    type Err = InvalidLeaseId;

    fn from_str(text: &str) -> Result<Self, InvalidLeaseId> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
        id.map(Self).ok_or(InvalidLeaseId)
    }
}

/// A text that is not a [`LeaseId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lease's id has 32 hexadecimal digits; use the one that registering gave")]
#[non_exhaustive]
pub struct InvalidLeaseId;

impl Serialize for LeaseId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LeaseId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The result of a registration.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Registered {
    /// The service after the registration.
    pub service: ServiceInfo,
    /// The lease, which heartbeats renew.
    pub lease: LeaseId,
    /// The length of the lease.
    pub ttl: Duration,
    /// The interval at which the service sends heartbeats.
    pub heartbeat_every: Duration,
    /// The secret that signs deliveries to the service.
    pub secret: String,
    /// True if the service was not registered before.
    pub is_new: bool,
}

/// A heartbeat, with the service's report about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// The reported state.
    pub state: ReportedState,
    /// The reason for being degraded; at most 256 characters are kept.
    pub reason: Option<String>,
}

impl Heartbeat {
    /// A heartbeat that reports `state`.
    pub fn new(state: ReportedState, reason: Option<String>) -> Self {
        Self { state, reason: reason.map(|reason| reason.chars().take(256).collect()) }
    }
}

/// A state that a service can report about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReportedState {
    /// The service works.
    #[default]
    Healthy,
    /// The service works with errors; others are preferred.
    Degraded,
}

/// A service as the registry sees it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceInfo {
    /// The name.
    pub name: ServiceName,
    /// The address of deliveries; `None` for a target in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The capabilities.
    pub capabilities: Vec<Capability>,
    /// The weight among the targets of a rule.
    pub weight: NonZeroU32,
    /// The details for operators.
    pub metadata: BTreeMap<String, String>,
    /// The health.
    pub state: ServiceState,
    /// The reason for the state, where one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The time of the last change of state.
    pub since: Timestamp,
    /// The time of registration; `None` for targets of the rule document and of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<Timestamp>,
    /// The time of the last heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat: Option<Timestamp>,
}

/// A registration in its stored form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceRecord {
    pub(crate) name: ServiceName,
    pub(crate) registration: Registration,
    pub(crate) registered_at: Timestamp,
    /// The address that it was registered from, if the edge knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<IpAddr>,
    pub(crate) lease: LeaseId,
    pub(crate) secret: String,
    /// The previous secret, and the end of its use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) old_secret: Option<(String, Timestamp)>,
}

impl ServiceRecord {
    /// Returns the secrets that sign deliveries at `now`, the newest first.
    pub(crate) fn secrets(&self, now: Timestamp) -> Vec<String> {
        let old = self.old_secret.iter().filter(|(_, until)| *until > now).map(|(secret, _)| secret.clone());
        std::iter::once(self.secret.clone()).chain(old).collect()
    }
}

/// A change of a service's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceChange {
    /// The service.
    pub(crate) service: ServiceName,
    /// The new state.
    pub(crate) state: ServiceState,
    /// The reason for the state, where one is known.
    pub(crate) reason: Option<String>,
}

/// A selection of services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceQuery {
    /// Selects services with this capability.
    pub capability: Option<Capability>,
    /// Selects services in this state. Without it, services that are gone are left out.
    pub state: Option<ServiceState>,
}

impl ServiceQuery {
    /// Selects services with `capability` and in `state`.
    pub fn new(capability: Option<Capability>, state: Option<ServiceState>) -> Self {
        Self { capability, state }
    }
}

/// The reason that a registration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// A target of the rule document or of this process has this name.
    #[error("`{service}` is the name of a configured target; register under another")]
    NameTaken {
        /// The name.
        service: ServiceName,
    },
    /// A text is too long.
    #[error("`{field}` has {bytes} bytes; it must have at most {max}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The length in bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A limit of a number is exceeded.
    #[error("{count} {what} are too many; there may be {max}")]
    TooMany {
        /// The things that are counted.
        what: &'static str,
        /// The number, including the refused one.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The limit of services that are registered from one address is reached.
    #[error("{max} services are registered from {address}, the most that are allowed; deregister one first")]
    TooManyFromAddress {
        /// The limit.
        max: usize,
        /// The address.
        address: IpAddr,
    },
    /// The outbound policy refuses the address.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// The lease does not allow it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The registration cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The reason that a lease is not renewed or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// No such service is registered, or its lease has expired.
    #[error("no service `{service}` is registered, or it was silent for too long; register again")]
    Unknown {
        /// The name.
        service: ServiceName,
    },
    /// The service has registered again since, or has left.
    #[error("the lease of `{service}` is lost: it has registered again since, or has left")]
    LeaseLost {
        /// The name.
        service: ServiceName,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_was_replaced_signs_beside_the_new_one_until_its_time_is_over() {
        let until = Timestamp::from_micros(1_000_000);
        let record = ServiceRecord {
            name: ServiceName::new("sift").unwrap(),
            registration: Registration::new("https://sift.example"),
            registered_at: Timestamp::UNIX_EPOCH,
            address: None,
            lease: LeaseId::random(),
            secret: "new".to_owned(),
            old_secret: Some(("old".to_owned(), until)),
        };
        assert_eq!(record.secrets(Timestamp::from_micros(999_999)), ["new", "old"]);
        assert_eq!(record.secrets(until), ["new"]);
    }
}
