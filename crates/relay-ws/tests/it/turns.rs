//! The turns of connections on one shard.

use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Server, edit, quick};

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
