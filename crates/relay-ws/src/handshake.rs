//! The check of an upgrade request, and the response that accepts it. It does no I/O.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use relay_core::UserId;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::config::{OriginPolicy, WsConfig};
use crate::framing::{self, DeflateParams};
use crate::rejection::Rejection;
use crate::text::excerpt;

/// The version of the Phoenix serializer.
const VSN: &str = "2.0.0";
/// The subprotocol that clients offer when they send a token beside it.
const SUBPROTOCOL: &str = "phoenix";

/// The protocol of the messages on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Phoenix Channels.
    Phoenix,
    /// An echo: every message is sent back unchanged, to test the network between a client and the server.
    Echo,
}

/// A validated upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ValidUpgrade {
    accept_key: HeaderValue,
    /// True when the client offers the subprotocol.
    subprotocol: bool,
    /// The parameters of compression, and the header that agrees to them.
    compression: Option<(DeflateParams, HeaderValue)>,
    /// The user that the client names; `None` for a guest.
    pub(crate) user: Option<UserId>,
}

impl ValidUpgrade {
    /// The parameters of compression; `None` without compression.
    pub(crate) fn deflate(&self) -> Option<DeflateParams> {
        self.compression.as_ref().map(|(params, _)| *params)
    }

    /// The response after which both sides speak WebSocket.
    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept_key);
        if let Some((_, compression)) = self.compression {
            headers.insert(SEC_WEBSOCKET_EXTENSIONS, compression);
        }
        if self.subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        response
    }
}

/// Checks a request. [`Admissions`](crate::admission::Admissions) checks the limits of connections.
pub(crate) fn check<B>(
    request: &Request<B>,
    protocol: Protocol,
    config: &WsConfig,
) -> Result<ValidUpgrade, Rejection> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let message = format!("a WebSocket begins with a GET request, not {}", request.method());
        return Err(Rejection::new(StatusCode::METHOD_NOT_ALLOWED, "bad_request", message));
    }
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return Err(Rejection::bad_request(
            "this address serves WebSocket; send `Connection: Upgrade` and `Upgrade: websocket`",
        ));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let message = "`Sec-WebSocket-Version` must be 13";
        return Err(Rejection::new(StatusCode::UPGRADE_REQUIRED, "bad_request", message));
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
    let accept_key = HeaderValue::try_from(derive_accept_key(key))
        .unwrap_or_else(|error| unreachable!("base64 is a header's value: {error}"));
    Ok(ValidUpgrade {
        accept_key,
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
    let message =
        format!("pages of `{}` may not connect; the operator can allow their origin", excerpt(&origin, 64));
    Err(Rejection::new(StatusCode::FORBIDDEN, "origin", message))
}

/// True when a header that lists tokens has `token` among them.
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
