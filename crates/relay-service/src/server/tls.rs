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

/// The error of a certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{} cannot be read as PEM: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error.
        source: pem::Error,
    },
    /// A file does not hold the wanted item.
    #[error("there is no {wanted} in {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The wanted item.
        wanted: &'static str,
    },
    /// The certificate is malformed, or the key belongs to another certificate or is of an unsupported kind.
    #[error("the certificate in {} cannot be used with the key in {}: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The error.
        source: rustls::Error,
    },
    /// The TLS library does not start, for instance because the operating system gives no randomness.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
    /// Reading the files ended by a bug.
    #[error("reading the certificate ended by a bug: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

/// The error of a TLS handshake.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the TLS handshake took longer than {0:?}")]
    TimedOut(Duration),
    #[error("the TLS handshake failed: {0}")]
    Failed(#[source] std::io::Error),
}

/// TLS on accepted connections.
pub(super) struct Tls {
    config: TlsConfig,
    certificate: Arc<CurrentCertificate>,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads the certificate and its key.
    pub(super) async fn new(config: TlsConfig) -> Result<Self, TlsError> {
        let certificate = Arc::new(CurrentCertificate(RwLock::new(read(&config).await?)));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<CurrentCertificate>::clone(&certificate));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A client that reconnects shows its ticket, which spares both sides most of the handshake.
        server.ticketer = ring::Ticketer::new().map_err(TlsError::Setup)?;
        Ok(Self { config, certificate, acceptor: TlsAcceptor::from(Arc::new(server)) })
    }

    /// Reads the files again. New connections get the new certificate; after an error they still get the old one.
    pub(super) async fn reload(&self) -> Result<(), TlsError> {
        let certificate = read(&self.config).await?;
        *self.certificate.0.write() = certificate;
        Ok(())
    }

    /// Does the handshake with a client.
    pub(super) async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let limit = self.config.handshake_timeout;
        match tokio::time::timeout(limit, self.acceptor.accept(stream)).await {
            Ok(handshake) => handshake.map_err(HandshakeError::Failed),
            Err(_elapsed) => Err(HandshakeError::TimedOut(limit)),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificate that new connections get.
#[derive(Debug)]
struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

async fn read(config: &TlsConfig) -> Result<Arc<CertifiedKey>, TlsError> {
    let TlsConfig { cert, key, .. } = config.clone();
    let read = relay_tasks::call_blocking(move || read_files(&cert, &key)).await;
    read.map_err(TlsError::Panicked)?.map(Arc::new)
}

fn read_files(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let unreadable = |path: &Path, wanted, source| match source {
        pem::Error::NoItemsFound => TlsError::Missing { path: path.to_owned(), wanted },
        source => TlsError::Unreadable { path: path.to_owned(), source },
    };
    let unreadable_chain = |source| unreadable(cert, "certificate", source);
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .map_err(unreadable_chain)?
        .collect::<Result<_, _>>()
        .map_err(unreadable_chain)?;
    if chain.is_empty() {
        return Err(unreadable_chain(pem::Error::NoItemsFound));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|source| unreadable(key, "private key", source))?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|source| TlsError::Unusable {
        cert: cert.to_owned(),
        key: key.to_owned(),
        source,
    })
}
