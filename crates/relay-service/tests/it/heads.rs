//! The memory of heads that arrive in part: it counts, it is limited for each address, and it is given back.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use crate::limits::{SMALL, ask, connect, connect_from, ok, start};
use crate::support::{PATIENCE, Server, data};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The start of a head, which has this many bytes.
fn head(bytes: usize) -> String {
    let begun = "GET /health/live HTTP/1.1\r\nhost: localhost\r\nx-long: ";
    format!("{begun}{}", "x".repeat(bytes - begun.len()))
}

/// Sends a part of a head, for which at least `counted` bytes must then count.
fn send_part(server: &Server, mut stream: &TcpStream, part: &str, counted: usize) {
    stream.write_all(part.as_bytes()).unwrap();
    until(server, |held| held >= counted);
}

/// Waits until the memory of heads is as wanted.
#[track_caller]
fn until(server: &Server, wanted: impl Fn(usize) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let memory = server.get("/v1/stats").json()["memory"].clone();
        let held = memory["held_bytes"]["heads"].as_u64().unwrap();
        if wanted(usize::try_from(held).unwrap()) {
            return;
        }
        assert!(Instant::now() < deadline, "{memory}");
    }
}

/// Reads one answer with a length.
#[track_caller]
fn answer(reader: &mut BufReader<&TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "the connection has ended: {head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

#[track_caller]
fn live(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"live\""), "{answer}");
}

#[test]
fn heads_that_stop_short_hold_no_more_than_the_share_of_their_address() {
    let data = data();
    let server = start(data.path(), &SMALL);
    let mut streams = Vec::new();
    for number in 1..=17 {
        let stream = connect_from(7, &server);
        send_part(&server, &stream, &head(60 * KIB), number * 60 * KIB);
        streams.push(stream);
    }
    until(&server, |held| held == 17 * 60 * KIB);
    let mut refused = connect_from(7, &server);
    // The connection may end before all is sent.
    let _ = refused.write_all(head(60 * KIB).as_bytes());
    let mut rest = Vec::new();
    let _ = refused.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    server.counted("/memory/refused/address", &json!(1));
    until(&server, |held| held == 17 * 60 * KIB);

    // A head that comes whole is served, and so is a large one from elsewhere.
    ok(&ask(connect_from(7, &server), "localhost"));
    let other = connect_from(8, &server);
    send_part(&server, &other, &head(60 * KIB), 18 * 60 * KIB);
    (&other).write_all(b"\r\n\r\n").unwrap();
    live(&answer(&mut BufReader::new(&other)));
    until(&server, |held| held == 17 * 60 * KIB);
    // One that stopped goes on, and the rest leave.
    let mut first = streams.swap_remove(0);
    first.write_all(b"\r\n\r\n").unwrap();
    live(&answer(&mut BufReader::new(&first)));
    until(&server, |held| held == 16 * 60 * KIB);
    drop(streams);
    until(&server, |held| held == 0);
}

#[test]
fn a_connection_that_is_kept_alive_holds_nothing_of_the_heads_before() {
    let data = data();
    let server = start(data.path(), &[]);
    let stream = connect(&server);
    let mut reader = BufReader::new(&stream);
    for bytes in [100, 20 * KIB, 8 * KIB, 63 * KIB] {
        // The head comes in two parts, and one after the other.
        send_part(&server, &stream, &head(bytes), bytes);
        (&stream).write_all(b"\r\n\r\n").unwrap();
        live(&answer(&mut reader));
        until(&server, |held| held == 0);
    }
    // Heads of many reads, and many heads in a read, without a pause between them.
    for (count, bytes) in [(20, 30 * KIB), (500, 100)] {
        let pipeline = (head(bytes) + "\r\n\r\n").repeat(count);
        std::thread::scope(|scope| {
            scope.spawn(|| (&stream).write_all(pipeline.as_bytes()).unwrap());
            (0..count).for_each(|_| live(&answer(&mut reader)));
        });
        until(&server, |held| held == 0);
    }
    send_part(&server, &stream, &head(10 * KIB), 10 * KIB);
    drop(stream);
    until(&server, |held| held == 0);
}

#[test]
fn bodies_and_streams_are_no_heads() {
    let data = data();
    let server = start(data.path(), &[]);
    let mut sender = connect(&server);
    let large = "x".repeat(20 * KIB);
    let post =
        "POST /v1/documents/notes/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(sender, "{post}x-long: {large}\r\ncontent-length: {}\r\n\r\n", 2 * MIB).unwrap();
    sender.write_all(&vec![b' '; MIB]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while server.get("/v1/stats").json()["memory"]["held_bytes"]["bodies"].as_u64() < Some(MIB as u64) {
        assert!(Instant::now() < deadline, "the body does not arrive");
    }
    until(&server, |held| held == 0);

    let mut stream = connect(&server);
    write!(
        stream,
        "GET /v1/documents/notes/events/stream HTTP/1.1\r\nhost: localhost\r\nx-long: {large}\r\n\r\n"
    )
    .unwrap();
    let mut opened = String::new();
    let mut lines = BufReader::new(&stream);
    while !opened.contains("relay.opening") {
        assert!(lines.read_line(&mut opened).unwrap() > 0, "{opened}");
    }
    until(&server, |held| held == 0);
}

#[test]
fn heads_behind_a_proxy_are_a_part_of_the_total_alone() {
    let data = data();
    let server = start(data.path(), &[&SMALL[..], &["http.trusted_proxies=127.0.0.7"]].concat());
    let streams: Vec<TcpStream> = (0..20).map(|_| connect_from(7, &server)).collect();
    for mut stream in &streams {
        stream.write_all(head(60 * KIB).as_bytes()).unwrap();
    }
    until(&server, |held| held == 20 * 60 * KIB);
    server.counted("/memory/refused/address", &json!(0));
    drop(streams);
    until(&server, |held| held == 0);
}
