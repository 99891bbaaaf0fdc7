//! The probe by a TCP connection that is opened and closed.

use async_trait::async_trait;
use relay_core::{HealthProbe, ProbeFailure};
use tokio::net::TcpStream;

use crate::target::Outbound;

pub(super) struct TcpProbe {
    pub(super) outbound: Outbound,
    pub(super) url: String,
}

#[async_trait]
impl HealthProbe for TcpProbe {
    async fn check(&self) -> Result<(), ProbeFailure> {
        let addresses = self.outbound.addresses_of(&self.url).await;
        let addresses = addresses.map_err(|error| ProbeFailure::new(error.to_string()))?;
        match TcpStream::connect(&*addresses).await {
            Ok(_) => Ok(()),
            Err(error) => Err(ProbeFailure::new(format!("cannot connect to {addresses:?}: {error}"))),
        }
    }
}
