//! Members of a room whose sockets take what a script allows. Each member gets every event in order. A full socket delays no
//! other member, and is called again only when it takes bytes again.
//!
//! All members are on one shard, and everything runs on one thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use proptest::prelude::*;
use relay_core::testing::ManualClock;
use relay_core::{Draft, EventSink, Payload};
use relay_events::DOCUMENT_EDITED;
use relay_ws::{WsConfig, WsParts, WsServer};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::scripted::{Connected, connect};
use crate::support::{Feed, Shared, edit, quick};

const DOCUMENT: &str = "notes";
/// The turns of the runtime after which nothing is left to do that needs no further event, byte or time.
const TURNS: usize = 1_000;

/// A document with its members.
struct Room {
    feed: Arc<Feed>,
    clock: Arc<ManualClock>,
    ws: WsServer,
    members: Vec<Member>,
    published: u64,
}

/// A member, and the messages that it has received.
struct Member {
    connected: Connected,
    /// The seq of the last event.
    last_seq: u64,
    /// The references of the heartbeats that are not answered yet.
    heartbeats: VecDeque<String>,
    sent: usize,
}

async fn settle() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// A room with so many members, and a member of the document `other`.
async fn room_and_other(members: usize) -> (Room, Member) {
    let room = Room::of(members, config()).await;
    let mut other = room.join("other", members).await;
    settle().await;
    other.has_joined();
    (room, other)
}

/// Runs `test`, which gets its turn after each run of a shard. Otherwise many runs come between two looks.
fn look_after_each_run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().event_interval(1).build().unwrap().block_on(test);
}

fn config() -> WsConfig {
    let mut config = quick();
    config.shards = Some(1);
    config
}

impl Room {
    async fn of(members: usize, config: WsConfig) -> Self {
        let clock = Arc::new(ManualClock::new());
        let feed = Arc::new(Feed::new(Arc::clone(&clock)));
        let source = Arc::new(Shared(Arc::clone(&feed)));
        let ws = WsServer::with_parts(config, WsParts::new(Arc::clone(&feed) as _, source, clock.clone()));
        let ws = ws.unwrap();
        let mut room = Self { feed, clock, ws, members: Vec::new(), published: 0 };
        for number in 0..members {
            let member = room.join(DOCUMENT, number).await;
            room.members.push(member);
        }
        settle().await;
        room.members.iter_mut().for_each(Member::has_joined);
        assert_eq!(room.feed.subscriptions(DOCUMENT), members.min(1), "the members share one stream");
        room
    }

    /// Connects a client, which asks to join `document`.
    async fn join(&self, document: &str, number: usize) -> Member {
        let connected = connect(&self.ws, &format!("/socket/websocket?vsn=2.0.0&user=u{number}")).await;
        let mut member = Member { connected, last_seq: 0, heartbeats: VecDeque::new(), sent: 0 };
        member.send(&json!(["1", "1", format!("document:{document}"), "phx_join", {}]));
        member
    }

    /// Publishes an event with this many bytes of text.
    fn publish(&mut self, bytes: usize) {
        self.publish_in(DOCUMENT, bytes);
        self.published += 1;
    }

    fn publish_in(&self, document: &str, bytes: usize) {
        let payload = Payload::json(&edit(&"x".repeat(bytes))).unwrap();
        let draft = Draft::new(document.parse().unwrap(), DOCUMENT_EDITED, payload);
        self.feed.publish(relay_events::check(draft).unwrap()).now_or_never().unwrap().unwrap();
    }

    /// Checks that these members have every event so far, and all answers.
    #[track_caller]
    fn have_all(&mut self, members: impl IntoIterator<Item = usize>) {
        for number in members {
            let member = &mut self.members[number];
            member.read();
            assert_eq!(member.last_seq, self.published, "member {number}");
            assert!(member.heartbeats.is_empty(), "member {number} is not answered");
        }
    }

    /// Runs until `is_so`, over ticks of the shard.
    async fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let waiting = async {
            while !is_so(self) {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok(), "never: {what}");
    }
}

impl Member {
    fn send(&mut self, message: &Value) {
        let Connected { wire, client } = &mut self.connected;
        client.send(Message::text(message.to_string())).unwrap();
        let bytes = std::mem::take(&mut client.get_mut().outgoing);
        wire.lock().send(&bytes);
    }

    /// Checks that the only message so far accepts its join.
    #[track_caller]
    fn has_joined(&mut self) {
        let joined = self.receive();
        assert_eq!((joined.len(), &joined[0][4]["status"]), (1, &json!("ok")));
    }

    fn heartbeat(&mut self) {
        self.sent += 1;
        let reference = format!("h{}", self.sent);
        self.send(&json!([null, reference, "phoenix", "heartbeat", {}]));
        self.heartbeats.push_back(reference);
    }

    /// The whole messages that have arrived.
    fn receive(&mut self) -> Vec<Value> {
        self.connected.receive()
    }

    /// Takes the messages that have arrived, which must be the next events and the next answers.
    #[track_caller]
    fn read(&mut self) {
        for message in self.receive() {
            if message[3] == "phx_reply" {
                assert_eq!(self.heartbeats.pop_front().as_deref(), message[1].as_str());
            } else {
                assert_eq!(message[4]["seq"], self.last_seq + 1);
                self.last_seq += 1;
            }
        }
    }

    /// Lets the socket take no more than `bytes`.
    fn limit(&self, bytes: usize) {
        let mut wire = self.connected.wire.lock();
        wire.window = wire.window.min(bytes);
    }

    fn take(&self, bytes: usize) {
        self.connected.wire.lock().take(bytes);
    }

    /// The number of writes that found the socket full.
    fn refused(&self) -> usize {
        self.connected.wire.lock().refused
    }
}

#[tokio::test]
async fn a_full_socket_is_not_called_until_it_takes_bytes_and_delays_no_other_member() {
    let mut room = Room::of(3, config()).await;
    for window in [0, 100] {
        room.members[0].limit(window);
        room.publish(10);
        settle().await;
        let refused = room.members[0].refused();
        for _ in 0..500 {
            room.publish(10);
        }
        settle().await;
        room.have_all([1, 2]);
        assert_eq!(room.members[0].refused(), refused, "nothing is written to a socket that is full");

        // It is called for each byte that it takes.
        for _ in 0..50 {
            room.members[0].take(1);
            settle().await;
            assert_eq!(room.members[0].connected.wire.lock().window, 0);
        }
        room.members[0].take(usize::MAX);
        settle().await;
        room.have_all(0..3);
        assert_eq!(room.feed.subscriptions(DOCUMENT), 1, "the member is in the room again");
    }
}

#[tokio::test]
async fn a_member_that_is_ahead_of_its_room_enters_it_when_the_room_has_caught_up() {
    let mut room = Room::of(3, config()).await;
    room.members[0].limit(0);
    room.publish(10);
    settle().await;
    // The member is polled before its room. It reads the event by itself, and finds the room behind.
    room.members[0].take(usize::MAX);
    room.publish(10);
    settle().await;
    room.have_all(0..3);
    assert_eq!(room.feed.subscriptions(DOCUMENT), 1, "the member is in the room again");
}

#[tokio::test]
async fn a_member_whose_socket_takes_nothing_for_too_long_ends_alone() {
    let config = config();
    let stall = config.write_stall_timeout;
    let mut room = Room::of(3, config).await;
    room.members[0].limit(0);
    room.publish(10);
    settle().await;
    room.clock.advance(stall);
    room.until("the member's stream ends", |room| room.feed.subscriptions(DOCUMENT) == 1).await;
    room.publish(10);
    settle().await;
    room.have_all([1, 2]);
    // The close message is not taken either.
    room.clock.advance(stall);
    room.until("the connection ends", |room| room.ws.stats().connections_open == 2).await;
}

#[tokio::test]
async fn a_turn_that_writes_more_than_the_buffer_keeps_its_order_and_pauses_reading() {
    let mut config = config();
    config.write_buffer_bytes = 1_000;
    let mut room = Room::of(2, config).await;
    // A batch of the room, then events that the member reads by itself, each larger than the buffer.
    for window in [0, 1, 999, 1_001, 60_000] {
        let member = &mut room.members[0];
        member.limit(window);
        for bytes in [30_000, 10, 2_000, 100_000, 10] {
            room.publish(bytes);
        }
        settle().await;
        room.have_all([1]);
        let member = &mut room.members[0];
        for _ in 0..100 {
            member.heartbeat();
        }
        settle().await;
        let unread = member.connected.wire.lock().incoming.len();
        settle().await;
        assert!(unread > 0 && member.connected.wire.lock().incoming.len() == unread, "reading is paused");
        while room.members[0].last_seq < room.published {
            room.members[0].take(777);
            settle().await;
            room.members[0].read();
        }
        room.members[0].take(usize::MAX);
        settle().await;
        room.have_all(0..2);
        assert_eq!(room.feed.subscriptions(DOCUMENT), 1, "the member is in the room again");
    }
}

#[tokio::test]
async fn a_room_with_much_to_deliver_delays_a_member_of_another_document_by_one_turn() {
    const MEMBERS: usize = 400;
    let (mut room, mut other) = room_and_other(MEMBERS).await;
    let writes = Arc::new(Mutex::new(Vec::new()));
    for (number, member) in room.members.iter().chain([&other]).enumerate() {
        let mut wire = member.connected.wire.lock();
        (wire.number, wire.writes) = (number, Arc::clone(&writes));
    }
    for round in 1..=10 {
        // The room has to write to each of its members once more at least.
        for _ in 0..4 {
            room.publish(10);
        }
        let begun = writes.lock().len();
        room.publish_in("other", 10);
        other.heartbeat();
        room.until("the other member has its event and its answer", |_| {
            other.read();
            other.last_seq == round && other.heartbeats.is_empty()
        })
        .await;
        let last = writes.lock().iter().rposition(|number| *number == MEMBERS).unwrap();
        // More than the writes of a turn, and fewer than those of a batch.
        assert!(last - begun < MEMBERS / 2, "{} writes of the room came first", last - begun);
    }
    settle().await;
    room.have_all(0..MEMBERS);
}

#[test]
fn a_large_room_that_ends_delays_a_member_of_another_document_by_one_turn() {
    look_after_each_run(async {
        const MEMBERS: usize = 400;
        let (mut room, mut other) = room_and_other(MEMBERS).await;
        // The events are dropped before the room has read them.
        for _ in 0..3 {
            room.publish(10);
        }
        room.feed.trim(DOCUMENT, 3);
        other.heartbeat();
        room.until("the other member has its answer", |_| {
            other.read();
            other.heartbeats.is_empty()
        })
        .await;
        let ended = room.ws.stats().channel_errors["lagged"];
        assert!(ended < MEMBERS as u64 / 2, "{ended} members were ended first");

        // The last member has been told, and the first one has not. Both join again.
        let again = [(0, "phx_close", json!({})), (MEMBERS - 1, "phx_error", json!({"reason": "lagged"}))];
        for (number, ..) in &again {
            room.members[*number].send(&json!(["2", "2", "document:notes", "phx_join", {}]));
        }
        settle().await;
        for (number, event, payload) in &again {
            let received = room.members[*number].receive();
            assert_eq!(received[0], json!(["1", "1", "document:notes", event, payload]));
            assert_eq!((&received[1][4]["status"], received.len()), (&json!("ok"), 2));
        }
        for member in &mut room.members[1..MEMBERS - 1] {
            let ended = json!(["1", "1", "document:notes", "phx_error", {"reason": "lagged"}]);
            assert_eq!(member.receive(), [ended]);
        }
        assert_eq!(room.feed.subscriptions(DOCUMENT), 1, "the two members share a room");
        room.publish(10);
        settle().await;
        for (number, ..) in again {
            assert_eq!(room.members[number].receive()[0][4]["seq"], room.published);
        }
        let stats = room.ws.stats();
        assert_eq!((stats.channel_errors["lagged"], stats.rooms_open), (MEMBERS as u64 - 1, 2));
    });
}

#[tokio::test]
async fn members_whose_sockets_are_full_still_count_as_readers() {
    let mut room = Room::of(3, config()).await;
    assert_eq!(room.feed.readers(DOCUMENT), 3);
    for (full, member) in (1..).zip([2, 0, 1]) {
        room.members[member].limit(0);
        room.publish(10);
        settle().await;
        assert_eq!(room.feed.readers(DOCUMENT), 3, "{full} sockets are full");
    }
    assert_eq!(room.feed.subscriptions(DOCUMENT), 3, "each reads on by itself");
    for member in 0..3 {
        room.members[member].take(usize::MAX);
        settle().await;
        assert_eq!(room.feed.readers(DOCUMENT), 3);
    }
    room.have_all(0..3);
}

#[tokio::test]
async fn a_member_whose_socket_is_full_when_its_room_ends_is_told_the_reason() {
    let room = Room::of(0, config()).await;
    let mut members = [room.join("brief", 0).await, room.join("brief", 1).await];
    settle().await;
    members.iter_mut().for_each(Member::has_joined);
    members[0].limit(0);
    room.publish_in("brief", 10);
    settle().await;
    members[0].take(usize::MAX);
    settle().await;
    for member in &mut members {
        let received = member.receive();
        assert_eq!((&received[0][4]["seq"], received.len()), (&json!(1), 2));
        assert_eq!(received[1], json!(["1", "1", "document:brief", "phx_error", {"reason": "lagged"}]));
    }
}

#[test]
fn a_server_that_stops_notifies_the_members_of_a_large_room_in_turns() {
    look_after_each_run(async {
        const MEMBERS: usize = 400;
        let (mut room, mut other) = room_and_other(MEMBERS).await;
        let before = room.ws.stats().messages_out;
        let ws = room.ws.clone();
        let mut stopping = Box::pin(ws.shutdown(Duration::from_secs(20)));
        assert!((&mut stopping).now_or_never().is_none());
        other.heartbeat();
        room.until("the other member has its answer", |_| {
            other.receive().iter().any(|message| message[3] == "phx_reply")
        })
        .await;
        let sent = room.ws.stats().messages_out - before;
        assert!(sent < MEMBERS as u64 / 2, "{sent} messages were sent first");
        settle().await;
        // The first member is closed at once.
        for member in &mut room.members[1..] {
            let received = member.receive();
            assert_eq!((&received[0][3], received.len()), (&json!("system.notice"), 1));
        }
    });
}

/// A step of a publisher, a member or its socket.
#[derive(Debug, Clone)]
enum Step {
    /// Publishes an event with this many bytes of text.
    Publish(usize),
    /// Makes a member's socket take this many bytes at most.
    Limit(usize, usize),
    /// Makes it take this many bytes more.
    Take(usize, usize),
    Heartbeats(usize, usize),
    Run(usize),
}

/// The members with a script. A further one takes everything.
const SCRIPTED: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let member = 0..SCRIPTED;
    prop_oneof![
        6 => prop_oneof![4 => 1_usize..100, 1 => 100_usize..20_000].prop_map(Step::Publish),
        2 => (member.clone(), prop_oneof![Just(0_usize), 0_usize..2_000])
            .prop_map(|(member, bytes)| Step::Limit(member, bytes)),
        3 => (member.clone(), 1_usize..4_000).prop_map(|(member, bytes)| Step::Take(member, bytes)),
        2 => (member, 1_usize..40).prop_map(|(member, count)| Step::Heartbeats(member, count)),
        3 => (1_usize..30).prop_map(Step::Run),
    ]
}

async fn run(config: WsConfig, steps: Vec<Step>) {
    let mut room = Room::of(SCRIPTED + 1, config).await;
    for step in steps {
        match step {
            Step::Publish(bytes) => room.publish(bytes),
            Step::Limit(member, bytes) => room.members[member].limit(bytes),
            Step::Take(member, bytes) => room.members[member].take(bytes),
            Step::Heartbeats(member, count) => (0..count).for_each(|_| room.members[member].heartbeat()),
            Step::Run(turns) => {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            }
        }
        room.members.iter_mut().for_each(Member::read);
    }
    settle().await;
    room.have_all([SCRIPTED]);
    room.members.iter().for_each(|member| member.take(usize::MAX));
    settle().await;
    room.have_all(0..=SCRIPTED);
    assert_eq!(room.feed.subscriptions(DOCUMENT), 1, "all members are in the room again");
    assert_eq!(room.ws.stats().panicked, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_member_gets_each_event_and_answer_once_and_returns_to_the_room(
        steps in prop::collection::vec(step(), 1..60),
        write_buffer_bytes in prop_oneof![Just(64 * 1024_usize), 200_usize..5_000],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut config = config();
        config.write_buffer_bytes = write_buffer_bytes;
        runtime.block_on(run(config, steps));
    }
}
