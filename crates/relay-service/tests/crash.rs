//! `kill -9` at random moments: nothing that anybody was told or shown may be missing afterwards.
//!
//! `RELAY_CRASH_ROUNDS` says how often (5 unless set).
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rand::RngExt;
use serde_json::{Value, json};
use support::{Events, Server, data, try_request};

const WRITERS: usize = 4;
const BATCH: usize = 4;

/// What somebody was told or shown: the id of the event at each seq.
type Places = Mutex<BTreeMap<u64, String>>;

fn put(places: &Places, event: &Value) {
    let (seq, id) = (event["seq"].as_u64().unwrap(), event["id"].as_str().unwrap().to_owned());
    let before = places.lock().unwrap().insert(seq, id.clone());
    assert!(before.is_none_or(|before| before == id), "seq {seq} was given out twice");
}

/// Publishes batches until the server dies. Each writer has several events under way at once.
fn write(address: SocketAddr, acknowledged: &Places, progress: &Sender<()>) {
    let draft = json!({"kind": "x-note", "payload": {"text": "some words to make it a line of text"}});
    let body = json!(vec![draft; BATCH]).to_string();
    let headers = [("content-type", "application/json")];
    while let Some(answer) =
        try_request(address, "POST", "/v1/documents/crash/events", &headers, body.as_bytes())
    {
        assert_eq!(answer.status, 200, "{answer:?}");
        for receipt in answer.json().as_array().unwrap() {
            put(acknowledged, receipt);
        }
        let _ = progress.send(());
    }
}

/// Watches until the server dies.
fn watch(mut events: Events, seen: &Places) {
    while let Some(event) = events.next() {
        put(seen, &event.data);
    }
}

#[test]
fn after_a_kill_everything_acknowledged_or_seen_is_there_without_a_gap() {
    let rounds = std::env::var("RELAY_CRASH_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    let data = data();
    let (acknowledged, seen) = (Places::default(), Places::default());
    let mut epoch = None;
    for round in 0..rounds {
        let server = Server::start(data.path());
        let address = server.address;
        let (_, events) = Events::open(address, "crash", "", None);
        let (progress, progressed) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| watch(events, &seen));
            for _ in 0..WRITERS {
                let progress = progress.clone();
                let acknowledged = &acknowledged;
                scope.spawn(move || write(address, acknowledged, &progress));
            }
            let mut random = rand::rng();
            for _ in 0..random.random_range(1..30) {
                progressed.recv().unwrap();
            }
            // Somewhere in the middle of a write, and not always right after an answer.
            std::thread::sleep(Duration::from_micros(random.random_range(0..8_000)));
            server.kill();
        });

        let server = Server::start(data.path());
        let (epoch_now, events) = server.history("crash");
        assert_eq!(*epoch.get_or_insert(epoch_now.clone()), epoch_now, "round {round}: another epoch");
        let ids: Vec<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
        let seqs: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=events.len() as u64).collect::<Vec<_>>(), "round {round}: a gap");
        for (what, places) in [("acknowledged", &acknowledged), ("seen", &seen)] {
            for (seq, id) in places.lock().unwrap().iter() {
                let kept = ids.get(usize::try_from(*seq).unwrap() - 1);
                assert_eq!(kept, Some(&id.as_str()), "round {round}: seq {seq} was {what}");
            }
        }
        server.kill();
    }
    assert!(acknowledged.lock().unwrap().len() >= rounds * BATCH);
}
