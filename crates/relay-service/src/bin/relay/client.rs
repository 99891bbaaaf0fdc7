//! [`RelayClient`]: the HTTP requests of the command line, each over a connection of its own, with TLS or without.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::header::HOST;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use tokio_util::task::AbortOnDropHandle;

/// The characters that are percent-encoded in a path segment.
pub(crate) const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The URL of a server with the default configuration.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:7400";

/// A running server.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server's address.
    #[arg(long, value_name = "URL", env = "RELAY_URL", default_value = DEFAULT_URL)]
    url: String,
    /// The PEM file with the certificates to trust over https, in place of those that the operating system trusts.
    #[arg(long, value_name = "FILE", env = "RELAY_CA")]
    ca: Option<PathBuf>,
}

/// Sends requests to one server.
pub(crate) struct RelayClient {
    /// Host and port.
    authority: String,
    url: String,
    tls: Option<Tls>,
}

/// TLS towards one server.
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// An answer whose body may still be coming.
pub(crate) struct RelayResponse {
    pub(crate) response: Response<Incoming>,
    /// The task that reads from the socket. It ends when the answer is dropped.
    _connection: AbortOnDropHandle<()>,
}

impl RelayClient {
    pub(crate) fn new(server: &ServerArgs) -> anyhow::Result<Self> {
        let url = &server.url;
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        let (Some(scheme @ ("http" | "https")), Some(authority), "/") =
            (uri.scheme_str(), uri.authority(), uri.path())
        else {
            bail!("`{url}` must be of the form http://host:port or https://host:port");
        };
        let host = authority.host();
        let (tls, usual_port) = match scheme {
            "https" => (Some(Tls::new(host, server.ca.as_deref())?), 443),
            _ => (None, 80),
        };
        let port = authority.port_u16().unwrap_or(usual_port);
        Ok(Self { authority: format!("{host}:{port}"), url: url.trim_end_matches('/').to_owned(), tls })
    }

    /// Sends a request whose URI is a path.
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> anyhow::Result<RelayResponse> {
        let unreachable = || format!("cannot reach {}; is `relay serve` running there?", self.url);
        let stream = TcpStream::connect(&self.authority).await.with_context(unreachable)?;
        let opened = match &self.tls {
            None => open(stream).await,
            Some(tls) => {
                let encrypted = tls.connector.connect(tls.name.clone(), stream).await;
                open(encrypted.with_context(|| {
                    format!("no TLS connection to {}; `--ca` names the certificates to trust", self.url)
                })?)
                .await
            }
        };
        let (mut sender, connection) = opened.with_context(unreachable)?;
        request.headers_mut().insert(HOST, self.authority.parse()?);
        let response = sender.send_request(request).await.with_context(unreachable)?;
        Ok(RelayResponse { response, _connection: connection })
    }
}

impl Tls {
    /// TLS towards the server `host`, whose certificate must be signed by one in `ca`, or by one that the operating system
    /// trusts.
    fn new(host: &str, ca: Option<&Path>) -> anyhow::Result<Self> {
        let trusted = match ca {
            Some(file) => CertificateDer::pem_file_iter(file)
                .and_then(Iterator::collect)
                .with_context(|| format!("{} cannot be read as PEM", file.display()))?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let provider = Arc::new(ring::default_provider());
        let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let signed = signed.build().with_context(|| match ca {
            Some(file) => format!("there is no certificate to trust in {}", file.display()),
            None => "the operating system trusts no certificate; name one with `--ca`".to_owned(),
        })?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { trusted, signed }))
            .with_no_client_auth();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

/// Accepts a server's certificate that a trusted one has signed, or that is trusted itself. The verifier of rustls refuses
/// the latter in two cases: its signer is not trusted, or it may sign others, as those of `openssl req -x509` may.
#[derive(Debug)]
struct Verifier {
    trusted: Vec<CertificateDer<'static>>,
    signed: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.signed.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(error))
                if self.trusted.contains(certificate) && concerns_the_signer(&error) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// True where only the trust in the certificate's signer is missing, or the certificate may sign others itself. The period of
/// its validity has been checked before either.
fn concerns_the_signer(error: &CertificateError) -> bool {
    match error {
        CertificateError::UnknownIssuer => true,
        CertificateError::Other(OtherError(error)) => {
            matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}

/// Begins HTTP on a connection. The task that reads from it ends when the handle is dropped.
async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<(SendRequest<Full<Bytes>>, AbortOnDropHandle<()>)> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    #[allow(
        clippy::disallowed_methods,
        reason = "the handle ends the task, and the command fails without its answer"
    )]
    let connection = tokio::spawn(async move {
        // An error of the connection shows where the answer is read.
        let _ = connection.await;
    });
    Ok((sender, AbortOnDropHandle::new(connection)))
}

/// The path of a document's events.
pub(crate) fn events_path(document: &str) -> String {
    format!("/v1/documents/{}/events", utf8_percent_encode(document, SEGMENT))
}

/// An error as the server writes it.
#[derive(Deserialize)]
struct Problem {
    reason: String,
    message: String,
}

impl RelayResponse {
    /// The whole body.
    pub(crate) async fn text(self) -> anyhow::Result<String> {
        let body = self.response.into_body().collect().await.context("the answer did not arrive whole")?;
        String::from_utf8(body.to_bytes().into()).context("the answer is not UTF-8")
    }

    /// Reads the server's error.
    pub(crate) async fn problem(self) -> anyhow::Error {
        let status = self.response.status();
        let text = match self.text().await {
            Ok(text) => text,
            Err(error) => return error.context(format!("the server answered {status}")),
        };
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => anyhow::anyhow!("{}: {}", problem.reason, problem.message),
            Err(_) => anyhow::anyhow!("the server answered {status}; is it a Relay server?"),
        }
    }
}
