//! Whether a request may become a WebSocket, and as whom. Pure: a request's head in, an answer out.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use relay_core::UserId;
use relay_events::ErrorBody;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::config::{OriginPolicy, WsConfig};
use crate::connection::Protocol;
use crate::framing::{self, DeflateParams};
use crate::text::excerpt;

/// The serializer's version that is spoken here.
const VSN: &str = "2.0.0";
/// The subprotocol that clients offer when they send a token beside it.
const SUBPROTOCOL: &str = "phoenix";

/// A request that is fine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ValidUpgrade {
    accept_key: String,
    subprotocol: bool,
    /// The answer to an offer of compression that is taken.
    compression: Option<(DeflateParams, HeaderValue)>,
    /// The user that the client gave.
    pub(crate) user: Option<UserId>,
}

impl ValidUpgrade {
    /// What was agreed on about compression.
    pub(crate) fn compression(&self) -> Option<DeflateParams> {
        self.compression.as_ref().map(|(agreed, _)| *agreed)
    }

    /// The answer after which both sides speak WebSocket.
    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::try_from(self.accept_key) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some((_, compression)) = self.compression {
            headers.insert(SEC_WEBSOCKET_EXTENSIONS, compression);
        }
        if self.subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        response
    }
}

/// A request that is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    status: StatusCode,
    pub(crate) reason: &'static str,
    message: String,
    /// When it is worth trying again.
    retry_after: Option<Duration>,
}

impl Rejection {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        let (status, reason) = (StatusCode::BAD_REQUEST, "bad_request");
        Self { status, reason, message: message.into(), retry_after: None }
    }

    /// There is no room at the moment.
    pub(crate) fn unavailable(reason: &'static str, message: String, retry_after: Duration) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { status, reason, message, retry_after: Some(retry_after) }
    }

    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let body = serde_json::to_vec(&ErrorBody::new(self.reason).message(self.message))
            .unwrap_or_else(|error| unreachable!("texts are JSON: {error}"));
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, and never 0: that would be at once.
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
        if self.status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    }
}

/// Checks everything about a request but whether there is room for another connection.
pub(crate) fn check<B>(
    request: &Request<B>,
    protocol: Protocol,
    config: &WsConfig,
) -> Result<ValidUpgrade, Rejection> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Rejection {
            status: StatusCode::METHOD_NOT_ALLOWED,
            ..Rejection::bad_request(format!("a WebSocket begins with GET, not {}", request.method()))
        });
    }
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return Err(Rejection::bad_request(
            "this is a WebSocket address; send `Connection: Upgrade` and `Upgrade: websocket`",
        ));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Rejection {
            status: StatusCode::UPGRADE_REQUIRED,
            ..Rejection::bad_request("`Sec-WebSocket-Version` must be 13")
        });
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16))
        .ok_or_else(|| Rejection::bad_request("`Sec-WebSocket-Key` must be 16 bytes in base64"))?;
    check_origin(headers, request.uri().authority().map(http::uri::Authority::as_str), &config.origins)?;
    let query = request.uri().query().unwrap_or_default();
    match parameter(query, "vsn")?.as_deref() {
        Some(VSN) => {}
        _ if protocol == Protocol::Echo => {}
        given => {
            let given = given.map_or("none".to_owned(), |vsn| format!("`{}`", excerpt(vsn, 64)));
            return Err(Rejection::bad_request(format!(
                "the parameter `vsn` must be {VSN}, {given} was given"
            )));
        }
    }
    let user = parameter(query, "user")?
        .map(UserId::new)
        .transpose()
        .map_err(|error| Rejection::bad_request(format!("the parameter `user`: {error}")))?;
    Ok(ValidUpgrade {
        accept_key: derive_accept_key(key),
        subprotocol: has_token(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL),
        compression: if config.compression { framing::negotiate(headers) } else { None },
        user,
    })
}

fn check_origin(
    headers: &HeaderMap,
    authority: Option<&str>,
    origins: &OriginPolicy,
) -> Result<(), Rejection> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(authority);
    if origin.to_str().is_ok_and(|origin| origins.allows(origin, host)) {
        return Ok(());
    }
    let origin = String::from_utf8_lossy(origin.as_bytes());
    Err(Rejection {
        status: StatusCode::FORBIDDEN,
        reason: "origin",
        message: format!("pages of `{}` may not connect; the operator allows origins", excerpt(&origin, 64)),
        retry_after: None,
    })
}

/// Whether a header that lists tokens has `token` among them.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// The first value of a parameter in a URL's query.
fn parameter<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, Rejection> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let Some((_, value)) = pairs.into_iter().find(|(key, _)| *key == name) else { return Ok(None) };
    if value.contains('+') {
        let spaced = value.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map(Cow::into_owned);
        return decoded.map(|text| Some(Cow::Owned(text))).map_err(|_| not_utf8(name));
    }
    percent_decode_str(value).decode_utf8().map(Some).map_err(|_| not_utf8(name))
}

fn not_utf8(name: &str) -> Rejection {
    Rejection::bad_request(format!("the parameter `{name}` is not UTF-8"))
}
