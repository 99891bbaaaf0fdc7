//! Signatures of Standard Webhooks (<https://www.standardwebhooks.com>), over the message's id, the time and the body.
//!
//! Each secret in use signs. So a secret can be rotated while the receiver still has the old one.

use standardwebhooks::Webhook;

/// A secret that cannot sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a signing secret must be `whsec_` and the Base64 of 24 to 64 bytes: {detail}")]
pub struct InvalidSecret {
    /// The mistake, without the secret itself.
    detail: String,
}

/// The signer of deliveries, with all secrets in use.
pub(crate) struct Signer(Vec<Webhook>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} secrets)", self.0.len())
    }
}

impl Signer {
    /// A signer with all of `secrets`.
    ///
    /// # Errors
    /// [`InvalidSecret`].
    pub(crate) fn new<S: AsRef<str>>(secrets: &[S]) -> Result<Self, InvalidSecret> {
        let webhook = |secret: &S| {
            Webhook::new(secret.as_ref()).map_err(|error| InvalidSecret { detail: error.to_string() })
        };
        Ok(Self(secrets.iter().map(webhook).collect::<Result<_, _>>()?))
    }

    /// Returns the value of `webhook-signature`, or none without a secret.
    ///
    /// # Errors
    /// [`InvalidSecret`], if a secret cannot sign.
    pub(crate) fn sign(
        &self,
        id: &str,
        timestamp: i64,
        body: &[u8],
    ) -> Result<Option<String>, InvalidSecret> {
        let sign = |webhook: &Webhook| {
            webhook.sign(id, timestamp, body).map_err(|error| InvalidSecret { detail: error.to_string() })
        };
        let signatures: Vec<_> = self.0.iter().map(sign).collect::<Result<_, _>>()?;
        Ok((!signatures.is_empty()).then(|| signatures.join(" ")))
    }
}
