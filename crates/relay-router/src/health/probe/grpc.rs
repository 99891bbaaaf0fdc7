//! The probe by the gRPC health checking protocol,
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use http::Uri;
use hyper_util::rt::TokioIo;
use relay_core::{HealthProbe, ProbeFailure};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use url::Url;

use crate::target::{Outbound, causes_of};

/// The most bytes that a probe reads. The answer takes a few hundred, and the handshake of TLS a few thousand. HTTP/2 has no
/// limit of its own for interim answers, which wait in memory.
const MAX_READ_BYTES: u64 = 64 * 1024;

pub(super) struct GrpcProbe {
    pub(super) outbound: Outbound,
    pub(super) url: String,
    /// The name to ask for; empty for the server as a whole.
    pub(super) service: String,
}

#[async_trait]
impl HealthProbe for GrpcProbe {
    async fn check(&self) -> Result<(), ProbeFailure> {
        let url = self.outbound.check_url(&self.url).map_err(failure)?;
        let addresses = self.outbound.addresses_of(&self.url).await.map_err(failure)?;
        let channel = connect(&url, &addresses).await?;
        let request = HealthCheckRequest { service: self.service.clone() };
        let answer = HealthClient::new(channel).check(request).await;
        let answer = answer.map_err(|status| {
            ProbeFailure::new(format!("it answers {:?}: {}", status.code(), status.message()))
        })?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            status => Err(ProbeFailure::new(format!("it says {}", status.as_str_name()))),
        }
    }
}

/// Connects to the first address that accepts a connection.
async fn connect(url: &Url, addresses: &[SocketAddr]) -> Result<Channel, ProbeFailure> {
    let mut failed = ProbeFailure::new("its name has no address");
    for address in addresses {
        let address = *address;
        let connector = tower::service_fn(move |_: Uri| connect_bounded(address));
        match endpoint(url, address)?.connect_with_connector(connector).await {
            Ok(channel) => return Ok(channel),
            Err(error) => failed = failure(error),
        }
    }
    Err(failed)
}

/// Connects to `address`. The stream ends after [`MAX_READ_BYTES`].
async fn connect_bounded(
    address: SocketAddr,
) -> io::Result<TokioIo<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (reading, writing) = stream.into_split();
    Ok(TokioIo::new(tokio::io::join(reading.take(MAX_READ_BYTES), writing)))
}

/// Returns an endpoint for exactly the address that was checked. The host's name serves TLS and the authority
/// only.
fn endpoint(url: &Url, address: SocketAddr) -> Result<Endpoint, ProbeFailure> {
    let scheme = url.scheme();
    let origin = Uri::builder().scheme(scheme).authority(url.authority()).path_and_query("/").build();
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(failure)?;
    let endpoint = endpoint.origin(origin.map_err(failure)?);
    if scheme != "https" {
        return Ok(endpoint);
    }
    let tls = ClientTlsConfig::new().domain_name(url.host_str().unwrap_or_default()).with_enabled_roots();
    endpoint.tls_config(tls).map_err(failure)
}

fn failure(error: impl std::error::Error) -> ProbeFailure {
    ProbeFailure::new(causes_of(&error))
}
