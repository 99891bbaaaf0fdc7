//! Signatures as Standard Webhooks has them (<https://www.standardwebhooks.com>): over the message's id, the time and the
//! body, with each of the secrets that are in use, so that a secret can be changed without a moment in which the
//! receiver has the wrong one.

use standardwebhooks::Webhook;

/// A secret that cannot sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a signing secret must be `whsec_` and the Base64 of 24 to 64 bytes: {detail}")]
pub struct InvalidSecret {
    /// What is wrong with it. The secret itself is not told.
    detail: String,
}

/// Signs with one or more secrets.
pub(crate) struct Signer(Vec<Webhook>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} secrets)", self.0.len())
    }
}

impl Signer {
    /// Signs with all of `secrets`.
    ///
    /// # Errors
    /// [`InvalidSecret`].
    pub(crate) fn new<S: AsRef<str>>(secrets: &[S]) -> Result<Self, InvalidSecret> {
        let webhook = |secret: &S| {
            Webhook::new(secret.as_ref()).map_err(|error| InvalidSecret { detail: error.to_string() })
        };
        Ok(Self(secrets.iter().map(webhook).collect::<Result<_, _>>()?))
    }

    /// The value of `webhook-signature`; none when there is no secret.
    ///
    /// # Errors
    /// [`InvalidSecret`], when a secret cannot be used after all.
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
