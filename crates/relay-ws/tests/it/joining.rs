//! Joins and leaves, and the events that a member gets.

use futures_util::FutureExt;
use relay_core::{Draft, EventSink, Payload};
use relay_events::DOCUMENT_EDITED;
use serde_json::json;

use crate::support::{EPOCH, Server, edit, quick};

#[tokio::test]
async fn a_join_without_a_position_gets_live_events_alone() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    ada.push("1", "document:notes", "document.edited", edit("a")).await;

    let mut bob = server.connect("bob").await;
    let reply = bob.join_as("1", "document:notes", json!({})).await;
    let connection = reply["response"]["connection"].as_str().unwrap().to_owned();
    assert_eq!(
        reply,
        json!({"status": "ok", "response": {
            "epoch": EPOCH.to_string(), "seq": 1, "first_seq": 1, "position": 1, "user": "bob",
            "connection": connection, "reset": false, "recovered": false,
        }})
    );
    ada.push("1", "document:notes", "document.edited", edit("b")).await;
    assert_eq!(bob.event().await["seq"], 2);
}

#[tokio::test]
async fn a_client_that_comes_back_gets_exactly_what_it_missed_and_then_live_events() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    for text in ["a", "b", "c", "d"] {
        ada.push("1", "document:notes", "document.edited", edit(text)).await;
    }
    let mut bob = server.connect("bob").await;
    let reply = bob.join_as("1", "document:notes", json!({"epoch": EPOCH, "seq": 2})).await;
    assert_eq!(reply["response"]["position"], 2);
    assert_eq!(reply["response"]["recovered"], true);
    assert_eq!(reply["response"]["reset"], false);
    ada.push("1", "document:notes", "document.edited", edit("e")).await;
    for seq in 3..=5 {
        assert_eq!(bob.event().await["seq"], seq);
    }
}

#[tokio::test]
async fn a_position_that_cannot_be_continued_is_answered_with_a_reset_and_its_reason() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    for text in ["a", "b", "c"] {
        ada.push("1", "document:notes", "document.edited", edit(text)).await;
    }
    // Ada's own stream must have read the events before they are dropped.
    for seq in 1..=3 {
        let mut bob = server.connect("bob").await;
        bob.join("document:notes", json!({"seq": 0})).await;
        for expected in 1..=seq {
            assert_eq!(bob.event().await["seq"], expected);
        }
    }
    server.until("ada has everything", |stats| stats.deliveries >= 9 + 3).await;
    server.feed.trim("notes", 1);
    for (params, reason) in [
        (json!({"epoch": "0000000000000001", "seq": 2}), "epoch_changed"),
        (json!({"epoch": EPOCH, "seq": 99}), "ahead"),
        (json!({"epoch": EPOCH, "seq": 0}), "trimmed"),
    ] {
        let mut bob = server.connect("bob").await;
        let reply = bob.join("document:notes", params).await;
        assert_eq!(reply["response"]["reset"], true);
        assert_eq!(reply["response"]["reset_reason"], reason);
        assert_eq!(reply["response"]["first_seq"], 2);
        assert_eq!(reply["response"]["position"], 1);
        assert_eq!(bob.event().await["seq"], 2);
        assert_eq!(bob.event().await["seq"], 3);
    }
}

#[tokio::test]
async fn a_client_without_events_may_join_with_a_null_epoch() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    let reply = ada.join("document:notes", json!({"epoch": null, "seq": 0})).await;
    assert_eq!(reply["response"]["recovered"], true);
    assert_eq!(reply["response"]["position"], 0);
}

#[tokio::test]
async fn a_second_join_closes_the_first_and_events_come_once() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    ada.send(json!(["2", "2", "document:notes", "phx_join", {}])).await;
    assert_eq!(ada.next().await, json!(["1", "1", "document:notes", "phx_close", {}]));
    assert_eq!(ada.next().await[4]["status"], "ok");
    assert_eq!(server.feed.subscriptions("notes"), 1);

    ada.push("2", "document:notes", "document.edited", edit("a")).await;
    ada.push("2", "document:notes", "document.edited", edit("b")).await;
    let mut seqs = server.connect("bob").await;
    seqs.join("document:notes", json!({"seq": 0})).await;
    assert_eq!(seqs.event().await["seq"], 1);
    assert_eq!(server.ws.rooms()[0].connections, 2);
    let stats = server.until("every event came once", |stats| stats.deliveries == 4).await;
    assert_eq!(stats.joins, 3);
}

#[tokio::test]
async fn messages_of_a_channel_that_was_replaced_are_answered_and_change_nothing() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    ada.join_as("2", "document:notes", json!({})).await;
    let unmatched = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    assert_eq!(ada.push("1", "document:notes", "document.edited", edit("late")).await, unmatched);
    assert_eq!(ada.push("1", "document:notes", "phx_leave", json!({})).await["status"], "ok");
    assert_eq!(server.feed.count("notes"), 0);
    assert_eq!(ada.push("2", "document:notes", "document.edited", edit("a")).await["status"], "ok");
}

#[tokio::test]
async fn a_join_that_is_refused_ends_the_channel_that_it_would_have_replaced() {
    let mut config = quick();
    config.max_frame_bytes = 4096;
    let server = Server::with(config).await;
    let mut bob = server.connect("bob").await;
    bob.join_as("1", "document:notes", json!({})).await;
    for (refused, reason) in [
        (json!({"seq": "seven"}), "invalid_request"),
        (json!({"epoch": EPOCH}), "invalid_request"),
        (json!(["no object"]), "invalid_request"),
        (json!({"state": "x".repeat(5000)}), "too_large"),
    ] {
        let mut ada = server.connect("ada").await;
        ada.join_as("1", "document:notes", json!({})).await;
        ada.send(json!(["2", "2", "document:notes", "phx_join", refused])).await;
        assert_eq!(ada.next().await, json!(["1", "1", "document:notes", "phx_close", {}]), "{reason}");
        assert_eq!(ada.reply("2").await["response"]["reason"], reason);
        assert_eq!(server.ws.rooms()[0].connections, 1, "{reason}");

        // Neither join gets events, and the messages of both are answered.
        bob.push("1", "document:notes", "document.edited", edit("a")).await;
        for join_ref in ["1", "2"] {
            ada.send(json!([join_ref, "3", "document:notes", "document.edited", edit("b")])).await;
            let reply = ada.next().await;
            assert_eq!((&reply[0], &reply[3]), (&json!(join_ref), &json!("phx_reply")));
            assert_eq!(reply[4]["response"]["reason"], "unmatched topic");
            let left = ada.push(join_ref, "document:notes", "phx_leave", json!({})).await;
            assert_eq!(left["status"], "ok");
        }
        assert_eq!(ada.join_as("4", "document:notes", json!({})).await["status"], "ok");
    }
}

#[tokio::test]
async fn a_channel_without_a_reference_takes_messages_with_any() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.send(json!([null, "1", "document:notes", "phx_join", {}])).await;
    assert_eq!(ada.reply("1").await["status"], "ok");
    assert_eq!(ada.push("1", "document:notes", "document.edited", edit("a")).await["status"], "ok");
    ada.send(json!([null, "2", "document:notes", "document.edited", edit("b")])).await;
    assert_eq!(ada.reply("2").await["status"], "ok");
}

#[tokio::test]
async fn leaving_is_answered_ends_the_subscription_and_closes_the_channel() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    assert_eq!(server.ws.members(&"notes".parse().unwrap()).await.len(), 1);
    ada.send(json!(["1", "5", "document:notes", "phx_leave", {}])).await;
    assert_eq!(
        ada.next().await,
        json!(["1", "5", "document:notes", "phx_reply", {"status": "ok", "response": {}}])
    );
    assert_eq!(ada.next().await, json!(["1", "1", "document:notes", "phx_close", {}]));
    assert_eq!(server.feed.subscriptions("notes"), 0);
    assert_eq!(server.ws.rooms(), []);

    ada.send(json!(["1", "6", "document:notes", "phx_leave", {}])).await;
    assert_eq!(ada.reply("6").await, json!({"status": "ok", "response": {}}));
}

#[tokio::test]
async fn messages_that_follow_a_join_without_waiting_are_handled_in_their_order() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    server.feed.hold();
    ada.send(json!(["1", "1", "document:notes", "phx_join", {}])).await;
    ada.send(json!(["1", "2", "document:notes", "document.edited", edit("a")])).await;
    ada.send(json!(["1", "3", "document:notes", "phx_leave", {}])).await;
    ada.send(json!(["4", "4", "document:notes", "phx_join", {"seq": 0}])).await;
    assert_eq!(ada.reply("1").await["status"], "ok");
    // The event arrives before its ack, which is held.
    assert_eq!(server.connect("bob").await.join("document:notes", json!({})).await["status"], "ok");
    server.feed.release();
    for reference in ["2", "3", "4"] {
        assert_eq!(ada.reply(reference).await["status"], "ok", "{reference}");
    }
    assert_eq!(ada.event().await["seq"], 1);
}

#[tokio::test]
async fn a_join_that_the_feed_refuses_is_answered_without_the_cause_of_the_failure() {
    let server = Server::start().await;
    let mut ada = server.connect("ada").await;
    let reply = ada.join("document:broken", json!({})).await;
    assert_eq!(reply["status"], "error");
    assert_eq!(reply["response"]["reason"], "log_failed");
    assert!(!reply.to_string().contains("fire"), "{reply}");
    assert_eq!(ada.join("document:notes", json!({})).await["status"], "ok");
    assert_eq!(server.ws.stats().errors["log_failed"], 1);
}

#[tokio::test]
async fn a_client_that_falls_too_far_behind_is_told_to_rejoin_and_loses_nothing() {
    let server = Server::with_feed(quick(), |feed| feed.max_behind = 2).await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    for text in ["a", "b", "c", "d"] {
        ada.push("1", "document:notes", "document.edited", edit(text)).await;
    }
    let mut bob = server.connect("bob").await;
    bob.send(json!(["1", "1", "document:notes", "phx_join", {"epoch": EPOCH, "seq": 1}])).await;
    assert_eq!(bob.next().await[4]["status"], "ok");
    assert_eq!(bob.next().await, json!(["1", "1", "document:notes", "phx_error", {"reason": "lagged"}]));
    // It may still publish.
    let reply = bob.push("1", "document:notes", "document.edited", edit("x")).await;
    assert_eq!((&reply["status"], &reply["response"]["seq"]), (&json!("ok"), &json!(5)));
    assert_eq!(server.ws.stats().channel_errors["lagged"], 1);

    bob.join("document:notes", json!({"epoch": EPOCH, "seq": 3})).await;
    assert_eq!(bob.event().await["seq"], 4);
    assert_eq!(bob.event().await["seq"], 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_joins_while_events_arrive_gets_each_once_and_in_order() {
    let mut config = quick();
    config.shards = Some(1);
    let server = Server::with(config).await;
    let mut author = server.connect("author").await;
    author.join_as("1", "document:notes", json!({})).await;
    let mut newcomers = Vec::new();
    for index in 0..40 {
        newcomers.push(server.connect(&format!("newcomer-{index}")).await);
    }
    // Clients join while events are published.
    for newcomer in &mut newcomers {
        for _ in 0..5 {
            author.send(json!(["1", "p", "document:notes", "document.edited", edit("x")])).await;
            author.send(json!(["1", "c", "document:notes", "cursor.moved", {"position": 1}])).await;
        }
        newcomer.send(json!(["1", "j", "document:notes", "phx_join", {}])).await;
    }
    for _ in 0..20 {
        author.send(json!(["1", "p", "document:notes", "document.edited", edit("y")])).await;
    }
    for newcomer in &mut newcomers {
        let reply = newcomer.reply("j").await;
        let mut position = reply["response"]["position"].as_u64().unwrap();
        while position < 220 {
            let event = newcomer.event().await;
            if let Some(seq) = event["seq"].as_u64() {
                assert_eq!(seq, position + 1);
                position = seq;
            }
        }
        newcomer.is_alive().await;
    }
}

#[tokio::test]
async fn a_document_whose_stream_ends_notifies_all_members_and_they_can_join_again() {
    let server = Server::start().await;
    let (mut ada, mut bob) = (server.connect("ada").await, server.connect("bob").await);
    for client in [&mut ada, &mut bob] {
        client.join_as("1", "document:notes", json!({})).await;
        client.is_alive().await;
    }
    // The events are dropped before any stream has read them.
    for _ in 0..3 {
        let payload = Payload::json(&edit("x")).unwrap();
        let draft =
            relay_events::check(Draft::new("notes".parse().unwrap(), DOCUMENT_EDITED, payload)).unwrap();
        server.feed.publish(draft).now_or_never().unwrap().unwrap();
    }
    server.feed.trim("notes", 3);
    for client in [&mut ada, &mut bob] {
        let message = client.next().await;
        assert_eq!(message, json!(["1", "1", "document:notes", "phx_error", {"reason": "lagged"}]));
        let reply = client.join_as("2", "document:notes", json!({})).await;
        assert_eq!(reply["status"], "ok");
    }
    assert_eq!(server.ws.stats().channel_errors["lagged"], 2);
}
