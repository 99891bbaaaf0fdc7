//! Many connections that are held, and then go without a close: everything that they took is given back.
//!
//! `RELAY_CHURN_CONNECTIONS` sets their number (1,000 by default). `RELAY_CHURN_SECONDS` sets how long they are held with
//! heartbeats (2 by default). The counts are printed.
//!
//! This is a program of its own. It needs one open file for each connection, and many systems allow a process 1,024: the
//! other tests, as threads of the same process, would take the rest.
#![allow(clippy::disallowed_methods, reason = "a test ends with its tasks")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

#[path = "it/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{PATIENCE, Server, data};

/// Members of each document.
const MEMBERS: usize = 10;

fn wanted(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A client that reads only its replies, since there are thousands of clients.
struct Client {
    socket: TcpStream,
    user: usize,
    buffer: Vec<u8>,
}

impl Client {
    fn join(address: SocketAddr, user: usize) -> Self {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            socket,
            "GET /socket/websocket?vsn=2.0.0&user=u{user} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let mut client = Self { socket, user, buffer: Vec::new() };
        let head = loop {
            client.fill();
            if let Some(end) = client.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break client.buffer.drain(..end + 4).collect::<Vec<_>>();
            }
        };
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        client.send(&json!(["1", "join", format!("document:d{}", user / MEMBERS), "phx_join", {}]));
        let reply = client.reply("join");
        assert_eq!(reply[4]["status"], "ok", "{reply}");
        client
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        assert!(text.len() < 126);
        frame.extend_from_slice(text.as_bytes());
        self.socket.write_all(&frame).unwrap();
    }

    fn fill(&mut self) {
        let mut bytes = [0; 4096];
        let count = self.socket.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "the connection of user {} was closed", self.user);
        self.buffer.extend_from_slice(&bytes[..count]);
    }

    /// Reads until the reply with this ref.
    fn reply(&mut self, reference: &str) -> Value {
        loop {
            let message: Value = serde_json::from_slice(&self.message()).unwrap();
            if message[1] == reference {
                return message;
            }
        }
    }

    fn message(&mut self) -> Vec<u8> {
        loop {
            let (header, length) = match self.buffer.get(1) {
                Some(126) => {
                    (4, self.buffer.get(2..4).map(|two| usize::from(u16::from_be_bytes([two[0], two[1]]))))
                }
                Some(127) => panic!("no message is so long here"),
                Some(length) => (2, Some(usize::from(*length))),
                None => (2, None),
            };
            if let Some(length) = length
                && self.buffer.len() >= header + length
            {
                return self.buffer.drain(..header + length).skip(header).collect();
            }
            self.fill();
        }
    }
}

/// The resources of the server's process, by the operating system.
#[derive(Debug, Clone, Copy)]
struct Usage {
    open_files: usize,
    resident_kib: u64,
}

fn usage(server: &Server) -> Usage {
    let process = PathBuf::from(format!("/proc/{}", server.pid()));
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Usage {
        open_files: std::fs::read_dir(process.join("fd")).unwrap().count(),
        resident_kib: resident.split_whitespace().next().unwrap().parse().unwrap(),
    }
}

/// Waits until all parts of the server count the same connections, and prints the counts.
fn settled(server: &Server, what: &str, connections: usize) -> Usage {
    let rooms = connections / MEMBERS;
    for (pointer, expected) in [
        ("/ws/connections_open", connections),
        ("/ws/rooms_open", rooms),
        ("/presence/connections", connections),
        ("/presence/users", connections),
        ("/presence/sessions", rooms),
        ("/presence/waiting_events", 0),
    ] {
        server.counted(pointer, &json!(expected));
    }
    let listed = server.get("/v1/sessions").json();
    assert_eq!(listed.as_array().unwrap().len(), rooms);
    let usage = usage(server);
    println!(
        "{what:<32} {connections:>6} connections, {rooms:>5} rooms and sessions, {:>6} open files, {:>7} KiB resident",
        usage.open_files, usage.resident_kib
    );
    usage
}

/// Connects them all, holds them with heartbeats, and lets half of them go without a close, then the rest.
fn round(server: &Server, connections: usize, hold: Duration) -> (Usage, Usage) {
    let mut clients: Vec<Client> = (0..connections).map(|user| Client::join(server.address, user)).collect();
    settled(server, "all have joined", connections);
    let begin = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || begin.elapsed() < hold {
        rounds += 1;
        let heartbeat = json!([null, format!("h{rounds}"), "phoenix", "heartbeat", {}]);
        for client in &mut clients {
            client.send(&heartbeat);
        }
        for client in &mut clients {
            client.reply(&format!("h{rounds}"));
        }
    }
    let all = settled(server, &format!("after {rounds} rounds of heartbeats"), connections);
    // Dropped with unread data, a socket is reset; without, it is closed: neither says goodbye.
    clients.retain(|client| (client.user / MEMBERS) % 2 == 1);
    let half = settled(server, "half of them are gone", clients.len());
    let gone = connections - clients.len();
    let given_back = all.open_files - half.open_files;
    assert!(given_back.abs_diff(gone) < 32, "{given_back} open files were given back by {gone} connections");
    drop(clients);
    (all, settled(server, "all are gone", 0))
}

#[test]
fn connections_that_go_without_a_word_leave_nothing_behind() {
    let connections = usize::try_from(wanted("RELAY_CHURN_CONNECTIONS", 1_000)).unwrap();
    let hold = Duration::from_secs(wanted("RELAY_CHURN_SECONDS", 2));
    assert_eq!(connections % (2 * MEMBERS), 0, "documents of {MEMBERS}, and half of them");
    let data = data();
    let config = data.path().join("relay.toml");
    // Little of the documents' history is kept in memory, so that what is measured is the connections.
    // All clients come from one address.
    let settings = format!(
        "[presence]\ngrace = \"1s\"\n[bus]\ncache_events = 16\nwarm_events = 16\n\
         [ws]\nmax_connections_per_address = {connections}\n"
    );
    std::fs::write(&config, settings).unwrap();
    let server = Server::start_with(data.path(), &["--config", config.to_str().unwrap()]);
    let before = usage(&server);
    let (first, empty) = round(&server, connections, hold);
    assert!(empty.open_files < before.open_files + 32, "{empty:?} after {before:?}");
    // The allocator keeps memory and uses it again: a second round takes no more than the first.
    let (second, _) = round(&server, connections, Duration::ZERO);
    assert!(
        second.resident_kib < first.resident_kib + first.resident_kib / 4 + 16 * 1024,
        "{second:?} after {first:?}"
    );
}
