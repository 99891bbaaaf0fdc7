//! Limits of connections, time and memory, and the answers to clients beyond them.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Instant;

use crate::support::socket::{Incoming, Socket};
use crate::support::{self, Events, PATIENCE, Server, data};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, WebSocket};

/// A connection may hold 512 KiB, and an address 1 MiB.
pub(crate) const SMALL: [&str; 5] = [
    "ws.max_frame_bytes=65536",
    "ws.max_pending_push_bytes=65536",
    "http.max_body_bytes=229376",
    "memory.max_connection_bytes=524288",
    "memory.max_address_bytes=1048576",
];

pub(crate) fn start(directory: &std::path::Path, settings: &[&str]) -> Server {
    let mut arguments = vec!["--durability", "memory"];
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    Server::start_with(directory, &arguments)
}

pub(crate) fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection from another address of this machine.
pub(crate) fn connect_from(last: u8, server: &Server) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0)).unwrap();
        socket.connect(server.address).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads until the connection ends.
fn rest(mut stream: TcpStream) -> String {
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

/// Sends a request and returns its answer.
pub(crate) fn ask(mut stream: TcpStream, host: &str) -> String {
    write!(stream, "GET /v1/stats HTTP/1.0\r\nhost: {host}\r\n\r\n").unwrap();
    rest(stream)
}

/// Asks for a path, and returns the answer.
fn ask_for(path: &str, mut stream: TcpStream) -> String {
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
    rest(stream)
}

#[track_caller]
pub(crate) fn ok(answer: &str) {
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
}

/// Checks that an answer is a refusal that says when to come back.
#[track_caller]
fn unavailable(answer: &str, reason: &str) {
    assert!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
    let after = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((1..=10).contains(&after.parse::<u64>().unwrap()), "{answer}");
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["reason"], reason);
}

/// Asks until there is room.
fn until_let_in(server: &Server) {
    let deadline = Instant::now() + PATIENCE;
    while !ask(connect(server), "localhost").starts_with("HTTP/1.0 200 ") {
        assert!(Instant::now() < deadline, "there is never room");
    }
}

#[test]
fn a_client_that_sends_nothing_or_half_a_head_or_no_second_request_is_disconnected() {
    let data = data();
    let server = start(data.path(), &["http.header_timeout=200ms"]);
    let silent = connect(&server);
    assert_eq!(rest(silent), "");
    let mut half = connect(&server);
    half.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx-one: ").unwrap();
    assert_eq!(rest(half), "");
    let mut idle = connect(&server);
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let answer = rest(idle);
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"status\":\"live\"}"),
        "{answer}"
    );
    server.counted("/http/timed_out/head", &json!(3));
}

#[test]
fn a_head_has_a_largest_size() {
    let data = data();
    let server = start(data.path(), &[]);
    let mut stream = connect(&server);
    let begun = b"GET / HTTP/1.0\r\nx-long: ";
    stream.write_all(begun).unwrap();
    stream.write_all(&vec![b'x'; 64 * 1024 - begun.len()]).unwrap();
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn a_body_that_does_not_arrive_is_not_waited_for() {
    let data = data();
    let server = start(data.path(), &["http.body_timeout=200ms"]);
    let mut stream = connect(&server);
    let head =
        "POST /v1/documents/notes/events HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: 100\r\n\r\n{{").unwrap();
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.0 408 ") && answer.contains("request_timeout"), "{answer}");
}

#[test]
fn a_stream_that_nobody_reads_is_cut_off_and_its_client_goes_on_where_it_was() {
    let data = data();
    let server = start(data.path(), &["http.write_timeout=200ms"]);
    let (_, mut unread) = Events::open(server.address, "notes", "?after_seq=0", None);
    let large = json!({"kind": "x-note", "payload": "x".repeat(1_000_000)});
    // More than both sides' socket buffers hold.
    for _ in 0..20 {
        server.publish("notes", &large);
    }
    server.counted("/http/timed_out/write", &json!(1));

    let mut last = None;
    let mut received = 0;
    while let Some(event) = unread.next() {
        received += 1;
        last = event.id;
    }
    assert!(received < 20);
    let (_, mut again) = Events::open(server.address, "notes", "?after_seq=0", last.as_deref());
    for seq in received + 1..=20 {
        assert_eq!(again.next().unwrap().data["seq"], seq);
    }
}

#[test]
fn a_websocket_has_time_outs_of_its_own() {
    let data = data();
    let server = start(data.path(), &["http.write_timeout=200ms"]);
    let mut socket = Socket::joined(server.address, "ada", "notes");
    let (_, unread) = Events::open(server.address, "notes", "?after_seq=0", None);
    let large = json!({"kind": "x-note", "payload": "x".repeat(1_000_000)});
    for _ in 0..20 {
        server.publish("notes", &large);
    }
    server.counted("/http/timed_out/write", &json!(1));
    drop(unread);
    for seq in 1..=20 {
        let Incoming::Message(message) = socket.next() else { panic!("the WebSocket was cut off") };
        assert_eq!(message[4]["seq"], seq);
    }
}

#[test]
fn a_full_server_says_when_to_come_back_and_lets_in_who_comes_when_there_is_room() {
    let data = data();
    let server = start(data.path(), &["http.max_connections=2"]);
    let held = [connect(&server), connect(&server)];
    unavailable(&ask(connect(&server), "localhost"), "too_many_connections");
    drop(held);
    until_let_in(&server);
    let stats = server.get("/v1/stats").json();
    assert!(stats["http"]["refused"]["too_many_connections"].as_u64() >= Some(1), "{stats}");
    server.counted("/http/connections_open", &json!(1));
}

#[test]
fn a_websocket_is_not_one_of_the_http_connections() {
    let data = data();
    let server = start(data.path(), &["http.max_connections=1"]);
    let mut socket = Socket::joined(server.address, "ada", "notes");
    until_let_in(&server);
    socket.push("x-note", &json!(1)).unwrap();
    assert_eq!(socket.reply()["status"], "ok");
}

#[test]
fn one_address_does_not_take_everybodys_room() {
    let data = data();
    let server = start(data.path(), &["http.max_connections_per_address=1"]);
    let held = connect_from(7, &server);
    unavailable(&ask(connect_from(7, &server), "localhost"), "too_many_connections_from_address");
    ok(&ask(connect_from(8, &server), "localhost"));
    drop(held);
    server.counted("/http/refused/too_many_connections_from_address", &json!(1));
}

#[test]
fn a_proxy_is_not_limited_as_if_it_were_one_client() {
    let data = data();
    let settings = ["http.max_connections_per_address=1", "http.trusted_proxies=127.0.0.7"];
    let server = start(data.path(), &settings);
    let _held = connect_from(7, &server);
    ok(&ask(connect_from(7, &server), "localhost"));
}

/// Opens a WebSocket over a connection whose request says that it comes from `client`; the status when it is refused.
fn forwarded(stream: TcpStream, client: &str) -> Result<WebSocket<TcpStream>, u16> {
    let mut request = "ws://localhost/socket/websocket?vsn=2.0.0".into_client_request().unwrap();
    request.headers_mut().insert("x-forwarded-for", client.parse().unwrap());
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(refused))) => {
            assert!(refused.headers().contains_key("retry-after"));
            Err(refused.status().as_u16())
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_trusted_proxy_says_where_a_websocket_comes_from_and_nobody_else_does() {
    let data = data();
    let settings = ["ws.max_connections_per_address=1", "http.trusted_proxies=127.0.0.7, 10.0.0.0/8"];
    let server = start(data.path(), &settings);
    let proxied = |client: &str| forwarded(connect_from(7, &server), client);
    let _first = proxied("203.0.113.1").unwrap();
    let _second = proxied("203.0.113.2").unwrap();
    assert_eq!(proxied("203.0.113.2").unwrap_err(), 503);
    assert_eq!(
        proxied("203.0.113.3, 203.0.113.2, 10.0.0.1").unwrap_err(),
        503,
        "what is further left is not believed"
    );

    let direct = |client: &str| forwarded(connect_from(8, &server), client);
    let _third = direct("203.0.113.3").unwrap();
    assert_eq!(direct("203.0.113.4").unwrap_err(), 503);
    server.counted("/ws/refused/too_many_connections_from_address", &json!(3));
}

#[test]
fn a_server_on_a_loopback_address_answers_to_its_own_names_alone() {
    let data = data();
    let server = start(data.path(), &["http.trusted_proxies=127.0.0.7"]);
    for own in ["localhost", "localhost:7400", "127.0.0.1:80", "[::1]"] {
        ok(&ask(connect(&server), own));
    }
    let refused = ask(connect(&server), "evil.example");
    assert!(refused.starts_with("HTTP/1.0 421 ") && refused.contains("allowed_hosts"), "{refused}");
    ok(&ask(connect_from(7, &server), "relay.example"));
    let (status, reason) = (421, "unknown_host");
    let posted =
        support::request(server.address, "POST", "http://evil.example/v1/documents/notes/events", &[], b"{}");
    assert_eq!((posted.status, &posted.json()["reason"]), (status, &json!(reason)));

    let data = support::data();
    let server = start(data.path(), &["allowed_hosts=relay.example"]);
    ok(&ask(connect(&server), "relay.example"));
    ok(&ask(connect(&server), "localhost"));
    assert!(ask(connect(&server), "evil.example").starts_with("HTTP/1.0 421 "));
}

#[test]
fn documents_that_nobody_wrote_to_and_one_address_lock_nobody_out() {
    let data = data();
    let server = start(data.path(), &["bus.max_channels=8", "ws.max_documents_per_address=100"]);
    let mut ada = Socket::open(server.address, "ada");
    for number in 0..50 {
        assert_eq!(ada.join(&format!("empty-{number}"))["status"], "ok");
    }
    server.publish("notes", &json!({"kind": "x-note", "payload": 1}));
    assert_eq!(server.get("/health/ready").status, 200);
    // Documents that are written to and in use take all places, and readiness says so.
    for number in 0..8 {
        let document = format!("written-{number}");
        assert_eq!(ada.join(&document)["status"], "ok");
        server.publish(&document, &json!({"kind": "x-note", "payload": 1}));
    }
    let refused = server.post("/v1/documents/other/events", &json!({"kind": "x-note", "payload": 1}));
    assert_eq!((refused.status, &refused.json()["reason"]), (503, &json!("too_many_documents")));
    let ready = server.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &json!("too_many_documents")));
    drop(ada);
    server.counted("/ws/connections_open", &json!(0));
    server.publish("other", &json!({"kind": "x-note", "payload": 1}));
    assert_eq!(server.get("/health/ready").status, 200);

    // By default the clients of one address have a quarter of the places.
    let data = support::data();
    let server = start(data.path(), &["bus.max_channels=8"]);
    let (mut ada, mut ben) = (Socket::open(server.address, "ada"), Socket::open(server.address, "ben"));
    assert_eq!(ada.join("one")["status"], "ok");
    assert_eq!(ben.join("one")["status"], "ok");
    assert_eq!(ben.join("two")["status"], "ok");
    let refused = ada.join("three");
    assert_eq!(refused["response"]["reason"], "too_many_documents", "{refused}");
    let refused = server.get("/v1/documents/three/events/stream");
    assert_eq!((refused.status, &refused.json()["reason"]), (503, &json!("too_many_documents")));
}

/// Joins the document with this number, with a state of 3,000 bytes, and returns the reply.
#[track_caller]
fn join_with_a_state(socket: &mut Socket, number: usize) -> Value {
    let topic = format!("document:notes-{number}");
    let join = json!(["1", "1", topic, "phx_join", {"state": {"text": "x".repeat(3_000)}}]);
    assert!(socket.send(&join.to_string()));
    socket.reply()
}

#[test]
fn the_documents_that_a_socket_joins_count_to_its_one_share() {
    let data = data();
    let server = start(data.path(), &[&SMALL[..], &["ws.max_topics=400"]].concat());
    let mut socket = Socket::open(server.address, "ada");
    let refused = (0..400).map(|number| (number, join_with_a_state(&mut socket, number)));
    let (joins, refused) = refused.into_iter().find(|(_, reply)| reply["status"] == "error").unwrap();
    assert!((90..=110).contains(&joins), "{joins}: {refused}");
    let message = refused["response"]["message"].as_str().unwrap();
    assert!(message.contains("the memory for this connection has a limit of 524288 bytes"), "{refused}");
    // What is held by the joins is lacking for a message.
    socket.raw().write_all(&[0x81, 0xfe, 0xff, 0xff, 0, 0, 0, 0]).unwrap();
    socket.raw().write_all(&vec![b'x'; 60_000]).unwrap();
    assert_eq!(socket.closed(), 1013);
}

/// Begins bodies until less than 8 KiB of the memory of all clients is free.
fn use_up_the_memory(server: &Server) -> Vec<TcpStream> {
    let memory = || server.get("/v1/stats").json()["memory"].clone();
    let bodies = |memory: &Value| memory["held_bytes"]["bodies"].as_u64().unwrap();
    let sum = |counts: &Value| counts.as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
    let mut streams = Vec::new();
    loop {
        let before = memory();
        let free = before["limit_bytes"].as_u64().unwrap() - sum(&before["held_bytes"]);
        if free < 8 * 1024 {
            return streams;
        }
        // A buffer is at most twice as large as what has arrived.
        let part = (free / 2).min(200_000);
        let mut stream = connect_from(7, server);
        write!(
            stream,
            "POST /v1/documents/notes/events HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: 229000\r\n\r\n"
        )
        .unwrap();
        stream.write_all(&vec![b' '; usize::try_from(part).unwrap()]).unwrap();
        streams.push(stream);
        let deadline = Instant::now() + PATIENCE;
        // The answers with the numbers count as well, so that a body may be refused.
        while let now = memory()
            && bodies(&now) < bodies(&before) + part
            && now["refused"] == before["refused"]
        {
            assert!(Instant::now() < deadline, "{before} {now}");
        }
    }
}

#[test]
fn an_operator_sees_the_numbers_when_the_memory_is_used_up() {
    let data = data();
    let total = ["memory.max_bytes=1048576", "memory.max_cache_bytes=524288"];
    let settings = [&SMALL[..], &total].concat();
    let arguments: Vec<_> = settings.into_iter().flat_map(|setting| ["--set", setting]).collect();
    let server = Server::start_with(data.path(), &arguments);
    // Each target has its numbers.
    let target = |n| format!("[[targets]]\nname = \"target-{n}\"\nurl = \"http://service.example/\"\n");
    let targets: Vec<_> = (0..40).map(target).collect();
    let changed = server.put("/v1/rules", "application/toml", &targets.concat());
    assert_eq!(changed.status, 200, "{changed:?}");
    server.publish("notes", &json!({"kind": "x-note", "payload": "x".repeat(20_000)}));
    let held = use_up_the_memory(&server);
    let refused = server.get("/v1/documents/notes/events");
    assert_eq!((refused.status, &refused.json()["reason"]), (429, &json!("overloaded")));
    let refusals = server.get("/v1/stats").json()["memory"]["refused"]["total"].clone();
    assert!(refusals.as_u64() > Some(0), "{refusals}");

    for path in ["/metrics", "/v1/stats", "/v1/shards", "/health/live", "/health/ready"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    assert!(["/metrics", "/v1/stats"].iter().all(|path| server.get(path).body.len() > 16 * 1024));
    // A head may come in parts.
    let mut parts = connect(&server);
    for part in ["GET /health/live HT", "TP/1.0\r\nhost: local", "host\r\n\r\n"] {
        parts.write_all(part.as_bytes()).unwrap();
        server.get("/health/live");
    }
    ok(&rest(parts));
    server.counted("/memory/refused/total", &refusals);
    drop(held);
    server.counted("/memory/held_bytes/bodies", &json!(0));
    assert_eq!(server.get("/v1/documents/notes/events").status, 200);
}

#[test]
fn event_streams_count_to_the_share_of_their_address() {
    let data = data();
    let settings = [&SMALL[..4], &["memory.max_address_bytes=524288"]].concat();
    let server = start(data.path(), &settings);
    let open = |last| {
        let mut stream = connect_from(last, &server);
        write!(stream, "GET /v1/documents/notes/events/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (String::from_utf8_lossy(&status[9..]).into_owned(), stream)
    };
    let mut streams = Vec::new();
    let refused = loop {
        let (status, stream) = open(7);
        if status != "200" || streams.len() > 600 {
            break status;
        }
        streams.push(stream);
    };
    assert_eq!(refused, "429");
    assert!((400..=512).contains(&streams.len()), "{} streams", streams.len());
    assert_eq!(open(8).0, "200");
    drop(streams);
    server.counted("/memory/held_bytes/subscriptions", &json!(0));
}

#[test]
fn bodies_that_stop_short_hold_no_more_than_the_share_of_their_address() {
    const MIB: u64 = 1024 * 1024;
    let data = data();
    let settings = ["memory.max_connection_bytes=9437184", "memory.max_address_bytes=10485760"];
    let server = start(data.path(), &settings);
    let mut streams: Vec<TcpStream> = Vec::new();
    for _ in 0..16 {
        let mut stream = connect(&server);
        write!(
            stream,
            "POST /v1/documents/notes/events HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: 4000000\r\n\r\n"
        )
        .unwrap();
        // A connection that is refused may be closed already.
        let _ = stream.write_all(&vec![b' '; 1024 * 1024]);
        streams.push(stream);
    }
    let deadline = Instant::now() + PATIENCE;
    let held = loop {
        let memory = server.get("/v1/stats").json()["memory"].clone();
        let held = memory["held_bytes"]["bodies"].as_u64().unwrap();
        assert!(held <= 10 * MIB, "{memory}");
        if memory["refused"]["address"].as_u64() > Some(0) {
            break held;
        }
        assert!(Instant::now() < deadline, "nothing is refused: {memory}");
    };
    assert!(held >= 4 * MIB, "{held}");
    drop(streams);
    server.counted("/memory/held_bytes/bodies", &json!(0));
}

#[test]
fn states_of_participants_hold_no_more_than_the_share_of_their_address() {
    let data = data();
    let server = start(data.path(), &[&SMALL[..], &["presence.max_state_bytes=65536"]].concat());
    let join = |last: u8, number: usize| {
        let body =
            json!({"user": format!("user-{number}"), "state": {"text": "x".repeat(60_000)}}).to_string();
        let mut stream = connect_from(last, &server);
        write!(
            stream,
            "POST /v1/documents/doc-{}/participants HTTP/1.0\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            number / 4,
            body.len()
        )
        .unwrap();
        rest(stream)
    };
    let (joined, refused) = (0..100)
        .map(|number| (number, join(7, number)))
        .find(|(_, answer)| !answer.starts_with("HTTP/1.0 201 "))
        .unwrap();
    assert!((14..=17).contains(&joined), "{joined}");
    assert!(refused.starts_with("HTTP/1.0 429 ") && refused.contains("your address"), "{refused}");
    let other = join(8, joined + 1);
    assert!(other.starts_with("HTTP/1.0 201 "), "{other}");
    // So do sockets. Their messages are small, so that the share is not used up by these.
    let mut sockets: Vec<_> = (0..8).map(|_| Socket::open(server.address, "ada")).collect();
    let mut joins = 0;
    let refused = sockets.iter_mut().find_map(|socket| {
        (0..80).find_map(|_| {
            joins += 1;
            let reply = join_with_a_state(socket, joins);
            (reply["status"] == "error").then_some(reply)
        })
    });
    let refused = refused.unwrap();
    assert_eq!(refused["response"]["reason"], "overloaded", "{refused}");
    assert!((190..=210).contains(&joins), "{joins}");
}

/// Sends JSON from the loopback address that ends with `last`.
fn send_from(last: u8, server: &Server, method: &str, path: &str, body: &Value) -> String {
    let (mut stream, body) = (connect_from(last, server), body.to_string());
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    rest(stream)
}

#[test]
fn one_address_does_not_lock_in_all_documents_that_may_have_locks() {
    let data = data();
    let server = start(data.path(), &["locks.max_documents=8"]);
    let lock = |last: u8, number: usize| {
        send_from(
            last,
            &server,
            "POST",
            &format!("/v1/documents/doc-{number}/locks"),
            &json!({"user": "ada"}),
        )
    };
    for number in 0..2 {
        let locked = lock(1, number);
        assert!(locked.starts_with("HTTP/1.0 201 "), "{locked}");
    }
    let refused = lock(1, 2);
    assert!(refused.starts_with("HTTP/1.0 503 ") && refused.contains("too_many_documents"), "{refused}");
    // So does a socket, for the address that it has connected from.
    let mut ada = Socket::open(server.address, "ada");
    assert!(ada.send(&json!(["1", "1", "document:notes", "phx_join", {}]).to_string()));
    assert_eq!(ada.reply()["status"], "ok");
    assert!(ada.send(&json!(["1", "2", "document:notes", "lock:acquire", {}]).to_string()));
    assert_eq!(ada.reply()["response"]["reason"], "too_many_documents");
    let other = lock(2, 3);
    assert!(other.starts_with("HTTP/1.0 201 "), "{other}");
    let held = server.get("/v1/stats").json()["memory"]["held_bytes"]["locks"].as_u64();
    assert!(held > Some(3 * 1024), "{held:?}");
}

#[test]
fn one_address_does_not_hold_all_locks_of_a_document() {
    let data = data();
    let server = start(data.path(), &["locks.max_locks=8"]);
    let lock = |last: u8, region: usize| {
        let body = json!({"user": "ada", "region": format!("r{region}")});
        send_from(last, &server, "POST", "/v1/documents/doc/locks", &body)
    };
    for region in 0..4 {
        let locked = lock(1, region);
        assert!(locked.starts_with("HTTP/1.0 201 "), "{locked}");
    }
    let refused = lock(1, 4);
    assert!(refused.starts_with("HTTP/1.0 429 ") && refused.contains("too_many_locks"), "{refused}");
    assert!(refused.contains("127.0.0.1 have 4 locks"), "{refused}");
    let other = lock(2, 5);
    assert!(other.starts_with("HTTP/1.0 201 "), "{other}");
}

#[test]
fn one_address_does_not_register_all_services() {
    let data = data();
    let server = support::service::routing_server_with(&data, "", &["--set", "router.max_services=8"]);
    let register = |last: u8, name: &str| {
        let body = json!({"url": "http://127.0.0.1:9/events"});
        send_from(last, &server, "PUT", &format!("/v1/services/{name}"), &body)
    };
    for name in ["one", "two"] {
        let registered = register(1, name);
        assert!(registered.starts_with("HTTP/1.0 201 "), "{registered}");
    }
    let refused = register(1, "three");
    assert!(refused.starts_with("HTTP/1.0 429 ") && refused.contains("too_many_services"), "{refused}");
    let other = register(2, "three");
    assert!(other.starts_with("HTTP/1.0 201 "), "{other}");
}

#[test]
fn one_address_does_not_take_all_connections() {
    let data = data();
    let server = start(data.path(), &["ws.max_connections=8", "http.max_connections=8"]);
    let url = "ws://localhost/socket/websocket?vsn=2.0.0";
    let connect =
        |last: u8| tungstenite::client(url, connect_from(last, &server)).ok().map(|(socket, _)| socket);
    let sockets: Vec<_> = std::iter::from_fn(|| connect(1)).collect();
    assert_eq!(sockets.len(), 6);
    assert!(connect(2).is_some());
    server.counted("/ws/refused/too_many_connections_from_address", &json!(1));

    // A connection that has ended may still have its place.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let idle: Vec<_> = (0..6).map(|_| connect_from(1, &server)).collect();
        let refused = ask_for("/metrics", connect_from(1, &server));
        ok(&ask_for("/metrics", connect_from(2, &server)));
        drop(idle);
        if Instant::now() > deadline || refused.starts_with("HTTP/1.0 503 ") {
            break unavailable(&refused, "too_many_connections_from_address");
        }
    }
}

#[test]
fn a_server_whose_connections_are_all_taken_is_alive() {
    let data = data();
    let server = start(data.path(), &["http.max_connections=2"]);
    let held = [connect(&server), connect(&server)];
    // More than are refused at once, none of which sends anything.
    let silent: Vec<_> = (0..300).map(|_| connect(&server)).collect();
    ok(&ask_for("/health/live", connect_from(2, &server)));
    unavailable(&ask_for("/health/ready", connect_from(2, &server)), "too_many_connections");
    drop(held);
    until_let_in(&server);
    drop(silent);
}
