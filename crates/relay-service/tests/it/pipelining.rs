//! Clients that send many messages before they read one, beside a server that is busy: each message is answered.
//!
//! `RELAY_PIPELINING_BURSTS` sets the number of bursts of each client (60 by default).
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::socket::{Incoming, Socket};
use crate::support::{Server, data};
use rand::RngExt;
use serde_json::json;

const CLIENTS: usize = 4;
const PUBLISHERS: usize = 2;
/// Pushes that each publisher has under way at once.
const IN_FLIGHT: usize = 64;
const MAX_BURST: usize = 12;

/// Keeps pushes under way in a document that all clients join and leave, and counts those that are acknowledged.
fn keep_busy(mut socket: Socket, stop: &AtomicBool, acknowledged: &AtomicUsize) {
    let note = json!({"text": "x".repeat(500)});
    for _ in 0..IN_FLIGHT {
        socket.push("x-note", &note);
    }
    while !stop.load(Ordering::Relaxed) {
        if let Incoming::Message(message) = socket.next()
            && message[3] == "phx_reply"
        {
            if message[4]["status"] == "ok" {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            socket.push("x-note", &note);
        }
    }
}

/// Sends bursts of random requests, and waits for the replies to all of them.
fn send_bursts(address: SocketAddr, client: usize, bursts: usize) {
    let mut random = rand::rng();
    let mut socket = Socket::open(address, &format!("client-{client}"));
    let mut last_ref = 0_u64;
    let mut join_ref = String::from("0");
    for burst in 0..bursts {
        let mut awaited = BTreeSet::new();
        for _ in 0..random.random_range(1..=MAX_BURST) {
            last_ref += 1;
            let reference = last_ref.to_string();
            let busy = "document:busy";
            let message = match random.random_range(0..8) {
                0 | 1 => json!([null, reference, "phoenix", "heartbeat", {}]),
                2 => {
                    join_ref.clone_from(&reference);
                    json!([reference, reference, busy, "phx_join", {}])
                }
                3 => json!([join_ref, reference, busy, "phx_leave", {}]),
                4 => json!([join_ref, reference, busy, "session:info", {}]),
                _ => json!([join_ref, reference, busy, "x-note", {"text": "from a client"}]),
            };
            assert!(socket.send(&message.to_string()), "client {client} is cut off in burst {burst}");
            awaited.insert(reference);
        }
        while !awaited.is_empty() {
            match socket.next() {
                Incoming::Message(message) if message[3] == "phx_reply" => {
                    let reference = message[1].as_str().unwrap();
                    assert!(awaited.remove(reference), "answered twice: {message}");
                }
                Incoming::Message(_) => {}
                other => {
                    panic!("client {client}, burst {burst}: {other:?} instead of replies to {awaited:?}")
                }
            }
        }
    }
}

#[test]
fn each_message_of_a_pipeline_is_answered_beside_a_busy_document() {
    let bursts = std::env::var("RELAY_PIPELINING_BURSTS").map_or(60, |bursts| bursts.parse().unwrap());
    let data = data();
    let server = Server::start_with(data.path(), &["--durability", "memory"]);
    let address = server.address;
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
    let publishers: Vec<_> = (0..PUBLISHERS).map(|_| Socket::joined(address, "publisher", "busy")).collect();
    std::thread::scope(|scope| {
        for publisher in publishers {
            scope.spawn(|| keep_busy(publisher, &stop, &acknowledged));
        }
        let before = acknowledged.load(Ordering::Relaxed);
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| scope.spawn(move || send_bursts(address, client, bursts))).collect();
        let outcomes: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        let beside = acknowledged.load(Ordering::Relaxed) - before;
        stop.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok), "a client missed replies");
        assert!(beside > 0, "no push was acknowledged beside the clients");
    });
}
