//! Each request is answered once, in whatever order the socket, the client and the other parts of the server act.
//!
//! A script drives the socket. It takes as many bytes as the test allows, so that writes are partial or must wait. Joins and
//! publishes are answered when the test allows it, and other publishers deliver in between. Everything runs on one thread and
//! without a clock.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use parking_lot::Mutex;
use proptest::prelude::*;
use relay_core::testing::ManualClock;
use relay_core::{
    DocumentId, Draft, Event, EventSink, EventSource, EventStream, Head, Payload, ReadLimit, Seq,
    StartPosition, SubscribeAck, SubscribeError,
};
use relay_events::DOCUMENT_EDITED;
use relay_ws::{WsConfig, WsParts, WsServer};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

use crate::scripted::{Buffer, Connected, Wire, connect};
use crate::support::{Feed, Shared, edit, quick};

/// The turns of the runtime after which a reply that has not arrived counts as lost.
const MAX_TURNS: usize = 20_000;
/// The documents that a client joins and leaves.
const DOCUMENTS: usize = 3;

/// A step of the client, of its socket, or of the parts behind the server.
#[derive(Debug, Clone)]
enum Step {
    /// The client sends these requests, and its bytes arrive in pieces of this size.
    Send(Vec<Request>, usize),
    /// The socket takes this many more bytes.
    Take(usize),
    /// The answers to publishes are held, or released.
    HoldPublishes(bool),
    /// The answers to joins are held, or released.
    HoldJoins(bool),
    /// Another publisher publishes this many events in a document.
    Deliver(usize, usize),
    /// The runtime runs for this many turns.
    Run(usize),
}

#[derive(Debug, Clone)]
enum Request {
    Heartbeat,
    Ping,
    Join(usize),
    /// A join whose payload is refused. It ends the join before it all the same.
    BadJoin(usize),
    Leave(usize),
    /// A push, or else a leave, with the reference of an earlier request as that of its join.
    Late(usize, u64, bool),
    /// A push with this many bytes of text.
    Push(usize, usize),
    /// A push that is refused.
    BadPush(usize),
}

fn request() -> impl Strategy<Value = Request> {
    let document = 0..DOCUMENTS;
    prop_oneof![
        2 => Just(Request::Heartbeat),
        1 => Just(Request::Ping),
        3 => document.clone().prop_map(Request::Join),
        1 => document.clone().prop_map(Request::BadJoin),
        2 => document.clone().prop_map(Request::Leave),
        1 => (document.clone(), 1_u64..100, any::<bool>())
            .prop_map(|(document, before, is_push)| Request::Late(document, before, is_push)),
        6 => (document.clone(), prop_oneof![9 => 1_usize..200, 1 => 200_usize..30_000])
            .prop_map(|(document, size)| Request::Push(document, size)),
        1 => document.prop_map(Request::BadPush),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop::collection::vec(request(), 1..100), 1_usize..2_000)
            .prop_map(|(requests, piece)| Step::Send(requests, piece)),
        3 => (1_usize..4_000).prop_map(Step::Take),
        1 => Just(Step::Take(1_000_000)),
        1 => any::<bool>().prop_map(Step::HoldPublishes),
        1 => any::<bool>().prop_map(Step::HoldJoins),
        2 => (0..DOCUMENTS, 1_usize..150).prop_map(|(document, events)| Step::Deliver(document, events)),
        3 => (1_usize..30).prop_map(Step::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_once_and_events_come_without_a_gap(
        steps in prop::collection::vec(step(), 1..40),
        write_buffer_bytes in prop_oneof![Just(64 * 1024_usize), 200_usize..5_000],
        max_pending_pushes in prop_oneof![Just(256_usize), 1_usize..20],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut config = quick();
        config.shards = Some(1);
        config.write_buffer_bytes = write_buffer_bytes;
        config.max_pending_pushes = max_pending_pushes;
        runtime.block_on(Scene::run(config, steps))?;
    }
}

/// A connection over a scripted socket, and a record of the requests that its client made.
struct Scene {
    wire: Arc<Mutex<Wire>>,
    feed: Arc<Feed>,
    hold_joins: watch::Sender<bool>,
    client: WebSocket<Buffer>,
    /// The number of the last request.
    last_ref: u64,
    /// The reference of the last join of each document.
    joins: [u64; DOCUMENTS],
    bad_joins: HashSet<u64>,
    pings: usize,
}

impl Scene {
    async fn run(config: WsConfig, steps: Vec<Step>) -> Result<(), TestCaseError> {
        let clock = Arc::new(ManualClock::new());
        let feed = Arc::new(Feed::new(Arc::clone(&clock)));
        let hold_joins = watch::Sender::new(false);
        let source = LateSource { source: Shared(Arc::clone(&feed)), hold: hold_joins.subscribe() };
        let parts = WsParts::new(Arc::clone(&feed) as _, Arc::new(source), clock);
        let ws = WsServer::with_parts(config, parts).unwrap();
        let Connected { wire, client } = connect(&ws, "/socket/websocket?vsn=2.0.0&user=ada").await;
        wire.lock().window = 0;
        let (joins, bad_joins) = ([0; DOCUMENTS], HashSet::new());
        let mut scene = Self { wire, feed, hold_joins, client, last_ref: 0, joins, bad_joins, pings: 0 };
        for step in steps {
            scene.step(step).await;
        }
        scene.finish().await
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Send(requests, piece) => {
                for request in requests {
                    self.request(&request);
                }
                let bytes = std::mem::take(&mut self.client.get_mut().outgoing);
                for piece in bytes.chunks(piece) {
                    self.wire.lock().send(piece);
                    tokio::task::yield_now().await;
                }
            }
            Step::Take(bytes) => self.wire.lock().take(bytes),
            Step::HoldPublishes(true) => self.feed.hold(),
            Step::HoldPublishes(false) => self.feed.release(),
            Step::HoldJoins(hold) => {
                self.hold_joins.send_replace(hold);
            }
            Step::Deliver(document, events) => {
                for _ in 0..events {
                    let payload = Payload::json(&edit("d")).unwrap();
                    let draft = Draft::new(name(document).parse().unwrap(), DOCUMENT_EDITED, payload);
                    // The event is placed at once, even while its answer is held.
                    let _ = self.feed.publish(relay_events::check(draft).unwrap()).now_or_never();
                }
            }
            Step::Run(turns) => {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn request(&mut self, request: &Request) {
        self.last_ref += 1;
        let reference = self.last_ref.to_string();
        let joined = |document: &usize| self.joins[*document].to_string();
        let topic = |document: &usize| format!("document:{}", name(*document));
        let message = match request {
            Request::Heartbeat => json!([null, reference, "phoenix", "heartbeat", {}]),
            Request::Ping => {
                // A ping has no reference.
                self.last_ref -= 1;
                self.pings += 1;
                return self.client.send(Message::Ping("ping".into())).unwrap();
            }
            Request::Join(document) => {
                self.joins[*document] = self.last_ref;
                json!([reference, reference, topic(document), "phx_join", {}])
            }
            Request::BadJoin(document) => {
                self.joins[*document] = self.last_ref;
                self.bad_joins.insert(self.last_ref);
                json!([reference, reference, topic(document), "phx_join", {"seq": "x"}])
            }
            Request::Leave(document) => {
                json!([joined(document), reference, topic(document), "phx_leave", {}])
            }
            Request::Push(document, size) => {
                json!([
                    joined(document),
                    reference,
                    topic(document),
                    "document.edited",
                    edit(&"x".repeat(*size))
                ])
            }
            Request::Late(document, before, is_push) => {
                let (event, payload) =
                    if *is_push { ("document.edited", edit("late")) } else { ("phx_leave", json!({})) };
                let join_ref = self.last_ref.saturating_sub(*before).to_string();
                json!([join_ref, reference, topic(document), event, payload])
            }
            Request::BadPush(document) => {
                json!([joined(document), reference, topic(document), "document.edited", {"patches": 7}])
            }
        };
        self.client.send(Message::text(message.to_string())).unwrap();
    }

    /// Releases everything, waits until each request is answered, and checks the messages that the client received.
    async fn finish(mut self) -> Result<(), TestCaseError> {
        self.hold_joins.send_replace(false);
        self.feed.release();
        let bad_joins = std::mem::take(&mut self.bad_joins);
        let mut received = Received { bad_joins, ..Received::default() };
        for _ in 0..MAX_TURNS {
            self.wire.lock().take(1_000_000);
            tokio::task::yield_now().await;
            let bytes = std::mem::take(&mut self.wire.lock().outgoing);
            self.client.get_mut().incoming.extend(bytes);
            received.read(&mut self.client)?;
            if received.replied.len() as u64 == self.last_ref && received.pongs == self.pings {
                return Ok(());
            }
        }
        let missing: Vec<u64> = (1..=self.last_ref).filter(|one| !received.replied.contains(one)).collect();
        prop_assert!(missing.is_empty(), "of {} requests these are not answered: {missing:?}", self.last_ref);
        prop_assert_eq!(received.pongs, self.pings, "pongs");
        Ok(())
    }
}

/// The messages that a client received.
#[derive(Debug, Default)]
struct Received {
    bad_joins: HashSet<u64>,
    replied: HashSet<u64>,
    pongs: usize,
    /// The last reply to a push, or to a leave.
    last_in_order: u64,
    /// The seq of the last event of each topic that is joined.
    last_seqs: HashMap<String, u64>,
}

impl Received {
    /// Reads the messages that have arrived, and checks each.
    fn read(&mut self, client: &mut WebSocket<Buffer>) -> Result<(), TestCaseError> {
        loop {
            match client.read() {
                Ok(Message::Pong(_)) => self.pongs += 1,
                Ok(message) => {
                    let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
                    self.take(&message)?;
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => prop_assert!(false, "the client cannot read: {error}"),
            }
        }
    }

    fn take(&mut self, message: &Value) -> Result<(), TestCaseError> {
        let topic = message[2].as_str().unwrap().to_owned();
        match message[3].as_str().unwrap() {
            "phx_reply" => {
                let reference: u64 = message[1].as_str().unwrap().parse().unwrap();
                prop_assert!(self.replied.insert(reference), "{reference} is answered twice");
                if self.bad_joins.contains(&reference) {
                    prop_assert_eq!(&message[4]["status"], "error");
                    prop_assert!(!self.last_seqs.contains_key(&topic), "{} is joined still", topic);
                }
                let response = &message[4]["response"];
                if let Some(position) = response["position"].as_u64() {
                    self.last_seqs.insert(topic, position);
                } else if topic != "phoenix" {
                    prop_assert!(
                        self.last_in_order < reference,
                        "{reference} comes after {}",
                        self.last_in_order
                    );
                    self.last_in_order = reference;
                }
            }
            "phx_close" => {
                self.last_seqs.remove(&topic);
            }
            "document.edited" => {
                let seq = message[4]["seq"].as_u64().unwrap();
                let last = self.last_seqs.get(&topic);
                prop_assert_eq!(last.map(|last| last + 1), Some(seq), "the next event of {}", topic);
                self.last_seqs.insert(topic, seq);
            }
            other => prop_assert!(false, "unexpected: {other}"),
        }
        Ok(())
    }
}

fn name(document: usize) -> String {
    format!("document-{document}")
}

/// A source whose subscriptions wait while they are held.
struct LateSource {
    source: Shared,
    hold: watch::Receiver<bool>,
}

#[async_trait]
impl EventSource for LateSource {
    async fn subscribe(
        &self,
        document: &DocumentId,
        start: StartPosition,
    ) -> Result<(SubscribeAck, Box<dyn EventStream>), SubscribeError> {
        let held = self.hold.clone().wait_for(|hold| !hold).await.map(|_| ());
        assert!(held.is_ok(), "the test holds the sender");
        self.source.subscribe(document, start).await
    }

    async fn history(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<(Head, Vec<Arc<Event>>), SubscribeError> {
        self.source.history(document, after, limit).await
    }
}
