//! The real binary as a child process, and the plain clients that the tests talk to it with.
//!
//! Every wait is for the thing itself: a line, an event, the end of a process. A wait longer than [`PATIENCE`] fails the
//! test.
#![allow(dead_code, unreachable_pub, reason = "each test file uses the part that it needs")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect by unwrapping it")]

pub mod service;
pub mod socket;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// The longest wait before a test fails. No test asserts a time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `relay` with a clean environment.
pub fn relay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// `relay serve` at `listen`, with its log in `data`.
pub fn serve(data: &Path, listen: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = relay();
    command
        .args(["serve", "--listen", &listen.to_string(), "--log-format", "json", "--data-dir"])
        .arg(data)
        .args(arguments)
        .current_dir(data);
    command
}

/// Runs `relay` to its end.
pub fn run(arguments: &[&str]) -> Output {
    relay().args(arguments).output().unwrap()
}

/// Returns the error of a process that must fail, in one line.
#[track_caller]
pub fn failure(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "not one line: {error}");
    error.trim_end().to_owned()
}

/// Returns the output of a process that must succeed.
#[track_caller]
pub fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// An address that is free whenever a server of this test starts at it, also again.
///
/// A socket is bound to the address all the time and never listens. So the system gives the port to nobody else, and a
/// server may still bind to it, since both sockets allow reuse.
pub struct ReservedAddress {
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl ReservedAddress {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }
}

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// The lines of its log after the one with its address.
    log: Receiver<String>,
}

impl Server {
    /// A server on a free port, with its log in `data`.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    pub fn start_with(data: &Path, arguments: &[&str]) -> Self {
        Self::start_at(data, SocketAddr::from(([127, 0, 0, 1], 0)), arguments)
    }

    pub fn start_at(data: &Path, listen: SocketAddr, arguments: &[&str]) -> Self {
        Self::spawn(&mut serve(data, listen, arguments))
    }

    /// A server with the four example services.
    pub fn demo(data: &Path) -> Self {
        let mut command = relay();
        command
            .args(["demo", "--no-open", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir"])
            .arg(data);
        Self::spawn(command.current_dir(data))
    }

    /// A server that `command` starts.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let log = lines(child.stdout.take().unwrap());
        let address = loop {
            let line = log.recv_timeout(PATIENCE).expect("the server says where it listens");
            let line: Value = serde_json::from_str(&line).unwrap();
            // The demo tells where its services are, too.
            if let (true, Some(address)) = (line["service"].is_null(), line["address"].as_str()) {
                break address.parse().unwrap();
            }
        };
        Self { child, address, log }
    }

    /// The next line of the log that holds `text`.
    #[track_caller]
    pub fn logged(&self, text: &str) -> Value {
        loop {
            let line = self.log.recv_timeout(PATIENCE).expect("a line of the log");
            if line.contains(text) {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }

    /// Waits until the server's numbers show `expected` at `pointer`.
    #[track_caller]
    pub fn counted(&self, pointer: &str, expected: &Value) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.get("/v1/stats").json();
            if stats.pointer(pointer) == Some(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "not {expected} at {pointer}: {stats:#}");
            thread::yield_now();
        }
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Kills the server with SIGKILL, as a crash.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the server's end.
    pub fn ended(mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    pub fn get(&self, path: &str) -> Answer {
        request(self.address, "GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json")];
        request(self.address, "POST", path, &headers, body.to_string().as_bytes())
    }

    pub fn put(&self, path: &str, content_type: &str, body: &str) -> Answer {
        request(self.address, "PUT", path, &[("content-type", content_type)], body.as_bytes())
    }

    /// Publishes one event, which must be accepted, and returns its ack.
    #[track_caller]
    pub fn publish(&self, document: &str, draft: &Value) -> Value {
        let answer = self.post(&format!("/v1/documents/{document}/events"), draft);
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        answer.json()
    }

    /// All that is kept of a document, read page by page: its epoch and its events.
    #[track_caller]
    pub fn history(&self, document: &str) -> (String, Vec<Value>) {
        let mut events = Vec::new();
        let mut after = 0;
        loop {
            let page = self.get(&format!("/v1/documents/{document}/events?after_seq={after}&limit=500"));
            assert_eq!(page.status, 200, "{page:?}");
            let page = page.json();
            events.extend(page["events"].as_array().unwrap().iter().cloned());
            after = page["next_after_seq"].as_u64().unwrap();
            if after == page["last_seq"].as_u64().unwrap() {
                return (page["epoch"].as_str().unwrap().to_owned(), events);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a process's end.
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the process does not end");
        thread::yield_now();
    }
}

/// The lines of a pipe as they come.
pub fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // The pipe is read to its end even without a receiver, so that the process never waits for a full pipe.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// Speaks HTTP/1.0, with which a body simply ends where the connection does.
fn send(
    mut stream: TcpStream,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head =
        format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    // A server that has seen enough may answer and close before all is sent.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    stream
}

pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    try_request(address, method, path, headers, body).expect("a whole answer")
}

/// Sends a request. `None` when the connection is refused, or breaks before the answer is whole.
pub fn try_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    let mut stream = send(TcpStream::connect(address).ok()?, address, method, path, headers, body);
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text);
    let text = String::from_utf8(text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let answer = Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_owned(),
        body: body.to_owned(),
    };
    let length: Option<usize> = answer.header("content-length").and_then(|length| length.parse().ok());
    (length == Some(body.len()) || (read.is_ok() && length.is_none())).then_some(answer)
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub id: Option<String>,
    pub name: String,
    pub data: Value,
}

/// A stream of server-sent events.
pub struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    /// Opens the stream and reads its opening.
    #[track_caller]
    pub fn open(
        address: SocketAddr,
        document: &str,
        query: &str,
        last_event_id: Option<&str>,
    ) -> (Message, Self) {
        let path = format!("/v1/documents/{document}/events/stream{query}");
        let headers: Vec<_> = last_event_id.map(|id| ("last-event-id", id)).into_iter().collect();
        let mut events = Self {
            lines: BufReader::new(send(
                TcpStream::connect(address).unwrap(),
                address,
                "GET",
                &path,
                &headers,
                b"",
            )),
        };
        let mut head = String::new();
        while events.lines.read_line(&mut head).unwrap() > 2 {}
        assert!(head.contains(" 200 OK") && head.contains("text/event-stream"), "{head}");
        let opening = events.next().expect("an opening");
        assert_eq!(opening.name, "relay.opening");
        (opening, events)
    }

    /// The next event. `None` when the stream is over.
    pub fn next(&mut self) -> Option<Message> {
        let (mut id, mut name, mut data) = (None, String::new(), None);
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => data = serde_json::from_str(value).ok(),
                _ if line == "\n" => {
                    if let Some(data) = data.take() {
                        return Some(Message { id, name, data });
                    }
                }
                _ => {}
            }
        }
    }
}

/// A directory for one server's log.
pub fn data() -> TempDir {
    tempfile::tempdir().unwrap()
}
