//! [`CausesKey`]: the key of the signatures of chains, and the form of a signed chain: `quality,grammar;<signature>`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use super::SIGNATURE_SEPARATOR;

/// The beginning of what is signed. It keeps these signatures apart from any others that the key may ever make.
const LABEL: &[u8] = b"relay.causes.v1";

/// The bytes of a signature: HMAC-SHA256 in base64url.
pub(super) const SIGNATURE_BYTES: usize = 43;

/// The key with which a router signs the chains of causes that it delivers. The signatures of one key hold in every server that
/// has it.
#[derive(Clone)]
pub struct CausesKey(hmac::Key);

impl fmt::Debug for CausesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CausesKey").finish_non_exhaustive()
    }
}

/// A chain that a publisher may not give its event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnverifiedChain {
    #[error("it has no signature of this server")]
    Unsigned,
    #[error("its signature is not {SIGNATURE_BYTES} characters of base64url")]
    Malformed,
    #[error("its signature is that of another chain, or of another server")]
    Mismatch,
}

impl CausesKey {
    /// The number of bytes that a key is made from.
    pub const BYTES: usize = 32;

    /// The key that is made from `bytes`, which are random and secret.
    pub fn new(bytes: &[u8; Self::BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// Returns `chain` with its signature.
    pub(super) fn sign(&self, chain: &str) -> String {
        let tag = hmac::sign(&self.0, &signed_bytes(chain));
        format!("{chain}{SIGNATURE_SEPARATOR}{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// Returns the chain of a signed `value`.
    pub(super) fn verify<'a>(&self, value: &'a str) -> Result<&'a str, UnverifiedChain> {
        let (chain, signature) = value.rsplit_once(SIGNATURE_SEPARATOR).ok_or(UnverifiedChain::Unsigned)?;
        let tag = URL_SAFE_NO_PAD.decode(signature).map_err(|_| UnverifiedChain::Malformed)?;
        if signature.len() != SIGNATURE_BYTES {
            return Err(UnverifiedChain::Malformed);
        }
        // Takes the same time wherever the signatures differ.
        let verified = hmac::verify(&self.0, &signed_bytes(chain), &tag);
        verified.map(|()| chain).map_err(|_| UnverifiedChain::Mismatch)
    }
}

/// The bytes that are signed. The document is not among them: a result may be in another one, and loops go over several.
fn signed_bytes(chain: &str) -> Vec<u8> {
    [LABEL, chain.as_bytes()].join(&0)
}
