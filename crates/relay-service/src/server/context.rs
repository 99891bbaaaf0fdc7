//! The parts that the server and all of its connections share.

use relay_core::MemoryBudget;

use super::accept::AcceptPolicy;
use super::stats::HttpCounters;
use super::tls::Tls;
use crate::config::HttpConfig;

pub(super) struct ServerContext {
    pub(super) config: HttpConfig,
    /// `None` where clients are served without TLS.
    pub(super) tls: Option<Tls>,
    pub(super) policy: AcceptPolicy,
    pub(super) counters: HttpCounters,
    pub(super) memory: MemoryBudget,
}
