//! Stopping a server, and starting it again over the same data.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use crate::support::socket::{Incoming, Socket};
use crate::support::{Events, Message, Server, data};
use serde_json::{Value, json};

fn note(number: u64) -> Value {
    json!({"kind": "x-note", "payload": number})
}

#[test]
fn at_sigterm_clients_are_told_to_come_back_and_the_server_ends_in_order() {
    for signal in ["-TERM", "-INT"] {
        let data = data();
        let server = Server::start(data.path());
        server.publish("notes", &note(1));
        let mut socket = Socket::joined(server.address, "ada", "notes");
        let (_, mut stream) = Events::open(server.address, "notes", "", None);
        server.signal(signal);

        let Incoming::Message(notice) = socket.next() else { panic!("no notice") };
        assert_eq!((&notice[3], &notice[4]["code"]), (&json!("system.notice"), &json!("reconnect")));
        assert_eq!(socket.closed(), 1012);
        let ended = stream.next().unwrap();
        assert_eq!((ended.name.as_str(), &ended.data["reason"]), ("relay.ended", &json!("closed")));
        assert_eq!(stream.next(), None);
        assert_eq!(server.ended().code(), Some(0), "{signal}");
    }
}

#[test]
fn pushes_that_are_under_way_at_sigterm_are_answered_exactly_when_they_are_kept() {
    const PUSHES: u64 = 1000;
    let data = data();
    let server = Server::start(data.path());
    let mut socket = Socket::joined(server.address, "ada", "notes");
    for number in 0..PUSHES {
        socket.push("x-note", &json!(number)).unwrap();
    }
    assert_eq!(socket.reply()["status"], "ok");
    let mut answered = vec![json!(1)];
    server.signal("-TERM");
    let mut noticed = false;
    let code = loop {
        match socket.next() {
            Incoming::Message(message) if message[4]["status"] == "ok" => {
                answered.push(message[4]["response"]["seq"].clone());
            }
            Incoming::Message(message) => noticed |= message[3] == "system.notice",
            Incoming::Closed(code) => break code,
            Incoming::Lost => panic!("the connection was lost after {} answers", answered.len()),
        }
    };
    assert_eq!((noticed, code), (true, 1012));
    assert_eq!(server.ended().code(), Some(0));

    let (_, kept) = Server::start(data.path()).history("notes");
    let kept: Vec<_> = kept.into_iter().map(|event| event["seq"].clone()).collect();
    assert_eq!(kept, answered);
}

#[test]
fn a_stream_goes_on_where_it_was_after_the_server_was_killed_and_started_again() {
    let data = data();
    let server = Server::start(data.path());
    server.publish("notes", &json!([note(1), note(2)]));
    let (_, mut stream) = Events::open(server.address, "notes", "?after_seq=0", None);
    let Message { id, data: first, .. } = stream.next().unwrap();
    assert_eq!(first["seq"], 1);
    server.kill();

    let server = Server::start(data.path());
    server.publish("notes", &note(3));
    let (opening, mut stream) = Events::open(server.address, "notes", "", id.as_deref());
    assert_eq!((&opening.data["recovered"], &opening.data["epoch"]), (&json!(true), &first["epoch"]));
    assert_eq!(
        [stream.next().unwrap().data["seq"].clone(), stream.next().unwrap().data["seq"].clone()],
        [2, 3]
    );
}

#[test]
fn without_a_log_a_new_server_is_another_history_and_says_so() {
    let data = data();
    let memory = ["--durability", "memory"];
    let server = Server::start_with(data.path(), &memory);
    server.publish("notes", &note(1));
    let (_, mut stream) = Events::open(server.address, "notes", "?after_seq=0", None);
    let id = stream.next().unwrap().id;
    server.kill();
    let server = Server::start_with(data.path(), &memory);
    let (opening, _) = Events::open(server.address, "notes", "", id.as_deref());
    assert_eq!(
        (&opening.data["reset"], &opening.data["reset_reason"]),
        (&json!(true), &json!("epoch_changed"))
    );
}
