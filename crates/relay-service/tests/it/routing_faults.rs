//! Routing to real services: processes of their own, of which one is killed, one is slow, one fails half of the time and
//! one hangs up in the middle of its answers, while the relay itself is killed and started again.
//!
//! `RELAY_ROUTING_EVENTS` sets the number of events that are published (10,000 by default).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by unwrapping it"
)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, ReservedAddress, Server, data, lines, try_request};
use serde_json::{Value, json};
use uuid::Uuid;

const MODE: &str = "RELAY_TEST_SERVICE_MODE";
const FILE: &str = "RELAY_TEST_SERVICE_FILE";

/// Requests that each service gets at once.
const CONCURRENCY: usize = 8;
/// The number of times that the relay is killed.
const KILLS: usize = 4;
const DOCUMENTS: usize = 12;

/// A service as a process of its own. Killed when dropped.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    /// Starts this test program as a service that writes the events that it gets to `file`.
    fn start(mode: &str, file: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "routing_faults::as_a_service", "--nocapture"])
            .env(MODE, mode)
            .env(FILE, file);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let printed = lines(child.stdout.take().unwrap());
        let address = loop {
            let line = printed.recv_timeout(PATIENCE).expect("the service says where it listens");
            if let Some((_, address)) = line.split_once("listening ") {
                break address.trim().parse().unwrap();
            }
        };
        Self { child, address }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program of a [`Service`]. Without the environment of one it does nothing.
#[test]
fn as_a_service() {
    let (Ok(mode), Ok(file)) = (std::env::var(MODE), std::env::var(FILE)) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("listening {}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let (mode, file, requests) = (mode.clone(), file.clone(), Arc::clone(&requests));
        std::thread::spawn(move || while_connected(stream.unwrap(), &mode, &file, &requests));
    }
}

fn while_connected(mut stream: TcpStream, mode: &str, file: &str, requests: &AtomicUsize) {
    // Each line is one write, so that what several services write to one file stays whole and in order.
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(body) = request(&mut reader) {
        let event: Value = serde_json::from_slice(&body).unwrap();
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let status = match mode {
            _ if event["data"]["poison"] == true => "400 Bad Request",
            "half" if number.is_multiple_of(2) => "500 Internal Server Error",
            "hangup" if number.is_multiple_of(3) => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all of");
                return;
            }
            _ => "200 OK",
        };
        if mode == "slow" {
            // This makes it slow; nothing waits for it.
            std::thread::sleep(Duration::from_millis(5));
        }
        if status == "200 OK" {
            let line = format!("{} {} {}\n", event["data"]["document"], event["id"], event["data"]["n"]);
            file.write_all(line.replace('"', "").as_bytes()).unwrap();
        }
        if stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// The next request's body; none when the connection is over.
fn request(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

/// Rules that send each group of documents to its service.
fn rules(services: &BTreeMap<&str, Service>) -> String {
    let rule = |(name, service): (&&str, &Service)| {
        let address = service.address;
        format!(
            r#"
            [[targets]]
            name = "{name}"
            url = "http://{address}/"
            concurrency = {CONCURRENCY}
            timeout = "30s"
            retry = {{ max_attempts = 40, initial = "5ms", max = "100ms" }}
            breaker = {{ failures = 10, open_for = "100ms" }}

            [[rules]]
            name = "to-{name}"
            documents = ["{name}/*"]
            kinds = ["x-note"]
            targets = ["{name}"]
            {}
            "#,
            if *name == "killed" { "fallback = [\"healthy\"]" } else { "" },
        )
    };
    services.iter().map(rule).collect()
}

/// Publishes one event and does not give up before it is acknowledged, wherever the relay is in its lives.
fn publish(address: SocketAddr, document: &str, event: &Value) {
    let path = format!("/v1/documents/{}/events", document.replace('/', "%2F"));
    let body = event.to_string();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let headers = [("content-type", "application/json")];
        match try_request(address, "POST", &path, &headers, body.as_bytes()) {
            Some(answer) if answer.status == 200 || answer.status == 201 => return,
            Some(answer) if answer.status < 500 && answer.status != 429 => panic!("{}", answer.body),
            _ => assert!(Instant::now() < deadline, "the relay does not come back"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn with_killed_processes_each_event_reaches_its_service_in_order_and_few_come_twice() {
    let total: usize = std::env::var("RELAY_ROUTING_EVENTS").map_or(10_000, |events| events.parse().unwrap());
    let data = data();
    let file = data.path().join("received");
    let names = ["healthy", "killed", "slow", "half", "hangup"];
    let mut services: BTreeMap<_, _> = names.map(|name| (name, Service::start(name, &file))).into();
    let rules_file = data.path().join("rules.toml");
    std::fs::write(&rules_file, rules(&services)).unwrap();
    let rules_file = format!("router.rules={}", rules_file.display());
    let options = [
        "--set",
        "router.allow_networks=127.0.0.0/8",
        "--set",
        "router.eject_after=100000",
        "--set",
        &rules_file,
        "--durability",
        "logged",
    ];
    let reserved = ReservedAddress::new();
    let address = reserved.address;
    let server = Server::start_at(data.path(), address, &options);

    // The events that are to arrive, by document and in order, and those that are not.
    let mut expected: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut poison = BTreeSet::new();
    let published = AtomicUsize::new(0);
    let mut drafts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for n in 0..total {
        let document = format!("{}/{}", names[n % names.len()], n / names.len() % DOCUMENTS);
        let is_poison = n % 97 == 0;
        let id = Uuid::now_v7();
        if is_poison {
            poison.insert(id.to_string());
        } else {
            expected.entry(document.clone()).or_default().push(n);
        }
        let payload = json!({"n": n, "poison": is_poison, "document": document});
        let draft = json!({"kind": "x-note", "id": id, "payload": payload});
        drafts.entry(document).or_default().push(draft);
    }
    let server = std::thread::scope(|scope| {
        let mut server = server;
        for (document, drafts) in &drafts {
            let published = &published;
            scope.spawn(move || {
                for draft in drafts {
                    publish(address, document, draft);
                    published.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for kill in 1..=KILLS {
            while published.load(Ordering::SeqCst) < total * kill / (KILLS + 1) {
                std::thread::yield_now();
            }
            if kill == 2 {
                services.remove("killed");
            }
            server.kill();
            server = Server::start_at(data.path(), address, &options);
        }
        server
    });
    let deadline = Instant::now() + PATIENCE * 3;
    loop {
        let targets = server.get("/v1/targets").json();
        let behind = server.get("/v1/stats").json()["router"]["behind"].clone();
        if behind == 0 && targets.as_array().unwrap().iter().all(|target| target["queued"] == 0) {
            break;
        }
        assert!(Instant::now() < deadline, "{behind} {targets:#}");
        std::thread::sleep(Duration::from_millis(50));
    }

    let received = std::fs::read_to_string(&file).unwrap();
    let mut arrived: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let (mut once, mut duplicates) = (HashSet::new(), 0);
    for line in received.lines() {
        let [document, id, n] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        if once.insert(id.to_owned()) {
            arrived.entry(document.to_owned()).or_default().push(n.parse().unwrap());
        } else {
            duplicates += 1;
        }
    }
    for (document, expected) in &expected {
        assert_eq!(arrived.get(document), Some(expected), "{document}");
    }
    assert_eq!(arrived.len(), expected.len());
    // Only what was under way when the relay was killed, or the service, comes twice.
    let most = CONCURRENCY * names.len() * KILLS + CONCURRENCY;
    println!("{total} events, {KILLS} kills, {duplicates} came twice (at most {most})");
    assert!(duplicates <= most, "{duplicates}");

    let mut dead = BTreeSet::new();
    for name in names {
        let letters = server.get(&format!("/v1/targets/{name}/dead-letters?limit=1000")).json();
        for letter in letters["dead_letters"].as_array().unwrap() {
            assert_eq!(letter["reason"], "rejected", "{letter:#}");
            assert!(dead.insert(letter["event_id"].as_str().unwrap().to_owned()));
        }
    }
    assert_eq!(dead, poison);
}
