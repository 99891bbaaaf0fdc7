//! The parts of a request that handlers take: the document of the path, and the body; and the memory that it may hold.

use std::convert::Infallible;
use std::net::IpAddr;
use std::ops::Deref;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Extensions, HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use relay_core::{BudgetFull, DocumentId, MemoryBudget, MemoryPurpose, MemoryShare, Reservation};
use relay_ws::ClientAddress;
use serde::de::DeserializeOwned;

use super::api::Api;
use super::problem::Problem;
use crate::config::HttpConfig;

/// The document that a path names.
pub(super) struct DocumentPath(pub(super) DocumentId);

impl<S: Send + Sync> FromRequestParts<S> for DocumentPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        #[derive(serde::Deserialize)]
        struct Id {
            id: String,
        }
        let Path(Id { id }) = Path::<Id>::from_request_parts(parts, state).await.map_err(|rejection| {
            Problem::invalid_request(format!(
                "the document id in the path is malformed: {}",
                rejection.body_text()
            ))
        })?;
        Ok(Self(DocumentId::new(id)?))
    }
}

/// A body of JSON, read within the limits of size and time.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        // A browser sends this type for a page of another site only after asking with a preflight request.
        if media_type(request.headers()) != "application/json" {
            let message = "send the body as JSON, with `content-type: application/json`";
            return Err(Problem::unsupported_media_type(message));
        }
        let memory = RequestMemory::of(request.extensions(), api);
        let body = read_body(request.into_body(), &api.config, &memory).await?;
        let parsed = serde_json::from_slice(&body);
        parsed.map(Self).map_err(|error| Problem::invalid_request(format!("the body does not fit: {error}")))
    }
}

/// Returns the media type of a body without its parameters. Empty when there is none, or it is not text.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split_once(';').map_or(value, |(media_type, _)| media_type).trim()
}

/// The share of memory of a request: its connection's, which is part of its address's.
pub(super) struct RequestMemory {
    share: MemoryShare,
    /// The client's address, if it is known.
    address: Option<IpAddr>,
}

impl RequestMemory {
    /// The share of a request with these extensions, which is that of its connection.
    pub(super) fn of(extensions: &Extensions, api: &Api) -> Self {
        let address = extensions.get::<ClientAddress>().map(|address| address.0);
        let share = extensions.get().cloned().unwrap_or_else(|| api.memory().connection(address));
        Self { share, address }
    }

    /// The client's address, if it is known.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// A share for what outlives the connection of the request. It counts like a connection of its own.
    pub(super) fn outliving(&self, api: &Api) -> MemoryShare {
        api.memory().connection(self.address)
    }

    /// Reserves `bytes` for what lasts as long as the request.
    pub(super) fn reserve(&self, purpose: MemoryPurpose, bytes: usize) -> Result<Reservation, BudgetFull> {
        self.share.try_reserve(purpose, bytes)
    }

    /// A reservation for what is sent, of nothing yet.
    pub(super) fn outgoing(&self) -> Reservation {
        self.share.charge(MemoryPurpose::Outgoing, 0)
    }

    /// Reserves the memory of an answer until it is written.
    pub(super) fn hold_answer(&self, answer: Bytes) -> Result<Bytes, BudgetFull> {
        Ok(self.share.try_reserve(MemoryPurpose::Outgoing, answer.len())?.hold(answer))
    }

    /// Reserves the memory of an answer with the server's own numbers until it is written. Where the memory of clients is
    /// used up, it is a part of `reserve`.
    pub(super) fn hold_numbers(&self, numbers: Bytes, reserve: &MemoryBudget) -> Result<Bytes, BudgetFull> {
        let reserve = || reserve.connection(self.address);
        let free = |share: &MemoryShare| share.reserve_if_free(MemoryPurpose::Outgoing, numbers.len());
        match free(&self.share).or_else(|| free(&reserve())) {
            Some(reserved) => Ok(reserved.hold(numbers)),
            None => self.hold_answer(numbers),
        }
    }
}

impl FromRequestParts<Api> for RequestMemory {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions, api))
    }
}

/// A whole body. Its memory is reserved while it lives.
#[derive(Debug)]
pub(super) struct RequestBody {
    bytes: Vec<u8>,
    _reserved: Reservation,
}

impl Deref for RequestBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The reason for which a body is not read whole.
enum BodyError {
    TooLarge,
    Memory(BudgetFull),
    Incomplete(axum::Error),
}

/// Reads the whole body, within the limits of size, time and memory.
pub(super) async fn read_body(
    body: Body,
    config: &HttpConfig,
    memory: &RequestMemory,
) -> Result<RequestBody, Problem> {
    let max = config.max_body_bytes;
    match tokio::time::timeout(config.body_timeout, collect(body, max, memory)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(BodyError::TooLarge)) => Err(Problem::too_large(format!(
            "the body has more than {max} bytes; send several smaller batches"
        ))),
        Ok(Err(BodyError::Memory(full))) => Err(full.into()),
        Ok(Err(BodyError::Incomplete(error))) => {
            Err(Problem::invalid_request(format!("the body did not arrive whole: {error}")))
        }
        Err(_elapsed) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not arrive within {} s", config.body_timeout.as_secs_f64()),
        )),
    }
}

/// Collects the body. Its buffer grows with the bytes that arrive; the length that the client announces reserves nothing.
async fn collect(mut body: Body, max: usize, memory: &RequestMemory) -> Result<RequestBody, BodyError> {
    if body.size_hint().lower() > max as u64 {
        return Err(BodyError::TooLarge);
    }
    let mut bytes = Vec::new();
    let mut reserved = memory.share.charge(MemoryPurpose::Bodies, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(BodyError::Incomplete)?.into_data() else { continue };
        let (length, more) = (bytes.len(), data.len());
        if more > max - length {
            return Err(BodyError::TooLarge);
        }
        if bytes.capacity() - length < more {
            let growth = length.clamp(more, max - length);
            reserved.try_resize(length + growth).map_err(BodyError::Memory)?;
            bytes.reserve_exact(growth);
        }
        bytes.extend_from_slice(&data);
    }
    // What is decoded from it takes about as much again.
    reserved.try_resize(2 * bytes.len()).map_err(BodyError::Memory)?;
    Ok(RequestBody { bytes, _reserved: reserved })
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid_request(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid_request(format!("the path is malformed: {}", rejection.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt, stream};
    use relay_core::{MemoryLimits, ShareKind};

    use super::*;
    use crate::http::api::numbers_reserve;

    const KIB: usize = 1024;

    /// A body whose chunks arrive, and which then stops short.
    fn stalled(chunks: usize) -> Body {
        let chunks =
            stream::iter((0..chunks).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b' '; 16 * KIB]))));
        Body::from_stream(chunks.chain(stream::pending()))
    }

    fn budget(address: usize) -> MemoryBudget {
        let mut limits = MemoryLimits::default();
        (limits.max_address_bytes, limits.max_connection_bytes) = (address, address);
        MemoryBudget::new(limits)
    }

    fn memory(budget: &MemoryBudget) -> RequestMemory {
        let address = Some([10, 0, 0, 1].into());
        RequestMemory { share: budget.connection(address), address }
    }

    #[tokio::test]
    async fn bodies_that_stop_short_hold_what_has_arrived_and_have_a_limit_for_each_address() {
        let (budget, config) = (budget(512 * KIB), HttpConfig::default());
        let memories: Vec<_> = (0..20).map(|_| memory(&budget)).collect();
        let mut reading: Vec<_> =
            memories.iter().map(|memory| Box::pin(read_body(stalled(4), &config, memory))).collect();
        let refused: Vec<_> = reading.iter_mut().filter_map(FutureExt::now_or_never).collect();
        assert_eq!(refused.len(), 12);
        for refusal in refused {
            assert_eq!(refusal.unwrap_err().into_body().reason, "overloaded");
        }
        assert_eq!(budget.held(MemoryPurpose::Bodies), 8 * 64 * KIB);
        drop(reading);
        assert_eq!(budget.total().used(), 0);
    }

    #[tokio::test]
    async fn the_head_the_body_and_the_answer_of_a_connection_share_its_limit() {
        let (budget, config) = (budget(512 * KIB), HttpConfig::default());
        let memory = memory(&budget);
        let head = memory.share.try_reserve(MemoryPurpose::Heads, 64 * KIB).unwrap();
        let body = read_body(Body::from(vec![b' '; 160 * KIB]), &config, &memory).await.unwrap();
        let answer = || memory.hold_answer(Bytes::from(vec![b' '; 160 * KIB]));
        assert_eq!(answer().unwrap_err().share, ShareKind::Connection);
        assert!(read_body(stalled(9), &config, &memory).now_or_never().unwrap().is_err());
        drop((head, body));
        let _held = answer().unwrap();
        assert_eq!(budget.total().used(), 160 * KIB);
    }

    #[test]
    fn numbers_have_a_reserve_of_which_an_address_has_a_part() {
        let (clients, reserve) = (budget(64 * KIB), numbers_reserve());
        let ada = memory(&clients);
        let numbers =
            |memory: &RequestMemory| memory.hold_numbers(Bytes::from(vec![b' '; 64 * KIB]), &reserve);
        // The memory of clients comes first, and the reserve makes up for it without a refusal.
        let mut held = vec![numbers(&ada).unwrap()];
        assert_eq!((clients.total().used(), reserve.total().used()), (64 * KIB, 0));
        let part = reserve.total().limit() / 4;
        while reserve.total().used() < part {
            held.push(numbers(&ada).unwrap());
        }
        assert_eq!(clients.refusals(ShareKind::Connection), 0);
        assert!(numbers(&ada).is_err());
        assert_eq!((reserve.total().used(), clients.refusals(ShareKind::Connection)), (part, 1));
        let other = RequestMemory { address: Some([10, 0, 0, 2].into()), ..ada };
        drop(numbers(&other).unwrap());
        drop(held);
        assert_eq!(reserve.total().used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_a_time_as_a_whole() {
        let (budget, config) = (budget(512 * KIB), HttpConfig::default());
        let drip = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
        });
        let refused = read_body(Body::from_stream(drip), &config, &memory(&budget)).await.unwrap_err();
        assert_eq!(refused.into_body().reason, "request_timeout");
        assert_eq!(budget.total().used(), 0);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_before_it_is_held() {
        let (budget, config) =
            (budget(512 * KIB), HttpConfig { max_body_bytes: 64 * KIB, ..HttpConfig::default() });
        for body in [Body::from(vec![b' '; 64 * KIB + 1]), stalled(5)] {
            let refused = read_body(body, &config, &memory(&budget)).await.unwrap_err();
            assert_eq!(refused.into_body().reason, "too_large");
        }
        let taken = read_body(Body::from(vec![b' '; 64 * KIB]), &config, &memory(&budget)).await.unwrap();
        assert_eq!((taken.len(), budget.held(MemoryPurpose::Bodies)), (64 * KIB, 128 * KIB));
    }
}
