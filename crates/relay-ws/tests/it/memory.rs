//! The bounds of connections in bytes: what clients send and do not read counts, and ends the connection that holds too much.

use std::time::Duration;

use relay_core::{MemoryBudget, MemoryLimits, MemoryPurpose, Metadata, ShareKind};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::attending::waiting_locks;
use crate::support::{Client, Server, edit, quick};

const KIB: usize = 1024;

/// Sends the first fragment of a text, which has `bytes`.
async fn begin_message(client: &mut Client, bytes: usize) {
    let frame = Frame::message(vec![b'x'; bytes], OpCode::Data(Data::Text), false);
    client.send_raw(Message::Frame(frame)).await;
}

/// Waits until `wanted` is true of the budget.
async fn until(memory: &MemoryBudget, what: &str, wanted: impl Fn(&MemoryBudget) -> bool) {
    let waiting = async {
        while !wanted(memory) {
            tokio::task::yield_now().await;
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(outcome.is_ok(), "{what}: {memory:?}");
}

#[tokio::test]
async fn messages_that_arrive_in_part_count_to_the_address_and_are_given_back() {
    let mut limits = MemoryLimits::default();
    limits.max_address_bytes = 1024 * KIB;
    limits.max_connection_bytes = 400 * KIB;
    let server = Server::with_memory(quick(), limits).await;
    let mut clients = Vec::new();
    for number in 1..=3 {
        let mut client = server.connect("ada").await;
        begin_message(&mut client, 300 * KIB).await;
        until(&server.memory, "the bytes count", |memory| {
            memory.held(MemoryPurpose::Messages) >= number * 300 * KIB
        })
        .await;
        clients.push(client);
    }
    let mut fourth = server.connect("ada").await;
    begin_message(&mut fourth, 300 * KIB).await;
    assert_eq!(fourth.closed().await, 1013);
    assert_eq!(server.memory.refusals(ShareKind::Address), 1);
    assert!(server.memory.total().used() <= 1024 * KIB);
    let mut large = server.connect("ben").await;
    drop(clients);
    until(&server.memory, "nothing is left", |memory| memory.total().used() == 0).await;
    begin_message(&mut large, 401 * KIB).await;
    assert_eq!(large.closed().await, 1013);
    assert_eq!(server.memory.refusals(ShareKind::Connection), 1);
}

#[tokio::test]
async fn a_client_that_sends_little_is_not_disconnected_when_others_use_the_memory_up() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    let total = server.memory.total();
    let _others = total.try_reserve(MemoryPurpose::Bodies, total.limit() - total.used()).unwrap();
    for number in 0..20 {
        server.feed.hold();
        let reference = number.to_string();
        ada.send(json!(["1", reference, "document:notes", "x-note", {"n": number}])).await;
        until(&server.memory, "the push waits", |memory| memory.held(MemoryPurpose::Requests) > 0).await;
        server.feed.release();
        ada.reply(&reference).await;
    }
    begin_message(&mut ada, 300 * KIB).await;
    assert_eq!(ada.closed().await, 1013);
}

/// Joins topics until one is refused. Returns the number of those before it, and the refusal.
async fn join_until_refused(client: &mut Client) -> (usize, Value) {
    for number in 0.. {
        let reference = number.to_string();
        let topic = format!("document:notes-{number}");
        client.send(json!([reference, reference, topic, "phx_join", {"presence": false}])).await;
        let reply = client.reply(&reference).await;
        if reply["status"] != "ok" {
            return (number, reply["response"].clone());
        }
    }
    unreachable!("no join is refused")
}

#[tokio::test]
async fn topics_count_to_their_client_until_they_are_left() {
    let mut limits = MemoryLimits::default();
    limits.max_connection_bytes = 16 * KIB;
    let server = Server::with_memory(quick(), limits).await;
    let [mut ada, mut ben] = [server.connect("ada").await, server.connect("ben").await];
    let (joined, refusal) = join_until_refused(&mut ada).await;
    assert!((12..=15).contains(&joined), "{joined}");
    assert_eq!(refusal["reason"], "overloaded");
    assert!(refusal["message"].as_str().unwrap().contains("this connection"), "{refusal}");
    let held = server.memory.held(MemoryPurpose::Subscriptions);
    assert!((joined * 1024..joined * 1100).contains(&held), "{held}");
    assert_eq!(join_until_refused(&mut ben).await.0, joined);
    // A topic that is left makes space for another.
    ada.send(json!(["0", "leave", "document:notes-0", "phx_leave", {}])).await;
    ada.reply("leave").await;
    ada.join_as("again", "document:notes-0", json!({"presence": false})).await;
    drop((ada, ben));
    until(&server.memory, "nothing is left", |memory| memory.total().used() == 0).await;
}

#[tokio::test]
async fn the_first_topics_of_a_connection_are_joined_when_others_use_the_memory_up() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    let total = server.memory.total();
    let _others = total.try_reserve(MemoryPurpose::Bodies, total.limit() - total.used()).unwrap();
    let (joined, refusal) = join_until_refused(&mut ada).await;
    assert_eq!((joined, &refusal["reason"]), (4, &json!("overloaded")));
    ada.is_alive().await;
}

#[tokio::test]
async fn a_message_has_a_time_as_a_whole_that_other_frames_do_not_prolong() {
    let server = Server::start().await;
    let (mut slow, mut other) = (server.connect("slow").await, server.connect("other").await);
    begin_message(&mut slow, 10).await;
    until(&server.memory, "the message begins", |memory| memory.held(MemoryPurpose::Messages) > 0).await;
    for seconds in [20, 9] {
        server.clock.advance(Duration::from_secs(seconds));
        slow.send_raw(Message::Ping(vec![1].into())).await;
        assert!(matches!(slow.receive().await, Message::Pong(_)));
        let more = Frame::message(vec![b'x'; 10], OpCode::Data(Data::Continue), false);
        slow.send_raw(Message::Frame(more)).await;
        other.is_alive().await;
    }
    server.clock.advance(Duration::from_secs(1));
    assert_eq!(slow.closed().await, 1008);
    other.is_alive().await;
}

#[tokio::test]
async fn a_message_that_is_whole_in_time_leaves_the_next_one_its_own_time() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    for _ in 0..3 {
        let heartbeat = json!([null, "1", "phoenix", "heartbeat", {}]).to_string();
        let (begin, end) = heartbeat.split_at(10);
        let begin = Frame::message(begin.to_owned(), OpCode::Data(Data::Text), false);
        ada.send_raw(Message::Frame(begin)).await;
        until(&server.memory, "the message begins", |memory| memory.held(MemoryPurpose::Messages) > 0).await;
        server.clock.advance(Duration::from_secs(20));
        let end = Frame::message(end.to_owned(), OpCode::Data(Data::Continue), true);
        ada.send_raw(Message::Frame(end)).await;
        assert_eq!(ada.reply("1").await["status"], "ok");
    }
}

#[tokio::test]
async fn commands_that_wait_are_bounded_in_bytes() {
    let (presence, commands) = waiting_locks();
    let server = Server::with_presence(quick(), presence, commands).await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    let before = server.ws.stats().messages_in;
    // More than the server reads, so that the socket is full at some time.
    let sending = async {
        for number in 0..200 {
            let arguments = json!({"x": "y".repeat(100 * KIB)});
            ada.send(json!(["1", number.to_string(), "document:notes", "lock:acquire", arguments])).await;
        }
    };
    let full =
        until(&server.memory, "requests wait", |memory| memory.held(MemoryPurpose::Requests) >= 1024 * KIB);
    tokio::select! {
        () = sending => panic!("all were read"),
        () = full => {}
    }
    let held = server.memory.held(MemoryPurpose::Requests);
    assert!(held <= (1024 + 102) * KIB, "{held}");
    assert!(server.ws.stats().messages_in - before <= 11);
}

#[tokio::test]
async fn metadata_counts_among_the_bytes_of_unanswered_pushes() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    server.feed.hold();
    let metadata: serde_json::Map<_, _> =
        (0..32).map(|entry| (format!("key {entry}"), json!("x".repeat(Metadata::MAX_VALUE_BYTES)))).collect();
    for number in 0..100 {
        let draft = json!({"kind": "x-note", "payload": 1, "metadata": metadata});
        ada.send(json!(["1", number.to_string(), "document:notes", "publish", draft])).await;
    }
    until(&server.memory, "pushes wait", |memory| memory.held(MemoryPurpose::Requests) >= 1024 * KIB).await;
    let held = server.memory.held(MemoryPurpose::Requests);
    assert!(held <= (1024 + 40) * KIB, "{held}");
    assert!(server.feed.count("notes") < 40);
    server.feed.release();
    ada.reply("99").await;
}

#[test]
fn a_message_that_waits_is_not_copied_again_when_its_connection_is_woken() {
    const PUSHES: usize = 40;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, mut ada) = runtime.block_on(async {
        let server = Server::start().await;
        let mut ada = server.connect("ada").await;
        ada.join_as("1", "document:notes", json!({})).await;
        server.feed.hold();
        for number in 0..PUSHES {
            ada.send(json!(["1", number.to_string(), "document:notes", "document.edited", edit("a")])).await;
        }
        let join = json!(["2", "join", "document:other", "phx_join", {"unknown": "x".repeat(1024 * KIB)}]);
        ada.send(join).await;
        until(&server.memory, "the join waits for the replies", |memory| {
            memory.held(MemoryPurpose::Requests) > 1024 * KIB
        })
        .await;
        (server, ada)
    });
    let answered = allocation_counter::measure(|| {
        runtime.block_on(async {
            for number in 0..PUSHES - 1 {
                server.feed.release_one();
                assert_eq!(ada.reply(&number.to_string()).await["status"], "ok");
            }
        });
    });
    assert!(answered.bytes_total < 1024 * KIB as u64, "{answered:?}");
    runtime.block_on(async {
        server.feed.release();
        assert_eq!(ada.reply("join").await["status"], "ok");
    });
}

#[tokio::test]
async fn members_that_do_not_read_share_one_copy_of_what_waits_for_them() {
    let mut config = quick();
    config.shards = Some(1);
    let server = Server::with(config).await;
    let mut writer = server.connect("writer").await;
    writer.join_as("1", "document:notes", json!({})).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut client = server.connect_narrow("slow").await;
        client.join("document:notes", json!({})).await;
        slow.push(client);
    }
    // One event does not fit into any of their sockets.
    let large = edit(&"x".repeat(1000 * KIB));
    let mut published = 0;
    while server.ws.stats().slow < 20 {
        writer.push("1", "document:notes", "document.edited", large.clone()).await;
        published += 1;
        assert!(published < 20, "{:?}", server.ws.stats());
    }
    let held = server.memory.held(MemoryPurpose::Outgoing);
    assert!(held >= 1000 * KIB && held <= published * 1001 * KIB, "{held} after {published}");
}

#[tokio::test]
async fn when_all_memory_is_used_up_the_connections_that_do_not_read_give_way() {
    let server = Server::start().await;
    let (mut slow, mut writer) = (server.connect_narrow("slow").await, server.connect("writer").await);
    slow.join("document:notes", json!({})).await;
    writer.join_as("1", "document:notes", json!({})).await;
    let large = edit(&"x".repeat(1000 * KIB));
    while server.ws.stats().slow == 0 {
        writer.push("1", "document:notes", "document.edited", large.clone()).await;
    }
    writer.is_alive().await;
    assert_eq!(server.ws.stats().closed.get(&1013), None);
    let total = server.memory.total();
    let _cache = total.charge(MemoryPurpose::Events, total.limit());
    server.until("the slow one is closed", |stats| stats.closed.get(&1013) == Some(&1)).await;
    writer.is_alive().await;
}
