//! The probes of a service: HTTP, a TCP connection, and the gRPC health checking protocol.

mod grpc;
mod http;
mod tcp;

use std::sync::Arc;

use relay_core::HealthProbe;

use crate::rules::{ProbeCheck, ProbeSpec};
use crate::target::Outbound;

/// The source of a probe.
#[derive(Clone)]
pub(crate) enum ProbeSource {
    /// A specification, with the address of the service.
    Spec(ProbeSpec, String),
    /// An implementation that the library's user brought.
    Custom(Arc<dyn HealthProbe>),
}

/// Returns the probe of `source`, and the specification that gives its interval and time-out.
pub(crate) fn build_probe(source: &ProbeSource, outbound: &Outbound) -> (Arc<dyn HealthProbe>, ProbeSpec) {
    match source {
        ProbeSource::Custom(probe) => (Arc::clone(probe), ProbeSpec::default()),
        ProbeSource::Spec(spec, url) => {
            let (url, outbound) = (url.clone(), outbound.clone());
            let probe: Arc<dyn HealthProbe> = match spec.check.clone() {
                ProbeCheck::Http { path, status, body } => {
                    Arc::new(http::HttpProbe { outbound, url, path, status, body })
                }
                ProbeCheck::Grpc { service } => Arc::new(grpc::GrpcProbe { outbound, url, service }),
                ProbeCheck::Tcp | ProbeCheck::Heartbeat => Arc::new(tcp::TcpProbe { outbound, url }),
            };
            (probe, spec.clone())
        }
    }
}
