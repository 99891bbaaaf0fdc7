//! Ways to a service: HTTP, and what is allowed to be reached.

mod addresses;
mod http;
mod outbound;
mod signature;

pub use self::http::{HttpTarget, HttpTargetConfig};
pub use self::outbound::{HostPattern, Outbound, OutboundError, OutboundPolicy};
pub(crate) use self::outbound::{causes_of, read_some};
pub use self::signature::{InvalidSecret, Signer};
