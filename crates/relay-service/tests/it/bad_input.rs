//! Bad input over WebSocket: each kind gets its reply or close code, is counted, and disturbs no other client.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::io::Write;

use crate::support::socket::{Incoming, Socket};
use crate::support::{Server, data};
use serde_json::{Value, json};

const MAX_FRAME: usize = 4096;

fn start(data: &std::path::Path) -> Server {
    Server::start_with(data, &["--set", &format!("ws.max_frame_bytes={MAX_FRAME}")])
}

/// Checks that a joined client still pushes and gets the event back: the `number`-th of the document.
#[track_caller]
fn goes_on(witness: &mut Socket, number: u64) {
    witness.push("x-note", &json!(number)).unwrap();
    let (mut kept, mut shown) = (None, None);
    while kept.is_none() || shown.is_none() {
        match witness.next() {
            Incoming::Message(message) if message[3] == "phx_reply" => {
                kept = message[4]["response"]["seq"].as_u64();
            }
            Incoming::Message(message) => shown = message[4]["seq"].as_u64(),
            other => panic!("the live session ended: {other:?}"),
        }
    }
    assert_eq!((kept, shown), (Some(number), Some(number)));
}

/// A bad message: its description, the close code that it gets, and the function that sends it.
type Bad<'a> = (&'a str, u16, &'a dyn Fn(&mut Socket));

#[test]
fn a_malformed_message_closes_its_own_connection_with_the_code_of_the_mistake() {
    let data = data();
    let server = start(data.path());
    let mut witness = Socket::joined(server.address, "witness", "notes");
    let oversized = json!(["1", null, "document:notes", "x-note", "x".repeat(MAX_FRAME)]).to_string();
    let bad: [Bad<'_>; 5] = [
        ("an opcode that does not exist", 1002, &|socket| {
            socket.raw().write_all(&[0x83, 0x80, 0, 0, 0, 0]).unwrap();
        }),
        ("not JSON", 1003, &|socket| assert!(socket.send("hello"))),
        ("JSON of another form", 1003, &|socket| assert!(socket.send(r#"["1", "2"]"#))),
        ("not UTF-8", 1007, &|socket| {
            socket.raw().write_all(&[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe]).unwrap();
        }),
        ("too large, and without a ref", 1009, &|socket| assert!(socket.send(&oversized))),
    ];
    for (number, (what, code, send)) in (1..).zip(bad) {
        let mut socket = Socket::joined(server.address, "mallory", "other");
        send(&mut socket);
        assert_eq!(socket.closed(), code, "{what}");
        goes_on(&mut witness, number);
    }
    server.counted("/ws/closed", &json!({"1002": 1, "1003": 2, "1007": 1, "1009": 1}));
    server.counted("/ws/connections_open", &json!(1));
}

#[test]
fn an_impossible_request_gets_an_error_reply_and_the_connection_goes_on() {
    let data = data();
    let server = start(data.path());
    let mut witness = Socket::joined(server.address, "witness", "notes");
    let mut socket = Socket::open(server.address, "mallory");
    let refused = |reply: Value, reason: &str| {
        assert_eq!(
            (&reply["status"], &reply["response"]["reason"]),
            (&json!("error"), &json!(reason)),
            "{reply}"
        );
        assert!(!reply["response"]["message"].as_str().unwrap().is_empty());
    };
    refused(socket.join(&"d".repeat(257)), "invalid_request");
    goes_on(&mut witness, 1);
    assert_eq!(socket.join(&"d".repeat(256))["status"], "ok");
    socket.push("no.such.kind", &json!({})).unwrap();
    refused(socket.reply(), "unknown_event");
    goes_on(&mut witness, 2);
    socket.push("document.edited", &json!({"patches": "all"})).unwrap();
    refused(socket.reply(), "invalid_payload");
    goes_on(&mut witness, 3);
    socket.push("publish", &json!({"payload": 1})).unwrap();
    refused(socket.reply(), "invalid_request");
    goes_on(&mut witness, 4);
    socket.push("x-note", &json!("good")).unwrap();
    assert_eq!(socket.reply()["status"], "ok");
    server.counted("/ws/errors", &json!({"invalid_payload": 1, "invalid_request": 2, "unknown_event": 1}));
    server.counted("/ws/closed", &json!({}));
}
