//! The ways to ask a service: HTTP, a TCP connection, the gRPC health checking protocol.

mod grpc;
mod http;
mod tcp;

use std::sync::Arc;

use relay_core::HealthProbe;

use crate::rules::{ProbeCheck, ProbeSpec};
use crate::target::Outbound;

/// The origin of a probe.
#[derive(Clone)]
pub(crate) enum ProbeSource {
    /// As the specification says, at the address.
    Spec(ProbeSpec, String),
    /// By this code.
    Custom(Arc<dyn HealthProbe>),
}

/// The probe that is meant, and how often it is used.
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
