//! The HTTP client for deliveries and probes: HTTP/1.1, with a bound on everything that comes before an answer's body.
//!
//! hyper skips interim answers (1xx) without a limit of its own, and a target that sends them for ever would keep a core
//! busy. hyper reports each one, so the client counts them and gives up the request, and the connection with it. HTTP/2
//! has no such report, and its interim answers would wait in memory without a limit, so it is not spoken.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Notify;
use tokio_rustls::rustls::ClientConfig;
use url::Url;

use super::outbound::{OutboundError, OutboundPolicy};

/// The most interim answers to one request.
const MAX_INTERIM: usize = 16;

/// The most bytes of an answer's head, and of each interim answer.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// The time for which an unused connection is kept.
const IDLE: Duration = Duration::from_secs(90);

/// An answer, whose body is still to be read.
pub(crate) type Answer = Response<Incoming>;

/// The client. Clones share their connections.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    policy: Arc<OutboundPolicy>,
}

/// A failure to get an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no answer to the request for {url}")]
    Failed {
        url: Url,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("the request for {url} had {MAX_INTERIM} interim answers (1xx) and no final one")]
    TooManyInterim { url: Url },
    #[error("more than {MAX_REDIRECTS} redirects, the last one from {url}")]
    TooManyRedirects { url: Url },
    #[error("the redirect from {url} has no usable `location`")]
    Location { url: Url },
    #[error("the redirect from {url} is not followed")]
    Redirect {
        url: Url,
        #[source]
        source: OutboundError,
    },
}

impl HttpClient {
    /// A client that connects to the addresses that `policy` allows.
    pub(super) fn new(policy: Arc<OutboundPolicy>, tls: ClientConfig) -> Self {
        let mut connector = HttpConnector::new_with_resolver(Resolver(Arc::clone(&policy)));
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(policy.connect_timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = legacy::Client::builder(TokioExecutor::new())
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { client, policy }
    }

    /// Sends a request whose URL was checked, and follows redirects that keep the method.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub(crate) async fn send(
        &self,
        method: Method,
        mut url: Url,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, RequestError> {
        let agent = HeaderValue::from_static(concat!("relay/", env!("CARGO_PKG_VERSION")));
        headers.insert(USER_AGENT, agent);
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send_once(&method, &url, &headers, &body).await?;
            // Other redirects turn the POST into a GET, so their status is the answer.
            if !matches!(answer.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
                return Ok(answer);
            }
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let Some(next) = location.and_then(|location| url.join(location).ok()) else {
                return Err(RequestError::Location { url });
            };
            if let Err(source) = self.policy.check(&next) {
                return Err(RequestError::Redirect { url, source });
            }
            url = next;
        }
        Err(RequestError::TooManyRedirects { url })
    }

    async fn send_once(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Answer, RequestError> {
        let failed = |source: Box<dyn Error + Send + Sync>| RequestError::Failed { url: url.clone(), source };
        let request = Request::builder().method(method).uri(url.as_str()).body(Full::new(body.clone()));
        let mut request = request.map_err(|error| failed(error.into()))?;
        request.headers_mut().clone_from(headers);
        let too_many = Arc::new(Notify::new());
        let (count, tell) = (AtomicUsize::new(0), Arc::clone(&too_many));
        hyper::ext::on_informational(&mut request, move |_| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == MAX_INTERIM {
                tell.notify_one();
            }
        });
        tokio::select! {
            biased;
            answer = self.client.request(request) => answer.map_err(|error| failed(error.into())),
            () = too_many.notified() => Err(RequestError::TooManyInterim { url: url.clone() }),
        }
    }
}

/// Resolves names to allowed addresses.
#[derive(Clone)]
struct Resolver(Arc<OutboundPolicy>);

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<std::net::SocketAddr>;
    type Error = OutboundError;
    type Future = BoxFuture<'static, Result<Self::Response, OutboundError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OutboundError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let policy = Arc::clone(&self.0);
        Box::pin(async move { Ok(policy.resolve(name.as_str(), 0).await?.into_iter()) })
    }
}
