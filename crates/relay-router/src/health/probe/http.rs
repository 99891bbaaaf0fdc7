//! The probe by an HTTP GET: it checks the status and a text in the body.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method};
use relay_core::{HealthProbe, ProbeFailure};

use crate::target::{Outbound, causes_of, read_some};

/// The most bytes of a body that are searched.
const MAX_BODY: usize = 64 * 1024;

pub(super) struct HttpProbe {
    pub(super) outbound: Outbound,
    pub(super) url: String,
    pub(super) path: String,
    pub(super) status: u16,
    pub(super) body: Option<String>,
}

#[async_trait]
impl HealthProbe for HttpProbe {
    async fn check(&self) -> Result<(), ProbeFailure> {
        let url = self.outbound.check_url(&self.url).map_err(|error| ProbeFailure::new(error.to_string()))?;
        let target_url =
            url.join(&self.path).map_err(|error| ProbeFailure::new(format!("`{}`: {error}", self.path)))?;
        // A path such as `//other.example/` would lead to a host that is not checked.
        if target_url.origin() != url.origin() {
            return Err(ProbeFailure::new(format!("path `{}` leads to another host", self.path)));
        }
        let answer =
            self.outbound.client().send(Method::GET, target_url, HeaderMap::new(), Bytes::new()).await;
        let answer = answer.map_err(|error| ProbeFailure::new(causes_of(&error)))?;
        let status = answer.status().as_u16();
        if status != self.status {
            return Err(ProbeFailure::new(format!("status {status} instead of {}", self.status)));
        }
        let Some(wanted) = &self.body else { return Ok(()) };
        let body = read_some(answer, MAX_BODY).await.map_err(|error| ProbeFailure::new(causes_of(&error)))?;
        if String::from_utf8_lossy(&body).contains(wanted) {
            Ok(())
        } else {
            Err(ProbeFailure::new(format!("`{wanted}` is not in the first {MAX_BODY} bytes of the body")))
        }
    }
}
