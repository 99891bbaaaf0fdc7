//! [`RelayClient`]: the HTTP requests of the command line, each over a connection of its own.

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::header::HOST;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// The characters that are percent-encoded in a path segment.
pub(crate) const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A running server.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server's address.
    #[arg(long, value_name = "URL", env = "RELAY_URL", default_value = "http://127.0.0.1:7400")]
    pub(crate) url: String,
}

/// Sends requests to one server.
pub(crate) struct RelayClient {
    /// Host and port.
    authority: String,
    url: String,
}

/// An answer whose body may still be coming.
pub(crate) struct RelayResponse {
    pub(crate) response: Response<Incoming>,
    /// The task that reads from the socket. It ends when the answer is dropped.
    _connection: AbortOnDropHandle<()>,
}

impl RelayClient {
    /// A client of the server at `url`, for instance `http://127.0.0.1:7400`.
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        let (Some("http"), Some(authority), "/") = (uri.scheme_str(), uri.authority(), uri.path()) else {
            bail!("`{url}` must be of the form http://host:port");
        };
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            authority: format!("{}:{port}", authority.host()),
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// Sends a request whose URI is a path.
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> anyhow::Result<RelayResponse> {
        let unreachable = || format!("cannot reach {}; is `relay serve` running there?", self.url);
        let stream = TcpStream::connect(&self.authority).await.with_context(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(unreachable)?;
        let connection = tokio::spawn(async move {
            // An error of the connection shows where the answer is read.
            let _ = connection.await;
        });
        let connection = AbortOnDropHandle::new(connection);
        request.headers_mut().insert(HOST, self.authority.parse()?);
        let response = sender.send_request(request).await.with_context(unreachable)?;
        Ok(RelayResponse { response, _connection: connection })
    }
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
