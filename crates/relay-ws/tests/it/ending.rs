//! The ends of connections: by silence, by a slow client, by a close message, and by the end of the server.

use std::time::Duration;

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{Server, edit, quick};

#[tokio::test]
async fn a_silent_client_is_closed_after_60_seconds_and_one_with_heartbeats_is_not() {
    let server = Server::start().await;
    let (mut silent, mut ada) = (server.connect("silent").await, server.connect("ada").await);
    silent.join("document:notes", json!({})).await;
    ada.join("document:notes", json!({})).await;
    server.clock.advance(Duration::from_secs(59));
    ada.is_alive().await;
    silent.send_raw(Message::Ping("still here".into())).await;
    assert!(matches!(silent.receive().await, Message::Pong(_)));
    server.clock.advance(Duration::from_secs(59));
    ada.is_alive().await;
    server.clock.advance(Duration::from_secs(1));
    assert_eq!(silent.closed().await, 1001);
    ada.is_alive().await;
    let stats = server.until("the silent one is gone", |stats| stats.connections_open == 1).await;
    assert_eq!(stats.closed[&1001], 1);
    assert_eq!(server.ws.rooms()[0].connections, 1);
}

#[tokio::test]
async fn a_client_that_does_not_answer_the_close_is_dropped_in_the_end() {
    let server = Server::start().await;
    let mut silent = server.connect("silent").await;
    silent.is_alive().await;
    server.clock.advance(Duration::from_secs(60));
    server.until("it is being closed", |stats| stats.closed.contains_key(&1001)).await;
    assert_eq!(server.ws.stats().connections_open, 1);
    let gone = async {
        loop {
            server.clock.advance(Duration::from_secs(5));
            if server.ws.stats().connections_open == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
}

#[tokio::test]
async fn a_close_message_is_answered_with_its_own_code() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join("document:notes", json!({})).await;
    ada.send_raw(Message::Close(Some(CloseFrame { code: 1000.into(), reason: "bye".into() }))).await;
    assert_eq!(ada.closed().await, 1000);
    let stats = server.until("ada is gone", |stats| stats.connections_open == 0).await;
    assert_eq!((stats.closed_by_client, stats.rooms_open), (1, 0));
    assert_eq!(server.feed.subscriptions("notes"), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_no_other_and_is_closed_after_30_seconds() {
    let server = Server::start().await;
    let (mut slow, mut ada, mut bob) =
        (server.connect_narrow("slow").await, server.connect("ada").await, server.connect("bob").await);
    slow.join("document:notes", json!({})).await;
    ada.join_as("1", "document:notes", json!({})).await;
    bob.join("document:notes", json!({})).await;
    // The events have more bytes than the sockets' buffers hold.
    let large = edit(&"x".repeat(100_000));
    for seq in 1..=100 {
        ada.push("1", "document:notes", "document.edited", large.clone()).await;
        assert_eq!(bob.event().await["seq"], seq);
    }
    let stats = server.ws.stats();
    assert!(stats.deliveries < 300, "the slow one cannot have been given everything: {stats:?}");
    server.clock.advance(Duration::from_secs(29));
    for client in [&mut ada, &mut bob] {
        client.is_alive().await;
    }
    assert_eq!(server.ws.stats().closed.get(&1013), None);
    server.clock.advance(Duration::from_secs(1));
    server.until("the slow one is closed", |stats| stats.closed.get(&1013) == Some(&1)).await;
    assert_eq!(server.ws.members(&"notes".parse().unwrap()).await.len(), 2);
    ada.is_alive().await;
}

#[tokio::test]
async fn a_client_that_reads_again_before_its_time_is_over_misses_nothing() {
    let server = Server::start().await;
    let (mut slow, mut ada) = (server.connect_narrow("slow").await, server.connect("ada").await);
    slow.join("document:notes", json!({})).await;
    ada.join_as("1", "document:notes", json!({})).await;
    let large = edit(&"x".repeat(100_000));
    for _ in 1..=100 {
        ada.push("1", "document:notes", "document.edited", large.clone()).await;
    }
    for seq in 1..=100 {
        assert_eq!(slow.event().await["seq"], seq);
    }
    slow.is_alive().await;
}

#[tokio::test]
async fn a_stopping_server_notifies_every_channel_answers_its_pushes_and_closes_with_1012() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    ada.join_as("2", "document:plans", json!({})).await;
    server.feed.hold();
    ada.send(json!(["1", "9", "document:notes", "document.edited", edit("a")])).await;
    assert_eq!(ada.event().await["seq"], 1);

    let ws = server.ws.clone();
    let stopping = tokio::spawn(async move { ws.shutdown(Duration::from_secs(20)).await });
    for (join_ref, topic) in [("1", "document:notes"), ("2", "document:plans")] {
        let notice = ada.next().await;
        assert_eq!(
            (&notice[0], &notice[2], &notice[3]),
            (&json!(join_ref), &json!(topic), &json!("system.notice"))
        );
        assert_eq!(notice[4]["code"], "reconnect");
        assert_eq!(notice[4]["level"], "info");
    }
    let (_, refused) = server.handshake("/socket/websocket?vsn=2.0.0", "").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    server.feed.release();
    assert_eq!(ada.reply("9").await["response"]["seq"], 1);
    assert_eq!(ada.closed().await, 1012);
    stopping.await.unwrap();
    let stats = server.ws.stats();
    assert_eq!((stats.connections_open, stats.rooms_open), (0, 0));
    assert_eq!(stats.closed[&1012], 1);
    assert_eq!(stats.refused["closed"], 1);
}

#[tokio::test]
async fn a_stopping_server_sends_each_client_the_notices_of_its_own_channels_alone() {
    let mut config = quick();
    config.shards = Some(1);
    let server = Server::with(config).await;
    let (mut ada, mut bob) = (server.connect("ada").await, server.connect("bob").await);
    ada.join_as("a", "document:notes", json!({})).await;
    bob.join_as("b", "document:plans", json!({})).await;
    let ws = server.ws.clone();
    let stopping = tokio::spawn(async move { ws.shutdown(Duration::from_secs(20)).await });
    for (client, join_ref, topic) in [(&mut ada, "a", "document:notes"), (&mut bob, "b", "document:plans")] {
        let notice = client.next().await;
        assert_eq!((&notice[0], &notice[2]), (&json!(join_ref), &json!(topic)), "{notice}");
        assert_eq!(notice[3], "system.notice");
    }
    server.clock.advance(Duration::from_secs(1));
    assert_eq!((ada.closed().await, bob.closed().await), (1012, 1012));
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_close_is_cut_off_at_the_deadline() {
    let mut config = quick();
    config.close_timeout = Duration::from_secs(3600);
    let server = Server::with(config).await;
    let mut stubborn = server.connect("stubborn").await;
    stubborn.join("document:notes", json!({})).await;
    server.ws.shutdown(Duration::from_millis(50)).await;
    assert_eq!(server.ws.stats().connections_open, 0);
}

#[tokio::test]
async fn dropping_the_server_ends_its_connections() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join("document:notes", json!({})).await;
    let feed = server.feed.clone();
    drop(server);
    let ended = async {
        while feed.subscriptions("notes") > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
}
