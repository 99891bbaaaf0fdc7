//! `kill -9` at random moments: every event that was acknowledged or delivered must still be there afterwards.
//!
//! `RELAY_CRASH_ROUNDS` sets the number of kills (5 by default).
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crate::support::socket::{Incoming, Socket};
use crate::support::{Events, ReservedAddress, Server, data};
use rand::RngExt;
use serde_json::{Value, json};

const DOCUMENT: &str = "crash";
const WRITERS: usize = 3;
/// Events that each writer has under way at once.
const IN_FLIGHT: usize = 8;

/// The events that clients were told of or shown: the id at each seq.
type Places = Mutex<BTreeMap<u64, String>>;

fn put(places: &Places, event: &Value) {
    let (seq, id) = (event["seq"].as_u64().unwrap(), event["id"].as_str().unwrap().to_owned());
    let before = places.lock().unwrap().insert(seq, id.clone());
    assert!(before.is_none_or(|before| before == id), "seq {seq} was given out twice");
}

/// Keeps several pushes under way until the server dies. Receipts go to `acknowledged`, broadcasts to `seen`.
fn write(mut socket: Socket, acknowledged: &Places, seen: &Places, progress: &Sender<()>) {
    let note = json!({"text": "some words to make it a line of text"});
    for _ in 0..IN_FLIGHT {
        socket.push("x-note", &note);
    }
    while let Incoming::Message(message) = socket.next() {
        if message[3] == "phx_reply" {
            assert_eq!(message[4]["status"], "ok", "{message}");
            put(acknowledged, &message[4]["response"]);
            let _ = progress.send(());
            socket.push("x-note", &note);
        } else {
            put(seen, &message[4]);
        }
    }
}

/// Watches over a socket of its own until the server dies.
fn watch(mut socket: Socket, seen: &Places) {
    while let Incoming::Message(message) = socket.next() {
        put(seen, &message[4]);
    }
}

/// Watches server-sent events until the server dies.
fn follow(mut events: Events, seen: &Places) {
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
        let (_, events) = Events::open(address, DOCUMENT, "", None);
        let watcher = Socket::joined(address, "watcher", DOCUMENT);
        let (progress, progressed) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| follow(events, &seen));
            scope.spawn(|| watch(watcher, &seen));
            for _ in 0..WRITERS {
                let progress = progress.clone();
                let (acknowledged, seen) = (&acknowledged, &seen);
                let socket = Socket::joined(address, "writer", DOCUMENT);
                scope.spawn(move || write(socket, acknowledged, seen, &progress));
            }
            let mut random = rand::rng();
            for _ in 0..random.random_range(1..100) {
                progressed.recv().unwrap();
            }
            // The kill comes in the middle of a write, and not always right after an answer.
            std::thread::sleep(Duration::from_micros(random.random_range(0..8_000)));
            server.kill();
        });

        let server = Server::start(data.path());
        let (epoch_now, events) = server.history(DOCUMENT);
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
    let (acknowledged, seen) = (acknowledged.into_inner().unwrap().len(), seen.into_inner().unwrap().len());
    println!("{rounds} kills: {acknowledged} events acknowledged, {seen} seen, all kept");
    assert!(acknowledged >= rounds);
}

/// The most events that wait for a target.
const MAX_WAITING: usize = 20;

#[test]
fn after_a_kill_each_event_that_a_rule_selected_waits_or_is_decided_as_lost() {
    let rounds = std::env::var("RELAY_CRASH_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    let data = data();
    // Nobody listens at the target's address.
    let target = ReservedAddress::new();
    let rules = data.path().join("rules.toml");
    let text = format!(
        r#"
        [[targets]]
        name = "gone"
        url = "http://{}/"

        [[rules]]
        name = "notes"
        kinds = ["x-note"]
        targets = ["gone"]
        "#,
        target.address
    );
    std::fs::write(&rules, text).unwrap();
    let rules = format!("router.rules={}", rules.display());
    let max_waiting = format!("router.max_waiting={MAX_WAITING}");
    let settings = [&rules, &max_waiting, "router.max_queued=5", "router.allow_networks=127.0.0.0/8"];
    let arguments: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let start = || Server::start_with(data.path(), &arguments);
    let (acknowledged, seen) = (Places::default(), Places::default());
    for _ in 0..rounds {
        let server = start();
        let (progress, progressed) = channel();
        std::thread::scope(|scope| {
            for _ in 0..WRITERS {
                let progress = progress.clone();
                let (acknowledged, seen) = (&acknowledged, &seen);
                let socket = Socket::joined(server.address, "writer", DOCUMENT);
                scope.spawn(move || write(socket, acknowledged, seen, &progress));
            }
            let mut random = rand::rng();
            for _ in 0..random.random_range(1..100) {
                progressed.recv().unwrap();
            }
            std::thread::sleep(Duration::from_micros(random.random_range(0..8_000)));
            server.kill();
        });
    }
    let server = start();
    server.counted("/router/behind", &json!(0));
    let (_, events) = server.history(DOCUMENT);
    let selected = events.iter().filter(|event| event["kind"] == "x-note").count();
    let decisions = server.get("/v1/decisions?outcome=lost&limit=1000").json();
    let decided: BTreeSet<_> =
        decisions.as_array().unwrap().iter().map(|lost| lost["event"].as_str().unwrap()).collect();
    let stats = server.get("/v1/stats").json();
    let gone = |of: &str| usize::try_from(stats["router"]["targets"]["gone"][of].as_u64().unwrap()).unwrap();
    // Each start makes an attempt, so after many of them events become dead letters.
    let (waiting, dead, lost) = (gone("queued"), gone("dead_letters"), gone("lost"));
    println!("{rounds} kills: {selected} events selected, {waiting} wait, {dead} are dead, {lost} are lost");
    assert_eq!((waiting + dead + lost, decided.len()), (selected, lost.min(1_000)));
    assert!(waiting <= MAX_WAITING);
}
