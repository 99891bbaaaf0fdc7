//! The gRPC health checking protocol, <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use async_trait::async_trait;
use relay_core::{HealthProbe, ProbeFailure};
use tonic::transport::{ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::target::Outbound;

pub(super) struct GrpcProbe {
    pub(super) outbound: Outbound,
    pub(super) url: String,
    /// Empty: the server as a whole.
    pub(super) service: String,
}

#[async_trait]
impl HealthProbe for GrpcProbe {
    async fn check(&self) -> Result<(), ProbeFailure> {
        let failure = |error: &dyn std::error::Error| ProbeFailure::new(crate::target::causes_of(error));
        let url = self.outbound.check_url(&self.url).map_err(|error| failure(&error))?;
        let addresses = self.outbound.addresses_of(&self.url).await.map_err(|error| failure(&error))?;
        let address = addresses.first().ok_or_else(|| ProbeFailure::new("its name has no address"))?;
        // Connects to exactly the address that was checked; the name is for TLS and the authority alone.
        let scheme = url.scheme();
        let endpoint =
            Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|error| failure(&error))?;
        let authority = url.authority().parse().map_err(|error: http::uri::InvalidUri| failure(&error))?;
        let mut endpoint = endpoint.origin(
            http::Uri::builder()
                .scheme(scheme)
                .authority::<http::uri::Authority>(authority)
                .path_and_query("/")
                .build()
                .map_err(|error| failure(&error))?,
        );
        if scheme == "https" {
            let tls =
                ClientTlsConfig::new().domain_name(url.host_str().unwrap_or_default()).with_webpki_roots();
            endpoint = endpoint.tls_config(tls).map_err(|error| failure(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| failure(&error))?;
        let request = HealthCheckRequest { service: self.service.clone() };
        let answer = HealthClient::new(channel).check(request).await.map_err(|error| failure(&error))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            status => Err(ProbeFailure::new(format!("it says {}", status.as_str_name()))),
        }
    }
}
