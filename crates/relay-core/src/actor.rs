//! [`Actor`]: the cause of an event.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::{InvalidId, ServiceName, UserId, excerpt};

/// The cause of an event. Its text form is `user:<id>`, `service:<name>` or `system`.
///
/// ```
/// use relay_core::Actor;
///
/// let actor: Actor = "user:ada".parse()?;
/// assert_eq!(actor.to_string(), "user:ada");
/// assert_eq!("system".parse::<Actor>()?, Actor::System);
/// # Ok::<(), relay_core::InvalidId>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Actor {
    /// A person.
    User(UserId),
    /// A backend service.
    Service(ServiceName),
    /// Relay itself.
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user:{id}"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::System => f.write_str("system"),
        }
    }
}

impl FromStr for Actor {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text.split_once(':') {
            Some(("user", id)) => UserId::new(id).map(Self::User),
            Some(("service", name)) => ServiceName::new(name).map(Self::Service),
            None if text == "system" => Ok(Self::System),
            _ => Err(InvalidId::Malformed {
                what: "actor",
                value: excerpt(text),
                reason: "it must be `user:<id>`, `service:<name>` or `system`",
            }),
        }
    }
}

impl Serialize for Actor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
