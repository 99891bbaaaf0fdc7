//! Each kind of bad input gets its error or close code, is counted, and does not harm other connections.

use std::time::Duration;

use futures_util::SinkExt;
use relay_core::{Draft, EventSink, Payload};
use relay_events::DOCUMENT_EDITED;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::support::{Client, Server, edit, quick};

/// A server and two clients that have joined `notes`. The first one sends the bad input.
async fn scene() -> (Server, Client, Client) {
    let mut config = quick();
    (config.max_frame_bytes, config.max_topics) = (4096, 3);
    let server = Server::with(config).await;
    let (mut mallory, mut bob) = (server.connect("mallory").await, server.connect("bob").await);
    mallory.join_as("1", "document:notes", json!({})).await;
    bob.join_as("1", "document:notes", json!({})).await;
    (server, mallory, bob)
}

/// Checks that the message closes its sender's connection with `code`, and no other connection.
async fn closes(message: Message, code: u16) {
    let (server, mut mallory, mut bob) = scene().await;
    mallory.send_raw(message).await;
    assert_eq!(mallory.closed().await, code);
    assert_eq!(server.ws.stats().closed[&code], 1);
    works(&server, &mut bob).await;
}

/// Checks that the push is refused with `reason`, and that the connection goes on.
async fn refuses(topic: &str, event: &str, payload: Value, reason: &str) {
    let (server, mut mallory, mut bob) = scene().await;
    let reply = mallory.push("1", topic, event, payload).await;
    assert_eq!(reply["status"], "error", "{reply}");
    assert_eq!(reply["response"]["reason"], reason, "{reply}");
    assert_eq!(server.ws.stats().errors[reason], 1);
    mallory.is_alive().await;
    works(&server, &mut bob).await;
}

async fn works(server: &Server, bob: &mut Client) {
    let ack = bob.push("1", "document:notes", "document.edited", edit("still here")).await;
    assert_eq!(ack["status"], "ok");
    assert_eq!(server.feed.count("notes"), 1);
}

#[tokio::test]
async fn text_that_is_not_json_closes_with_1003() {
    closes(Message::text("hello?"), 1003).await;
}

#[tokio::test]
async fn json_that_is_not_a_message_closes_with_1003() {
    closes(Message::text(r#"{"topic": "document:notes"}"#), 1003).await;
    closes(Message::text(r#"["1", 2, "document:notes", "phx_leave", {}]"#), 1003).await;
    closes(Message::text(r#"["1", "2", "document:notes", "phx_leave"]"#), 1003).await;
}

#[tokio::test]
async fn a_malformed_binary_message_closes_with_1003() {
    closes(Message::binary(vec![]), 1003).await;
    closes(Message::binary(vec![0, 9, 9, 9, 9, b'x']), 1003).await;
    closes(Message::binary(vec![7, 7, 7]), 1003).await;
    closes(Message::binary(b"\x00\x01\x00\x00\x00\xff".to_vec()), 1003).await;
}

#[tokio::test]
async fn a_reference_of_more_than_255_bytes_closes_with_1003() {
    closes(Message::text(json!([null, "r".repeat(256), "phoenix", "heartbeat", {}]).to_string()), 1003).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_closes_with_1007() {
    let frame = Frame::message(&b"[\"\xff\"]"[..], OpCode::Data(Data::Text), true);
    closes(Message::Frame(frame), 1007).await;
}

#[tokio::test]
async fn a_message_that_is_too_large_and_names_no_ref_closes_with_1009() {
    closes(Message::text("x".repeat(4097)), 1009).await;
    closes(Message::binary(vec![0; 4097]), 1009).await;
    closes(
        Message::text(json!(["1", null, "document:notes", "publish", "x".repeat(4097)]).to_string()),
        1009,
    )
    .await;
}

/// A binary push to `notes` with this ref.
fn binary_push(reference: u8, bytes: usize) -> Message {
    let mut push = vec![0, 1, 1, 14, 15, b'1', reference];
    push.extend(b"document:notesdocument.edited");
    push.resize(push.len() + bytes, 0);
    Message::binary(push)
}

#[tokio::test]
async fn a_push_that_is_too_large_is_refused_and_its_channel_goes_on() {
    let (server, mut mallory, mut bob) = scene().await;
    for event in ["document.edited", "publish", "x-note"] {
        let reply = mallory.push("1", "document:notes", event, json!("x".repeat(5000))).await;
        assert_eq!((&reply["status"], &reply["response"]["reason"]), (&json!("error"), &json!("too_large")));
        let message = reply["response"]["message"].as_str().unwrap();
        assert!(message.contains(event) && message.contains("4096"), "{message}");
    }
    mallory.send_raw(binary_push(b'7', 5000)).await;
    assert_eq!(mallory.reply("7").await["response"]["reason"], "too_large");
    let ack = mallory.push("1", "document:notes", "document.edited", edit("small")).await;
    assert_eq!(ack["status"], "ok");
    assert_eq!(server.ws.stats().errors["too_large"], 4);
    assert!(server.ws.stats().closed.is_empty());
    bob.is_alive().await;
}

#[tokio::test]
async fn a_join_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let (server, mut mallory, mut bob) = scene().await;
    let reply = mallory.join_as("2", "document:other", json!({"state": "x".repeat(5000)})).await;
    assert_eq!((&reply["status"], &reply["response"]["reason"]), (&json!("error"), &json!("too_large")));
    let reply = mallory.join_as("3", "document:other", json!({})).await;
    assert_eq!(reply["status"], "ok");
    mallory.is_alive().await;
    works(&server, &mut bob).await;
}

#[tokio::test]
async fn the_refusal_of_a_message_that_is_too_large_keeps_its_place_among_the_replies() {
    let (server, mut mallory, _bob) = scene().await;
    server.feed.hold();
    mallory.send(json!(["1", "a", "document:notes", "document.edited", edit("first")])).await;
    mallory.send(json!(["1", "b", "document:notes", "document.edited", "x".repeat(5000)])).await;
    mallory.send(json!(["1", "c", "document:notes", "document.edited", edit("last")])).await;
    server.until("it is refused", |stats| stats.errors.contains_key("too_large")).await;
    server.feed.release();
    let mut refs = Vec::new();
    while refs.len() < 3 {
        let message = mallory.next().await;
        if message[3] == "phx_reply" {
            refs.push(message[1].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(refs, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_client_that_announces_a_huge_message_learns_why_it_is_closed_while_it_still_sends() {
    let (server, mut mallory, mut bob) = scene().await;
    let raw = mallory.socket.get_mut();
    raw.write_all(&[0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4]).await.unwrap();
    server.until("it is being closed", |stats| stats.closed.contains_key(&1009)).await;
    for _ in 0..10 {
        // A socket that the server had closed would answer this with a reset.
        mallory.socket.get_mut().write_all(&vec![0; 64 * 1024]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(mallory.closed().await, 1009);
    works(&server, &mut bob).await;
}

#[tokio::test]
async fn a_frame_that_is_not_websocket_closes_with_1002() {
    let (server, mut mallory, mut bob) = scene().await;
    // An unmasked frame with reserved bits.
    mallory.socket.get_mut().write_all(&[0xf1, 0x00]).await.unwrap();
    assert_eq!(mallory.closed().await, 1002);
    assert_eq!(server.ws.stats().closed[&1002], 1);
    works(&server, &mut bob).await;
}

#[tokio::test]
async fn an_unknown_event_is_refused() {
    refuses("document:notes", "document.exploded", json!({}), "unknown_event").await;
    refuses("document:notes", "publish", json!({"kind": "nope", "payload": {}}), "unknown_event").await;
}

#[tokio::test]
async fn a_payload_that_does_not_fit_its_kind_is_refused() {
    refuses("document:notes", "document.edited", json!({"patches": "all"}), "invalid_payload").await;
    refuses("document:notes", "cursor.moved", json!({"position": null}), "invalid_payload").await;
}

#[tokio::test]
async fn a_draft_with_an_unknown_field_is_refused() {
    let draft = json!({"kind": "x-note", "payload": {}, "sequence": 9});
    refuses("document:notes", "publish", draft, "invalid_request").await;
}

#[tokio::test]
async fn a_push_on_a_topic_that_is_not_joined_is_refused() {
    refuses("document:other", "document.edited", edit("a"), "unmatched topic").await;
    refuses("phoenix", "boom", json!({}), "unmatched topic").await;
}

#[tokio::test]
async fn a_join_of_an_unknown_topic_is_refused() {
    refuses("lobby", "phx_join", json!({}), "unmatched topic").await;
}

#[tokio::test]
async fn a_document_id_that_is_too_long_or_empty_is_refused() {
    refuses(&format!("document:{}", "x".repeat(257)), "phx_join", json!({}), "invalid_request").await;
    refuses("document:", "phx_join", json!({}), "invalid_request").await;
}

#[tokio::test]
async fn malformed_join_parameters_are_refused_and_leave_the_channel_as_it_was() {
    for params in [
        json!({"epoch": "0000000000000001"}),
        json!({"seq": -1}),
        json!({"epoch": 7, "seq": 1}),
        json!("everything"),
    ] {
        refuses("document:notes", "phx_join", params, "invalid_request").await;
    }
}

#[tokio::test]
async fn more_topics_than_allowed_are_refused_until_one_is_left() {
    let (server, mut mallory, mut bob) = scene().await;
    assert_eq!(mallory.join("document:2", json!({})).await["status"], "ok");
    assert_eq!(mallory.join_as("three", "document:3", json!({})).await["status"], "ok");
    let refused = mallory.join("document:4", json!({})).await;
    assert_eq!(refused["response"]["reason"], "too many channels joined");
    assert_eq!(mallory.join_as("again", "document:3", json!({})).await["status"], "ok");
    mallory.send(json!(["again", "l", "document:3", "phx_leave", {}])).await;
    assert_eq!(mallory.reply("l").await["status"], "ok");
    assert_eq!(mallory.join("document:4", json!({})).await["status"], "ok");
    assert_eq!(server.ws.stats().errors["too many channels joined"], 1);
    works(&server, &mut bob).await;
}

#[tokio::test]
async fn a_panic_in_a_document_ends_its_channels_alone_and_one_in_a_connection_that_connection_alone() {
    let (server, mut mallory, mut bob) = scene().await;
    mallory.join_as("p", "document:panic", json!({})).await;
    mallory.send(json!(["p", "1", "document:panic", "document.edited", edit("a")])).await;
    server.until("the room's panic is counted", |stats| stats.panicked == 1).await;
    loop {
        let message = mallory.next().await;
        if message[3] == "phx_error" {
            assert_eq!(message, json!(["p", "p", "document:panic", "phx_error", {"reason": "closed"}]));
            break;
        }
    }
    mallory.is_alive().await;
    // The connection reads that document itself now, to catch up.
    mallory.send(json!(["q", "q", "document:panic", "phx_join", {"seq": 0}])).await;
    let stats = server.until("the connection's panic is counted", |stats| stats.panicked == 2).await;
    assert_eq!(stats.connections_open, 1);
    assert_eq!(server.ws.members(&"notes".parse().unwrap()).await.len(), 1);
    works(&server, &mut bob).await;
    server.ws.shutdown(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn the_unsent_messages_of_a_connection_that_panics_reach_no_other_client() {
    let mut config = quick();
    config.shards = Some(1);
    let server = Server::with(config).await;
    for document in ["plans", "panic"] {
        let payload = Payload::json(&edit("a")).unwrap();
        let draft = Draft::new(document.parse().unwrap(), DOCUMENT_EDITED, payload);
        server.feed.publish(relay_events::check(draft).unwrap()).await.unwrap();
    }
    let (mut mallory, mut bob) = (server.connect("mallory").await, server.connect("bob").await);
    // The event of the first document is encoded when the second document panics.
    for topic in ["document:plans", "document:panic"] {
        let join = json!([topic, topic, topic, "phx_join", {"seq": 0}]);
        mallory.socket.feed(Message::text(join.to_string())).await.unwrap();
    }
    mallory.socket.flush().await.unwrap();
    server.until("the connection's panic is counted", |stats| stats.panicked == 1).await;
    bob.send(json!([null, "h", "phoenix", "heartbeat", {}])).await;
    let next = bob.next().await;
    assert_eq!((&next[1], &next[3]), (&json!("h"), &json!("phx_reply")), "{next}");
}
