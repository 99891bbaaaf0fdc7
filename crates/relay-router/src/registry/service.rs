//! What services say of themselves, and what they are told.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use relay_core::{ServiceName, Timestamp};
use relay_events::ServiceState;
use serde::{Deserialize, Serialize};

use crate::rules::{Capability, DeliveryFormat, ProbeSpec};
use crate::store::StoreError;
use crate::target::OutboundError;

/// What a service says of itself when it registers.
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
    /// Where deliveries go, `http` or `https`; at most 2,048 bytes.
    pub url: String,
    /// Its version, for people; at most 128 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it can do; at most 32.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Its share beside others.
    #[serde(default = "one")]
    pub weight: NonZeroU32,
    /// Whatever else operators may want to know; at most 32 entries of 1,024 bytes each.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// The form of deliveries.
    #[serde(default)]
    pub format: DeliveryFormat,
    /// How its health is asked for; heartbeats alone unless given.
    #[serde(default)]
    pub probe: ProbeSpec,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl Registration {
    /// A service at `url` of which nothing more is said.
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

    /// Checks the limits that the fields' types do not have.
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

/// Names a lease. Who has it may renew and end it.
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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
        id.map(Self).ok_or_else(|| {
            "a lease's id has 32 hexadecimal digits; use the one that registering gave".to_owned()
        })
    }
}

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

/// What a service gets when it has registered.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Registered {
    /// The service as it is known now.
    pub service: ServiceInfo,
    /// Renewed by heartbeats.
    pub lease: LeaseId,
    /// How long it may be silent.
    pub ttl: Duration,
    /// How often it shall send a heartbeat.
    pub heartbeat_every: Duration,
    /// What deliveries to it are signed with.
    pub secret: String,
    /// True when it was not registered before.
    pub is_new: bool,
}

/// A sign of life, with what the service says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// How it is.
    pub state: ReportedState,
    /// Why it is degraded; at most 256 characters are kept.
    pub reason: Option<String>,
}

impl Heartbeat {
    /// A service that says how it is.
    pub fn new(state: ReportedState, reason: Option<String>) -> Self {
        Self { state, reason: reason.map(|reason| reason.chars().take(256).collect()) }
    }
}

/// What a service can say of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportedState {
    /// It works.
    #[default]
    Healthy,
    /// It works with errors; others are preferred.
    Degraded,
}

/// A service as it is known.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceInfo {
    /// Its name.
    pub name: ServiceName,
    /// Where deliveries go; none for a target in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// Its share beside others.
    pub weight: NonZeroU32,
    /// What else it has said of itself.
    pub metadata: BTreeMap<String, String>,
    /// Whether it works.
    pub state: ServiceState,
    /// Why, where there is more to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// When it registered; none for those that the configuration or this process has brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<Timestamp>,
    /// The last sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat: Option<Timestamp>,
}

/// A registration as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceRecord {
    pub(crate) name: ServiceName,
    pub(crate) registration: Registration,
    pub(crate) registered_at: Timestamp,
    pub(crate) lease: LeaseId,
    pub(crate) secret: String,
    /// The secret before, and until when it is used too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) old_secret: Option<(String, Timestamp)>,
}

impl ServiceRecord {
    /// What deliveries are signed with at `now`, the newest first.
    pub(crate) fn secrets(&self, now: Timestamp) -> Vec<String> {
        let old = self.old_secret.iter().filter(|(_, until)| *until > now).map(|(secret, _)| secret.clone());
        std::iter::once(self.secret.clone()).chain(old).collect()
    }
}

/// A service's state has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceChange {
    /// The service.
    pub(crate) service: ServiceName,
    /// Its state now.
    pub(crate) state: ServiceState,
    /// Why, where there is more to say.
    pub(crate) reason: Option<String>,
}

/// Which services are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceQuery {
    /// Those that can do this.
    pub capability: Option<Capability>,
    /// Those in this state; unless asked for, services that are gone are left out.
    pub state: Option<ServiceState>,
}

impl ServiceQuery {
    /// Those that can do `capability`, and are in `state`.
    pub fn new(capability: Option<Capability>, state: Option<ServiceState>) -> Self {
        Self { capability, state }
    }
}

/// Why a service is not registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The configuration or this process has a target of this name.
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
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// There is too much of something.
    #[error("{count} {what} are too many; there may be {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How much there is, or would be.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Its address must not be reached.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// Its lease does not allow it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a lease is not renewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// No such service is registered, or it was silent for too long.
    #[error("no service `{service}` is registered, or it was silent for too long; register again")]
    Unknown {
        /// The name.
        service: ServiceName,
    },
    /// Somebody else has registered under this name since.
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
            lease: LeaseId::random(),
            secret: "new".to_owned(),
            old_secret: Some(("old".to_owned(), until)),
        };
        assert_eq!(record.secrets(Timestamp::from_micros(999_999)), ["new", "old"]);
        assert_eq!(record.secrets(until), ["new"]);
    }
}
