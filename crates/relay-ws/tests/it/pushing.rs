//! Pushes, their acks, and the delivery of events to members.

use relay_core::{DocumentId, Draft, EventSink, Kind, Payload};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{EPOCH, Server, edit};

#[tokio::test]
async fn a_push_is_answered_with_its_ack_and_every_member_gets_the_event() {
    let server = Server::start().await;
    let (mut ada, mut bob) = (server.connect("ada").await, server.connect("bob").await);
    ada.join_as("1", "document:notes", json!({})).await;
    bob.join_as("1", "document:notes", json!({})).await;

    let ack = ada.push("1", "document:notes", "document.edited", edit("h")).await;
    assert_eq!(ack["status"], "ok");
    assert_eq!(ack["response"]["seq"], 1);
    assert_eq!(ack["response"]["epoch"], EPOCH.to_string());
    assert_eq!(ack["response"]["duplicate"], false);
    let message = bob.next().await;
    assert_eq!(message[0], Value::Null);
    assert_eq!(message[1], Value::Null);
    assert_eq!(message[2], "document:notes");
    assert_eq!(message[3], "document.edited");
    let event = &message[4];
    assert_eq!(event["id"], ack["response"]["id"]);
    assert_eq!(event["seq"], 1);
    assert_eq!(event["actor"], "user:ada");
    assert_eq!(event["payload"], edit("h"));
    let stats = server.until("one delivery each", |stats| stats.deliveries == 2).await;
    assert_eq!((stats.joins, stats.pushes, stats.rooms_open), (2, 1, 1));
}

#[tokio::test]
async fn a_draft_that_calls_its_author_a_service_sets_no_metadata_of_the_server() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    let draft = json!({
        "kind": "x-note", "payload": 1, "actor": "service:sift", "metadata": {"relay.causes": "quality"},
    });
    let reply = ada.push("1", "document:notes", "publish", draft).await;
    assert_eq!(reply["status"], "error", "{reply}");
    assert_eq!(reply["response"]["reason"], "invalid_request", "{reply}");
    assert_eq!(server.feed.count("notes"), 0);
}

#[tokio::test]
async fn a_whole_draft_may_be_pushed_and_its_actor_is_always_the_connections_user() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    let draft = json!({
        "kind": "x-note", "payload": {"text": "hi"}, "actor": "system", "metadata": {"tab": "2"},
        "id": "0199c9a2-6a51-7cc0-8f3e-2b7d5c6f1a90",
    });
    ada.send(json!(["1", "9", "document:notes", "publish", draft])).await;
    assert_eq!(ada.reply("9").await["response"]["id"], "0199c9a2-6a51-7cc0-8f3e-2b7d5c6f1a90");
    let event = ada.event().await;
    assert_eq!(event["kind"], "x-note");
    assert_eq!(event["actor"], "user:ada");
    assert_eq!(event["metadata"], json!({"tab": "2"}));
}

#[tokio::test]
async fn pushes_are_published_in_their_order_before_the_first_is_answered() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    server.feed.hold();
    for number in 1..=100 {
        ada.send(json!(["1", number.to_string(), "document:notes", "document.edited", edit("a")])).await;
    }
    let mut bob = server.connect("bob").await;
    bob.join("document:notes", json!({"seq": 0})).await;
    for seq in 1..=100 {
        assert_eq!(bob.event().await["seq"], seq);
    }
    assert_eq!(server.ws.stats().pushes, 0);
    server.feed.release();
    for number in 1..=100 {
        assert_eq!(ada.reply(&number.to_string()).await["response"]["seq"], number);
    }
}

#[tokio::test]
async fn a_connection_with_too_many_unanswered_pushes_is_not_read_until_answers_come() {
    let mut config = crate::support::quick();
    config.max_pending_pushes = 4;
    let server = Server::with(config).await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    server.feed.hold();
    for number in 1..=10 {
        ada.send(json!(["1", number.to_string(), "document:notes", "document.edited", edit("a")])).await;
    }
    let mut bob = server.connect("bob").await;
    bob.join("document:notes", json!({"seq": 0})).await;
    for seq in 1..=4 {
        assert_eq!(bob.event().await["seq"], seq);
    }
    bob.is_alive().await;
    assert_eq!(server.feed.count("notes"), 4);
    server.feed.release();
    for number in 1..=10 {
        assert_eq!(ada.reply(&number.to_string()).await["response"]["seq"], number);
    }
}

#[tokio::test]
async fn bytes_are_pushed_and_received_as_binary_messages() {
    let server = Server::start().await;
    let (mut ada, mut bob) = (server.connect("ada").await, server.connect("bob").await);
    ada.join_as("1", "document:notes", json!({})).await;
    bob.join_as("1", "document:notes", json!({})).await;
    let mut push = vec![0, 1, 1, 14, 15];
    push.extend(b"19document:notesdocument.edited\x00\x01\xff");
    ada.send_raw(Message::binary(push)).await;
    let ack = ada.reply_among_binary("9").await;
    assert_eq!(ack["response"]["seq"], 1);

    let broadcast = bob.next_binary().await;
    let (head, rest) = broadcast.split_at(3 + 14 + 15);
    assert_eq!(head, b"\x02\x0e\x0fdocument:notesdocument.edited");
    let (length, rest) = rest.split_first_chunk::<4>().unwrap();
    let (envelope, payload) = rest.split_at(u32::from_be_bytes(*length) as usize);
    let envelope: Value = serde_json::from_slice(envelope).unwrap();
    assert_eq!(envelope["seq"], 1);
    assert_eq!(envelope.get("payload"), None);
    assert_eq!(payload, b"\x00\x01\xff");
}

#[tokio::test]
async fn bytes_on_a_topic_too_long_for_a_binary_message_come_as_text() {
    let server = Server::start().await;
    let id = "x".repeat(256);
    let topic = format!("document:{id}");
    let mut ada = server.connect("ada").await;
    ada.join_as("1", &topic, json!({})).await;
    let draft = json!({"kind": "x-blob", "payload_base64": "AAH/"});
    ada.push("1", &topic, "publish", draft).await;
    let mut bob = server.connect("bob").await;
    bob.join("x", json!({})).await;
    bob.join(&topic, json!({"seq": 0})).await;
    let event = bob.event().await;
    assert_eq!(event["payload_base64"], "AAH/");
}

#[tokio::test]
async fn a_cursor_without_a_key_is_keyed_by_its_connection() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    let joined = ada.join_as("1", "document:notes", json!({})).await;
    let ack = ada.push("1", "document:notes", "cursor.moved", json!({"position": 3})).await;
    assert_eq!(ack["response"].get("seq"), None);
    let mut bob = server.connect("bob").await;
    bob.join_as("1", "document:notes", json!({})).await;
    ada.push("1", "document:notes", "cursor.moved", json!({"position": 4})).await;
    let event = bob.event().await;
    assert_eq!(event["key"], joined["response"]["connection"]);
    assert_eq!(event["payload"], json!({"position": 4}));
    let own = json!({"kind": "cursor.moved", "payload": {"position": 1}, "key": "left pane"});
    ada.push("1", "document:notes", "publish", own).await;
    assert_eq!(bob.event().await["key"], "left pane");
}

#[tokio::test]
async fn a_push_that_the_feed_refuses_is_answered_with_its_reason() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:doomed", json!({})).await;
    let reply = ada.push("1", "document:doomed", "document.edited", edit("a")).await;
    assert_eq!(reply["status"], "error");
    assert_eq!(reply["response"]["reason"], "overloaded");
    assert_eq!(server.ws.stats().errors["overloaded"], 1);
}

#[tokio::test]
async fn documents_take_turns_so_that_a_busy_one_does_not_hide_a_quiet_one() {
    let server = Server::start().await;
    let note = |document: &str| {
        let kind = Kind::new("x-note", relay_core::DeliveryClass::Sequenced).unwrap();
        let payload = Payload::json(&json!({"n": 1})).unwrap();
        relay_events::check(Draft::new(DocumentId::new(document).unwrap(), kind, payload)).unwrap()
    };
    for _ in 0..1000 {
        server.feed.publish(note("busy")).await.unwrap();
    }
    server.feed.publish(note("quiet")).await.unwrap();
    let mut ada = server.connect("ada").await;
    ada.send(json!(["1", "1", "document:busy", "phx_join", {"seq": 0}])).await;
    ada.send(json!(["2", "2", "document:quiet", "phx_join", {"seq": 0}])).await;
    let mut busy_before_quiet = 0;
    while ada.event().await["document"] == "busy" {
        busy_before_quiet += 1;
    }
    assert!(busy_before_quiet < 1000, "the quiet document came last");
}
