//! Joins, leaves, and where events begin.

use serde_json::json;

use crate::support::{EPOCH, Server, edit};

#[tokio::test]
async fn a_joined_client_gets_receipts_for_its_pushes_and_everybody_gets_the_event() {
    let server = Server::start().await;
    let (mut ada, mut bob) = (server.connect("ada").await, server.connect("bob").await);
    let joined = ada.join_as("1", "document:notes", json!({})).await;
    assert_eq!(joined["status"], "ok");
    assert_eq!(joined["response"]["epoch"], EPOCH.to_string());
    assert_eq!(joined["response"]["user"], "ada");
    bob.join_as("1", "document:notes", json!({})).await;

    ada.send(json!(["1", "7", "document:notes", "document.edited", edit("h")])).await;
    let receipt = ada.reply("7").await;
    assert_eq!(receipt["status"], "ok");
    assert_eq!(receipt["response"]["seq"], 1);
    assert_eq!(receipt["response"]["duplicate"], false);
    let event = bob.next().await;
    assert_eq!(event[2], "document:notes");
    assert_eq!(event[3], "document.edited");
    assert_eq!(event[4]["seq"], 1);
    assert_eq!(event[4]["actor"], "user:ada");
    assert_eq!(event[4]["payload"], edit("h"));
    let stats = server.until("one delivery each", |stats| stats.deliveries == 2).await;
    assert_eq!((stats.joins, stats.pushes, stats.rooms_open), (2, 1, 1));
}
