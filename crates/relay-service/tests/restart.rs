//! Stopping, and coming back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

mod support;

use serde_json::{Value, json};
use support::{Events, Message, PATIENCE, Server, data};
use tokio_tungstenite::tungstenite::{self, Message as Frame, WebSocket};

fn note(number: u64) -> Value {
    json!({"kind": "x-note", "payload": number})
}

fn join(server: &Server, document: &str) -> WebSocket<std::net::TcpStream> {
    let stream = std::net::TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let url = format!("ws://{}/socket/websocket?vsn=2.0.0&user=ada", server.address);
    let (mut socket, _) = tungstenite::client(url, stream).unwrap();
    let join = json!(["1", "1", format!("document:{document}"), "phx_join", {}]);
    socket.send(Frame::text(join.to_string())).unwrap();
    let reply: Value = serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap();
    assert_eq!(reply[4]["status"], "ok");
    socket
}

#[test]
fn at_sigterm_clients_are_told_to_come_back_and_the_server_ends_in_order() {
    for signal in ["-TERM", "-INT"] {
        let data = data();
        let server = Server::start(data.path());
        server.publish("notes", &note(1));
        let mut socket = join(&server, "notes");
        let (_, mut stream) = Events::open(server.address, "notes", "", None);
        server.signal(signal);

        let notice: Value = serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap();
        assert_eq!((&notice[3], &notice[4]["code"]), (&json!("system.notice"), &json!("reconnect")));
        let Frame::Close(Some(close)) = socket.read().unwrap() else { panic!("no close") };
        assert_eq!(u16::from(close.code), 1012);
        while socket.read().is_ok() {}
        let ended = stream.next().unwrap();
        assert_eq!((ended.name.as_str(), &ended.data["reason"]), ("relay.ended", &json!("closed")));
        assert_eq!(stream.next(), None);
        assert_eq!(server.ended().code(), Some(0), "{signal}");
    }
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
