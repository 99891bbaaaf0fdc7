//! Targets: over HTTP and in this process, and the policy of allowed addresses.

mod addresses;
mod answer;
mod client;
mod http;
#[cfg(test)]
mod http_tests;
mod in_process;
#[cfg(test)]
mod interop_tests;
mod outbound;
mod signature;

pub(crate) use self::answer::{causes_of, read_some};
pub(crate) use self::http::{HttpTarget, HttpTargetConfig};
pub use self::in_process::InProcessTarget;
pub(crate) use self::outbound::Outbound;
pub use self::outbound::{HostPattern, OutboundError, OutboundPolicy};
pub use self::signature::InvalidSecret;
