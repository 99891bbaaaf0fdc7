//! TLS: the certificate, which can be read again while the server runs, and the handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::config::TlsConfig;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{} cannot be read as PEM: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file holds other things, or nothing.
    #[error("there is no {wanted} in {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// The certificate is malformed, the key is not its own, or of a kind that is not supported.
    #[error("the certificate in {} cannot be used with the key in {}: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The operating system gives no randomness, or something as basic is missing.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
    /// Reading the files ended by a bug.
    #[error("reading the certificate ended by a bug: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Why a connection did not come to speak TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the TLS handshake took longer than {0:?}")]
    TimedOut(Duration),
    #[error("the TLS handshake failed: {0}")]
    Failed(#[source] std::io::Error),
}

/// TLS on accepted connections.
pub(crate) struct Tls {
    config: TlsConfig,
    certificate: Arc<Certificate>,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads the certificate and its key.
    pub(crate) async fn new(config: TlsConfig) -> Result<Self, TlsError> {
        let certificate = Arc::new(Certificate(RwLock::new(read(&config).await?)));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Certificate>::clone(&certificate));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A client that comes back shows its ticket, which spares both sides most of the handshake.
        server.ticketer = ring::Ticketer::new().map_err(TlsError::Setup)?;
        Ok(Self { config, certificate, acceptor: TlsAcceptor::from(Arc::new(server)) })
    }

    /// Reads the files again. New connections get the new certificate; after an error still the old one.
    pub(crate) async fn reload(&self) -> Result<(), TlsError> {
        let certificate = read(&self.config).await?;
        *self.certificate.0.write() = certificate;
        Ok(())
    }

    /// Agrees with the client on keys.
    pub(crate) async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let limit = self.config.handshake_timeout;
        match tokio::time::timeout(limit, self.acceptor.accept(stream)).await {
            Ok(agreed) => agreed.map_err(HandshakeError::Failed),
            Err(_elapsed) => Err(HandshakeError::TimedOut(limit)),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificate that clients are shown.
#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

async fn read(config: &TlsConfig) -> Result<Arc<CertifiedKey>, TlsError> {
    let TlsConfig { cert, key, .. } = config.clone();
    let read = tokio::task::spawn_blocking(move || read_files(&cert, &key)).await;
    read.map_err(TlsError::Panicked)?.map(Arc::new)
}

fn read_files(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let wrong = |path: &Path, wanted, source| match source {
        pem::Error::NoItemsFound => TlsError::Missing { path: path.to_owned(), wanted },
        source => TlsError::Unreadable { path: path.to_owned(), source },
    };
    let wrong_chain = |source| wrong(cert, "certificate", source);
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .map_err(wrong_chain)?
        .collect::<Result<_, _>>()
        .map_err(wrong_chain)?;
    if chain.is_empty() {
        return Err(wrong_chain(pem::Error::NoItemsFound));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| wrong(key, "private key", source))?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|source| TlsError::Unusable {
        cert: cert.to_owned(),
        key: key.to_owned(),
        source,
    })
}
