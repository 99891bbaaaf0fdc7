//! The turns of connections on one shard.

use std::sync::Arc;

use futures_util::{FutureExt, SinkExt};
use relay_core::testing::ManualClock;
use relay_core::{Draft, EventSink, Payload};
use relay_events::DOCUMENT_EDITED;
use relay_ws::{WsConfig, WsParts, WsServer};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::scripted::{Connected, connect};
use crate::support::{Feed, Server, Shared, edit, quick};

/// A server with one shard, for scripted sockets.
fn start(mut config: WsConfig) -> (WsServer, Arc<Feed>) {
    config.shards = Some(1);
    let clock = Arc::new(ManualClock::new());
    let feed = Arc::new(Feed::new(Arc::clone(&clock)));
    let source = Arc::new(Shared(Arc::clone(&feed)));
    (WsServer::with_parts(config, WsParts::new(Arc::clone(&feed) as _, source, clock)).unwrap(), feed)
}

/// Connects a client that joins `notes`.
async fn member(ws: &WsServer, user: &str) -> Connected {
    let mut client = connect(ws, &format!("/socket/websocket?vsn=2.0.0&user={user}")).await;
    client.join("1", "notes").await;
    client
}

/// A push to `notes`.
fn push(reference: u64) -> Value {
    json!(["1", reference.to_string(), "document:notes", "document.edited", edit("a")])
}

#[tokio::test]
async fn a_connection_with_many_pushes_delays_another_by_one_turn() {
    let mut config = quick();
    config.shards = Some(1);
    let server = Server::with(config).await;
    let (mut fast, mut polite) = (server.connect("fast").await, server.connect("polite").await);
    fast.join_as("1", "document:notes", json!({})).await;
    polite.join_as("1", "document:notes", json!({})).await;
    // Everything is written before the server runs, which shares this thread.
    for number in 0..200 {
        let push = json!(["1", number.to_string(), "document:notes", "document.edited", edit("a")]);
        fast.socket.feed(Message::text(push.to_string())).await.unwrap();
    }
    fast.socket.flush().await.unwrap();
    let ack = polite.push("1", "document:notes", "document.edited", edit("b")).await;
    let seq = ack["response"]["seq"].as_u64().unwrap();
    assert!(seq <= 100, "{} pushes of the fast connection came first", seq - 1);
    fast.reply("199").await;
}

#[tokio::test]
async fn a_message_that_waited_is_work_of_the_turn_in_which_it_is_handled() {
    const PUSHES: u64 = 30;
    let mut config = quick();
    config.max_frame_bytes = 8 * 1024 * 1024;
    let (ws, feed) = start(config);
    let (mut large, mut polite) = (member(&ws, "large").await, member(&ws, "polite").await);
    feed.hold();
    let unknown = "x".repeat(6 * 1024 * 1024);
    large.deliver(&[push(0), json!(["2", "join", "document:other", "phx_join", {"unknown": unknown}])]);
    while !large.wire.lock().incoming.is_empty() {
        tokio::task::yield_now().await;
    }
    large.deliver(&(1..=PUSHES).map(push).collect::<Vec<_>>());
    // The client whose message waits is woken first.
    feed.release();
    polite.deliver(&[push(0)]);
    let ack = polite.until_reply("0").await;
    assert_eq!(ack["response"]["seq"], 2, "the turn ends before further messages are read");
    large.until_reply(&PUSHES.to_string()).await;
}

#[tokio::test]
async fn a_connection_that_waits_for_many_rooms_gets_no_turn_for_each() {
    const ROOMS: usize = 20;
    const PUSHES: u64 = 700;
    let (ws, feed) = start(quick());
    let (mut busy, mut other) = (member(&ws, "busy").await, member(&ws, "other").await);
    let mut polite = member(&ws, "polite").await;
    let rooms: Vec<_> = (0..ROOMS).map(|number| format!("room {number}")).collect();
    for (room, reference) in rooms.iter().zip(2..) {
        for client in [&mut busy, &mut other] {
            client.join(&reference.to_string(), room).await;
        }
    }
    let publish_in_all = || {
        for room in &rooms {
            let draft =
                Draft::new(room.parse().unwrap(), DOCUMENT_EDITED, Payload::json(&edit("a")).unwrap());
            feed.publish(relay_events::check(draft).unwrap()).now_or_never().unwrap().unwrap();
        }
    };
    // The busy connection leaves all rooms, since its socket is full.
    busy.wire.lock().window = 0;
    publish_in_all();
    while busy.wire.lock().refused < 1 || rooms.iter().any(|room| feed.subscriptions(room) < 2) {
        tokio::task::yield_now().await;
    }
    // It is polled before the rooms. So it reads the next events by itself, and waits for each room to read them too.
    busy.wire.lock().take(usize::MAX);
    publish_in_all();
    busy.deliver(&(0..PUSHES).map(push).collect::<Vec<_>>());
    polite.deliver(&[push(0)]);
    let ack = polite.until_reply("0").await;
    let seq = ack["response"]["seq"].as_u64().unwrap();
    assert!(seq <= 100, "{} pushes of the busy connection came first", seq - 1);
    busy.until_reply(&(PUSHES - 1).to_string()).await;
    for room in &rooms {
        assert_eq!(feed.subscriptions(room), 1, "the connection is in {room} again");
    }
}
