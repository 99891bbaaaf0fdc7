//! A server on a loopback port, its clients, and a feed of events in memory behind it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use relay_core::testing::ManualClock;
use relay_core::{
    CheckedDraft, Clock, Commands, DocumentId, Epoch, Event, EventSink, EventSource, EventStream, Head,
    LogError, MemoryBudget, MemoryLimits, Presence, PublishAck, PublishError, ReadLimit, Seq, StartPosition,
    StreamError, StreamPosition, SubscribeAck, SubscribeError,
};
use relay_ws::{ClientAddress, WsConfig, WsParts, WsServer, WsStats};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

pub(crate) const EPOCH: Epoch = Epoch::from_u64(0x00c0_ffee_00c0_ffee);

/// Documents in memory. Durable events are kept and read by a cursor. Ephemeral events are conflated per subscription.
///
/// Four documents are special. `broken` refuses subscriptions, `doomed` refuses drafts, a reader of `panic` panics, and a reader
/// of `brief` lags after its first event.
pub(crate) struct Feed {
    clock: Arc<ManualClock>,
    documents: Mutex<HashMap<DocumentId, Document>>,
    /// True while drafts are not answered.
    held: AtomicBool,
    released: Notify,
    /// The most events that a stream may be behind before it lags.
    pub(crate) max_behind: u64,
}

#[derive(Default)]
struct Document {
    trimmed: u64,
    /// The number of ephemeral events so far.
    version: u64,
    events: Vec<Arc<Event>>,
    streams: Vec<Arc<Mutex<Inbox>>>,
    waiting: VecDeque<Waker>,
}

#[derive(Default)]
struct Inbox {
    /// The number of ephemeral events so far.
    version: u64,
    ephemeral: BTreeMap<String, Arc<Event>>,
    waker: Option<Waker>,
    /// The readers that the stream stands for; `None` until its first poll, unless they were set.
    readers: Option<u64>,
}

impl Document {
    fn head(&self) -> Head {
        let last = self.trimmed + self.events.len() as u64;
        Head::new(EPOCH, Seq::new(self.trimmed + 1), Seq::new(last))
    }
}

impl Feed {
    pub(crate) fn new(clock: Arc<ManualClock>) -> Self {
        Self {
            clock,
            documents: Mutex::default(),
            held: AtomicBool::new(false),
            released: Notify::new(),
            max_behind: u64::MAX,
        }
    }

    /// Holds the answers to drafts until [`Feed::release`].
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
        self.released.notify_waiters();
    }

    /// Answers the first draft that is held.
    pub(crate) fn release_one(&self) {
        self.released.notify_one();
    }

    /// Drops the oldest events of a document.
    pub(crate) fn trim(&self, document: &str, events: usize) {
        let mut documents = self.documents.lock();
        let document = documents.get_mut(&DocumentId::new(document).unwrap()).unwrap();
        document.events.drain(..events);
        document.trimmed += events as u64;
    }

    /// The number of durable events of a document.
    pub(crate) fn count(&self, document: &str) -> u64 {
        let documents = self.documents.lock();
        documents.get(&DocumentId::new(document).unwrap()).map_or(0, |document| document.head().last.get())
    }

    /// The number of subscriptions to a document.
    pub(crate) fn subscriptions(&self, document: &str) -> usize {
        let mut documents = self.documents.lock();
        documents.get_mut(&DocumentId::new(document).unwrap()).map_or(0, |document| {
            document.streams.retain(|inbox| Arc::strong_count(inbox) > 1);
            document.streams.len()
        })
    }

    /// The readers that the subscriptions to a document stand for.
    pub(crate) fn readers(&self, document: &str) -> u64 {
        self.subscriptions(document);
        let documents = self.documents.lock();
        let document = documents.get(&DocumentId::new(document).unwrap());
        document.map_or(0, |document| document.streams.iter().filter_map(|inbox| inbox.lock().readers).sum())
    }

    fn place(&self, draft: CheckedDraft) -> PublishAck {
        let mut documents = self.documents.lock();
        let document = documents.entry(draft.document.clone()).or_default();
        let seq = draft.kind.is_sequenced().then(|| document.head().last.next());
        let event = Arc::new(draft.into_event(EPOCH, seq, self.clock.wall()));
        if seq.is_some() {
            document.events.push(Arc::clone(&event));
        }
        document.streams.retain(|inbox| Arc::strong_count(inbox) > 1);
        document.version += u64::from(seq.is_none());
        for inbox in &document.streams {
            let mut inbox = inbox.lock();
            if seq.is_none() {
                let key = format!("{}/{}/{:?}", event.kind, event.actor, event.key);
                inbox.ephemeral.insert(key, Arc::clone(&event));
                inbox.version += 1;
            }
            inbox.waker.take().into_iter().for_each(Waker::wake);
        }
        document.waiting.drain(..).for_each(Waker::wake);
        PublishAck::of(&event, false)
    }
}

#[async_trait]
impl EventSink for Feed {
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        if draft.document.as_str() == "doomed" {
            return Err(PublishError::Overloaded {
                document: draft.document.clone(),
                waited: Duration::from_millis(250),
            });
        }
        let released = self.released.notified();
        let ack = self.place(draft);
        if self.held.load(Ordering::SeqCst) {
            released.await;
        }
        Ok(ack)
    }
}

pub(crate) struct Shared(pub(crate) Arc<Feed>);

#[async_trait]
impl EventSource for Shared {
    async fn subscribe(
        &self,
        document: &DocumentId,
        start: StartPosition,
    ) -> Result<(SubscribeAck, Box<dyn EventStream>), SubscribeError> {
        if document.as_str() == "broken" {
            let source = Arc::new(std::io::Error::other("the disk is on fire"));
            return Err(SubscribeError::Log(LogError::Failed { source }));
        }
        let mut documents = self.0.documents.lock();
        let entry = documents.entry(document.clone()).or_default();
        let opening = SubscribeAck::decide(start, entry.head());
        let inbox = Inbox { version: entry.version, ..Inbox::default() };
        let inbox = Arc::new(Mutex::new(inbox));
        entry.streams.push(Arc::clone(&inbox));
        let stream = Cursor {
            feed: Arc::clone(&self.0),
            document: document.clone(),
            position: opening.position,
            inbox,
            is_over: false,
        };
        Ok((opening, Box::new(stream)))
    }

    async fn history(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<(Head, Vec<Arc<Event>>), SubscribeError> {
        let documents = self.0.documents.lock();
        let Some(document) = documents.get(document) else { return Ok((Head::empty(EPOCH), Vec::new())) };
        let events = document.events.iter().filter(|event| event.seq > Some(after)).take(limit.events);
        Ok((document.head(), events.cloned().collect()))
    }
}

struct Cursor {
    feed: Arc<Feed>,
    document: DocumentId,
    position: Seq,
    inbox: Arc<Mutex<Inbox>>,
    /// True once the stream has lagged.
    is_over: bool,
}

impl EventStream for Cursor {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, StreamError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        self.inbox.lock().readers.get_or_insert(1);
        let documents = self.feed.documents.lock();
        let document = &documents[&self.document];
        let behind = document.head().last.since(self.position);
        let is_brief = self.document.as_str() == "brief" && self.position > Seq::ZERO;
        if behind > self.feed.max_behind || self.position.get() < document.trimmed || is_brief {
            self.is_over = true;
            return Poll::Ready(Some(Err(StreamError::Lagged { position: self.position, behind })));
        }
        if let Some(event) = document.events.iter().find(|event| event.seq == Some(self.position.next())) {
            assert!(self.document.as_str() != "panic", "this document panics when it is read");
            self.position = self.position.next();
            return Poll::Ready(Some(Ok(Arc::clone(event))));
        }
        let mut inbox = self.inbox.lock();
        if let Some((_, event)) = inbox.ephemeral.pop_first() {
            return Poll::Ready(Some(Ok(event)));
        }
        inbox.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn position(&self) -> Option<StreamPosition> {
        let inbox = self.inbox.lock();
        let ephemeral = inbox.version;
        inbox.ephemeral.is_empty().then_some(StreamPosition::new(self.position, ephemeral))
    }

    fn fork(&self) -> Box<dyn EventStream> {
        let mut documents = self.feed.documents.lock();
        let inbox = {
            let inbox = self.inbox.lock();
            let (version, ephemeral) = (inbox.version, inbox.ephemeral.clone());
            Arc::new(Mutex::new(Inbox { version, ephemeral, ..Inbox::default() }))
        };
        documents.entry(self.document.clone()).or_default().streams.push(Arc::clone(&inbox));
        let (feed, document) = (Arc::clone(&self.feed), self.document.clone());
        Box::new(Self { feed, document, position: self.position, inbox, is_over: self.is_over })
    }

    fn stand_for(&mut self, readers: u64) {
        self.inbox.lock().readers = Some(readers);
    }
}

/// A server on a port of its own.
pub(crate) struct Server {
    pub(crate) ws: WsServer,
    pub(crate) feed: Arc<Feed>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) address: SocketAddr,
    pub(crate) memory: MemoryBudget,
    _accepting: JoinSet<()>,
}

/// A configuration with a short tick, so that tests that advance the clock need not wait.
pub(crate) fn quick() -> WsConfig {
    let mut config = WsConfig::default();
    config.tick = Duration::from_millis(5);
    config
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(quick()).await
    }

    pub(crate) async fn with(config: WsConfig) -> Self {
        Self::with_feed(config, |_| ()).await
    }

    pub(crate) async fn with_presence(
        config: WsConfig,
        presence: Arc<dyn Presence>,
        commands: Commands,
    ) -> Self {
        Self::build(config, MemoryLimits::default(), |_| (), Some((presence, commands))).await
    }

    pub(crate) async fn with_feed(config: WsConfig, adjust: impl FnOnce(&mut Feed)) -> Self {
        Self::build(config, MemoryLimits::default(), adjust, None).await
    }

    pub(crate) async fn with_memory(config: WsConfig, memory: MemoryLimits) -> Self {
        Self::build(config, memory, |_| (), None).await
    }

    async fn build(
        config: WsConfig,
        memory: MemoryLimits,
        adjust: impl FnOnce(&mut Feed),
        presence: Option<(Arc<dyn Presence>, Commands)>,
    ) -> Self {
        let clock = Arc::new(ManualClock::new());
        let mut feed = Feed::new(Arc::clone(&clock));
        adjust(&mut feed);
        let feed = Arc::new(feed);
        let source = Arc::new(Shared(Arc::clone(&feed)));
        let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let mut parts = WsParts::new(Arc::clone(&feed) as _, source, time);
        if let Some((presence, commands)) = presence {
            parts.presence = Some(presence);
            parts.commands = Arc::new(commands);
        }
        let memory = MemoryBudget::new(memory);
        parts.memory = memory.clone();
        let ws = WsServer::with_parts(config, parts).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepting = JoinSet::new();
        let upgrades = ws.clone();
        accepting.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let ws = upgrades.clone();
                let service = service_fn(move |mut request: hyper::Request<_>| {
                    request.extensions_mut().insert(ClientAddress(peer.ip()));
                    let ws = ws.clone();
                    async move { Ok::<_, std::convert::Infallible>(ws.upgrade(request).await) }
                });
                serving.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades(),
                );
            }
        });
        Self { ws, feed, clock, address, memory, _accepting: accepting }
    }

    pub(crate) async fn connect(&self, user: &str) -> Client {
        Client { socket: self.socket(&format!("/socket/websocket?vsn=2.0.0&user={user}")).await, refs: 0 }
    }

    /// Connects with a small receive buffer, so that the server's socket is soon full when the client does not read.
    pub(crate) async fn connect_narrow(&self, user: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        let request = upgrade_request(&format!("/socket/websocket?vsn=2.0.0&user={user}"), "");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Client { socket: WebSocketStream::from_raw_socket(stream, Role::Client, None).await, refs: 0 }
    }

    /// Connects without a user.
    pub(crate) async fn guest(&self) -> Client {
        Client { socket: self.socket("/socket/websocket?vsn=2.0.0").await, refs: 0 }
    }

    async fn socket(&self, path: &str) -> WebSocketStream<TcpStream> {
        let (mut stream, head) = self.handshake(path, "").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        stream.set_nodelay(true).unwrap();
        stream.flush().await.unwrap();
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    /// Sends an upgrade request with additional `headers`. Returns the head of the answer, with the body of a refusal.
    pub(crate) async fn handshake(&self, path: &str, headers: &str) -> (TcpStream, String) {
        let request = upgrade_request(path, headers);
        self.request(&request).await
    }

    pub(crate) async fn request(&self, request: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = read_head(&mut stream).await;
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).await.unwrap();
        answer.push_str(std::str::from_utf8(&body).unwrap());
        (stream, answer)
    }

    /// Waits until `wanted` is true of the statistics, and returns them.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&WsStats) -> bool) -> WsStats {
        let waiting = async {
            loop {
                let stats = self.ws.stats();
                if wanted(&stats) {
                    return stats;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| {
            panic!("within {PATIENCE:?} this did not happen: {what}; {:?}", self.ws.stats())
        })
    }
}

pub(crate) fn upgrade_request(path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: relay.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// The longest time that a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that sends and receives single messages.
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<TcpStream>,
    refs: u64,
}

impl Client {
    pub(crate) async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    pub(crate) async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> Message {
        let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        next.expect("a message should come").expect("the connection should be open").unwrap()
    }

    /// Receives the next text message.
    pub(crate) async fn next(&mut self) -> Value {
        let message = self.receive().await;
        serde_json::from_str(message.to_text().unwrap()).unwrap_or_else(|_| panic!("not JSON: {message:?}"))
    }

    /// Receives the next binary message.
    pub(crate) async fn next_binary(&mut self) -> Bytes {
        match self.receive().await {
            Message::Binary(bytes) => bytes,
            other => panic!("not binary: {other:?}"),
        }
    }

    /// Receives the code with which the server closes the connection. Earlier messages are skipped.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            if let Message::Close(frame) = self.receive().await {
                // The close message is answered. The server may have closed the socket already.
                let _ = self.socket.flush().await;
                return frame.expect("a code").code.into();
            }
        }
    }

    /// Joins with a new `join_ref`. Returns the payload of the reply.
    pub(crate) async fn join(&mut self, topic: &str, params: Value) -> Value {
        self.refs += 1;
        let reference = format!("j{}", self.refs);
        self.join_as(&reference, topic, params).await
    }

    pub(crate) async fn join_as(&mut self, reference: &str, topic: &str, params: Value) -> Value {
        self.send(json!([reference, reference, topic, "phx_join", params])).await;
        self.reply(reference).await
    }

    /// Receives the payload of the reply to `reference`. Earlier messages are skipped.
    pub(crate) async fn reply(&mut self, reference: &str) -> Value {
        loop {
            let message = self.next().await;
            if message[1] == reference && message[3] == "phx_reply" {
                return message[4].clone();
            }
        }
    }

    /// Receives the payload of the reply to `reference`. Earlier messages are skipped, also binary ones.
    pub(crate) async fn reply_among_binary(&mut self, reference: &str) -> Value {
        loop {
            let Message::Text(text) = self.receive().await else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message[1] == reference {
                return message[4].clone();
            }
        }
    }

    /// Pushes an event. Returns the payload of the reply.
    pub(crate) async fn push(&mut self, join_ref: &str, topic: &str, event: &str, payload: Value) -> Value {
        self.refs += 1;
        let reference = format!("p{}", self.refs);
        self.send(json!([join_ref, reference, topic, event, payload])).await;
        self.reply(&reference).await
    }

    /// Receives the envelope of the next broadcast. Replies are skipped.
    pub(crate) async fn event(&mut self) -> Value {
        loop {
            let message = self.next().await;
            if message[0].is_null() && message[1].is_null() {
                return message[4].clone();
            }
        }
    }

    /// Checks that the connection works, by a heartbeat.
    pub(crate) async fn is_alive(&mut self) {
        self.refs += 1;
        let reference = format!("h{}", self.refs);
        self.send(json!([null, reference, "phoenix", "heartbeat", {}])).await;
        assert_eq!(self.reply(&reference).await, json!({"status": "ok", "response": {}}));
    }
}

/// The payload of an edit that inserts `text`.
pub(crate) fn edit(text: &str) -> Value {
    json!({"patches": [[0, 0, text]]})
}
