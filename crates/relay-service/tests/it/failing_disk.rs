//! A disk that is full or does not sync: the server says so, keeps nothing that it does not have, and goes on with a working disk.
//!
//! The disk is a library in C (`failing_disk.c`) that is preloaded into the server. The test compiles it with `cc`, which Rust
//! links with and which is therefore there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::service::Service;
use crate::support::socket::{Incoming, Socket};
use crate::support::{Answer, PATIENCE, Server, data, request, run, serve, success};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

/// The library's source.
const LIBRARY: &str = include_str!("failing_disk.c");
/// The error of a device that fails.
const EIO: i64 = 5;

/// The router's store in the server's directory.
const STORE: &str = "router/store";
/// The events of the log in the server's directory.
const LOG: &str = "engine";

/// A state of a disk.
#[derive(Debug, Clone, Copy)]
enum State {
    Working,
    /// The disk takes this many more bytes.
    Full(i64),
    /// The disk takes bytes and does not sync.
    Unsynced,
    /// The disk takes bytes, and a sync does not return.
    Hung,
}

/// The disk under one directory or file, for the servers that are started on it.
struct Disk {
    directory: TempDir,
    below: PathBuf,
    faults: File,
}

impl Disk {
    /// A working disk under the directory or file `part` of a server's `data`.
    fn new(data: &Path, part: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("disk.c"), LIBRARY).unwrap();
        let compile = ["-shared", "-fPIC", "-O1", "-o", "disk.so", "disk.c"];
        let compiled = Command::new("cc").args(compile).current_dir(directory.path()).status().unwrap();
        assert!(compiled.success());
        let faults = File::create(directory.path().join("faults")).unwrap();
        let disk = Self { directory, below: data.canonicalize().unwrap().join(part), faults };
        disk.set(State::Working);
        disk
    }

    fn set(&self, state: State) {
        let (space, sync_error) = match state {
            State::Working => (-1, 0),
            State::Full(space) => (space, 0),
            State::Unsynced => (-1, EIO),
            State::Hung => (-1, -1),
        };
        self.faults.write_all_at(&[space, sync_error].map(i64::to_ne_bytes).concat(), 0).unwrap();
    }

    /// The command of a server on this disk.
    fn serve(&self, data: &Path, arguments: &[&str]) -> Command {
        let mut command = serve(data, SocketAddr::from(([127, 0, 0, 1], 0)), arguments);
        command
            .env("LD_PRELOAD", self.directory.path().join("disk.so"))
            .env("FAILING_DISK_BELOW", &self.below)
            .env("FAILING_DISK_FAULTS", self.directory.path().join("faults"));
        command
    }

    fn server(&self, data: &Path, arguments: &[&str]) -> Server {
        Server::spawn(&mut self.serve(data, arguments))
    }
}

/// Asserts that the server is not ready for `reason`, and that it answers.
#[track_caller]
fn is_not_ready(server: &Server, reason: &str) {
    is_refused(&server.get("/health/ready"), reason);
    assert_eq!(server.get("/health/live").status, 200);
}

#[track_caller]
fn is_refused(answer: &Answer, reason: &str) {
    assert_eq!((answer.status, &answer.json()["reason"]), (503, &json!(reason)), "{answer:?}");
}

fn put_rules(server: &Server, rules: &str) -> Answer {
    let headers = [("content-type", "application/toml")];
    request(server.address, "PUT", "/v1/rules", &headers, rules.as_bytes())
}

/// Publishes notes with these numbers, in turn to three documents.
fn publish_notes(server: &Server, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        server.publish(&format!("notes-{}", n % 3), &json!({"kind": "x-note", "payload": {"n": n}}));
    }
}

/// The numbers of the notes that a service has accepted so far, by document, each for the first time.
#[derive(Default)]
struct Accepted(BTreeMap<u64, Vec<u64>>);

impl Accepted {
    fn add(&mut self, service: &Service, until: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !until(self) {
            assert!(Instant::now() < deadline, "the service has {:?}", self.0);
            let Ok(request) = service.requests.recv_timeout(PATIENCE / 60) else { continue };
            self.put(&request);
        }
        service.requests.try_iter().for_each(|request| self.put(&request));
    }

    fn put(&mut self, request: &crate::support::service::Request) {
        if request.status == 200 {
            let event: Value = serde_json::from_slice(&request.body).unwrap();
            let n = event["data"]["n"].as_u64().unwrap();
            let of_document = self.0.entry(n % 3).or_default();
            if !of_document.contains(&n) {
                of_document.push(n);
            }
        }
    }

    fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

/// The settings of a server that routes notes to `service`.
fn routing(data: &Path, service: &Service) -> [String; 6] {
    let rules = format!(
        r#"
        [[targets]]
        name = "noter"
        url = "http://{}/"
        concurrency = 2
        retry = {{ max_attempts = 1000, initial = "5ms", max = "20ms" }}
        breaker = {{ failures = 1000 }}

        [[rules]]
        name = "notes"
        kinds = ["x-note"]
        targets = ["noter"]
        "#,
        service.address
    );
    std::fs::write(data.join("rules.toml"), rules).unwrap();
    let rules = format!("router.rules={}", data.join("rules.toml").display());
    let set = |setting: &str| ["--set".to_owned(), setting.to_owned()];
    let all = [set("router.allow_networks=127.0.0.0/8"), set("router.eject_after=100000"), set(&rules)];
    all.concat().try_into().unwrap()
}

/// Fills the disk while `is_delivering` tells that deliveries fail and are tried again; else while nothing is to be done.
fn loses_no_event(space: i64, is_delivering: bool) {
    let (data, service) = (data(), Service::start());
    let disk = Disk::new(data.path(), STORE);
    let settings = routing(data.path(), &service);
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let server = disk.server(data.path(), &settings);
    let mut member = Socket::joined(server.address, "ada", "notes-0");
    let mut accepted = Accepted::default();
    publish_notes(&server, 1..=9);
    accepted.add(&service, |accepted| accepted.count() == 9);
    if is_delivering {
        service.answer(500);
        publish_notes(&server, 10..=18);
        while service.next().status != 500 {}
    }

    disk.set(State::Full(space));
    let deadline = Instant::now() + PATIENCE;
    let mut published = if is_delivering { 18 } else { 9 };
    while server.get("/health/ready").status == 200 {
        assert!(Instant::now() < deadline, "the server is ready");
        published += 1;
        publish_notes(&server, published..=published);
    }
    is_not_ready(&server, "store_failed");
    let line = server.logged("the router's store cannot be written");
    assert_eq!(line["level"], "ERROR");
    assert!(line["error"].as_str().unwrap().contains(STORE), "{line}");
    // Everything but routing goes on.
    service.answer(200);
    publish_notes(&server, published + 1..=published + 9);
    let last = server.publish("notes-0", &json!({"kind": "x-other", "payload": 1}))["seq"].clone();
    assert_eq!(server.history("notes-0").1.len() as u64, last.as_u64().unwrap());
    loop {
        match member.next() {
            Incoming::Message(message) if message[4]["seq"] == last => break,
            Incoming::Message(_) => {}
            other => panic!("the member gets no more events: {other:?}"),
        }
    }
    drop(member);
    // A change is refused, also when the disk works again.
    is_refused(&put_rules(&server, ""), "store_failed");
    disk.set(State::Working);
    is_refused(&put_rules(&server, ""), "store_failed");
    is_not_ready(&server, "store_failed");
    server.signal("-TERM");
    assert_eq!(server.ended().code(), Some(0));
    accepted.add(&service, |_| true);
    assert!(
        accepted.0.values().flatten().all(|n| *n <= published),
        "nothing is routed later: {:?}",
        accepted.0
    );

    let server = Server::start_with(data.path(), &settings);
    accepted.add(&service, |accepted| accepted.count() as u64 == published + 9);
    assert!(accepted.0.values().all(|numbers| numbers.is_sorted()), "{:?}", accepted.0);
    assert_eq!(server.get("/health/ready").status, 200);
    server.counted("/router/behind", &json!(0));
}

#[test]
fn a_full_disk_under_the_routers_store_stops_routing_and_loses_no_event() {
    // The first write that fails is missing or cut short, or others precede it.
    for (space, is_delivering) in [(0, false), (100, false), (100, true), (3_000, true)] {
        loses_no_event(space, is_delivering);
    }
}

#[test]
fn a_change_that_the_routers_store_does_not_take_is_refused_and_undone_by_a_restart() {
    const OTHERS: &str = "[[rules]]\nname = \"other\"\ntargets = [\"nobody\"]\n";
    for state in [State::Full(0), State::Full(100), State::Unsynced] {
        let data = data();
        let disk = Disk::new(data.path(), STORE);
        let server = disk.server(data.path(), &[]);
        let rules = server.get("/v1/rules");
        assert_eq!(server.get("/health/ready").status, 200);
        disk.set(state);
        // Without targets nothing else is written, so that it is this change alone that meets the failure.
        is_refused(&put_rules(&server, OTHERS), "store_failed");
        is_not_ready(&server, "store_failed");
        assert_eq!(server.get("/v1/rules").body, rules.body, "{state:?}");
        server.signal("-TERM");
        assert_eq!(server.ended().code(), Some(0));

        disk.set(State::Working);
        let server = Server::start(data.path());
        assert_eq!(server.get("/health/ready").status, 200);
        // What was written and not synced may be there.
        let now = server.get("/v1/rules");
        assert!(
            now.body == rules.body || (matches!(state, State::Unsynced) && now.body == OTHERS),
            "{now:?}"
        );
        assert_eq!(put_rules(&server, OTHERS).status, 200);
    }
}

#[test]
fn a_log_that_is_not_written_or_not_synced_acknowledges_nothing_until_it_is_opened_again() {
    for state in [State::Full(0), State::Full(100), State::Unsynced] {
        let data = data();
        let disk = Disk::new(data.path(), LOG);
        let server = disk.server(data.path(), &["--durability", "synced"]);
        let mut member = Socket::joined(server.address, "ada", "notes");
        let ids: Vec<_> = std::iter::repeat_with(Uuid::now_v7).take(7).collect();
        let draft = |n: usize| json!({"kind": "x-note", "id": ids[n], "payload": n});
        let publish = |server: &Server, n| server.post("/v1/documents/notes/events", &draft(n));
        for n in 0..5 {
            assert_eq!(publish(&server, n).status, 201);
        }
        disk.set(state);
        is_refused(&publish(&server, 5), "log_failed");
        is_not_ready(&server, "log_failed");
        // The system reports a failed sync once. A later one that succeeds says nothing about the earlier writes.
        disk.set(State::Working);
        is_refused(&publish(&server, 5), "log_failed");
        is_refused(&publish(&server, 6), "log_failed");
        is_not_ready(&server, "log_failed");
        server.signal("-TERM");
        let mut seen = 0;
        while let Incoming::Message(message) = member.next() {
            seen = seen.max(message[4]["seq"].as_u64().unwrap_or(0));
        }
        assert_eq!(seen, 5, "{state:?}: nobody sees an event that is not durable");
        assert_eq!(server.ended().code(), Some(1), "the log was not closed in order");

        let server = Server::start_with(data.path(), &["--durability", "synced"]);
        assert_eq!(server.get("/health/ready").status, 200);
        let (epoch, kept) = server.history("notes");
        // The event that was refused first may be there.
        assert!(kept.len() == 5 || kept.len() == 6, "{kept:?}");
        for n in [5, 6] {
            let answer = publish(&server, n);
            assert!(matches!(answer.status, 200 | 201), "{answer:?}");
            assert_eq!(answer.json()["seq"], n + 1);
        }
        let (epoch_now, kept) = server.history("notes");
        assert_eq!(epoch, epoch_now);
        let kept: Vec<_> = kept.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kept, ids.iter().map(Uuid::to_string).collect::<Vec<_>>());
    }
}

/// Asserts that a server does not start, with an error that names `directory`.
#[track_caller]
fn does_not_start(command: &mut Command, directory: &str) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::yield_now();
    }
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let names_cause = error.contains("No space left on device") || error.contains("Input/output error");
    assert!(error.contains(directory) && names_cause && !error.contains("damaged"), "{error}");
}

#[test]
fn a_server_does_not_start_on_a_disk_that_fails_and_starts_when_it_works_again() {
    let states = [State::Full(0), State::Full(100), State::Unsynced];
    let new = [LOG, STORE].into_iter().flat_map(|part| states.map(|state| (part, true, state)));
    // A log that was closed in order needs no byte to be opened.
    let existing =
        states.map(|state| (STORE, false, state)).into_iter().chain([(LOG, false, State::Unsynced)]);
    for (part, is_new, state) in new.chain(existing) {
        let data = data();
        let disk = Disk::new(data.path(), part);
        if !is_new {
            let server = disk.server(data.path(), &[]);
            server.publish("notes", &json!({"kind": "x-note", "payload": 1}));
            server.signal("-TERM");
            assert_eq!(server.ended().code(), Some(0));
        }
        disk.set(state);
        does_not_start(&mut disk.serve(data.path(), &[]), part);
        disk.set(State::Working);
        let server = disk.server(data.path(), &[]);
        assert_eq!(server.get("/health/ready").status, 200);
        assert_eq!(server.history("notes").1.len(), usize::from(!is_new));
    }
}

#[test]
fn a_log_that_is_not_synced_at_its_end_says_so_and_keeps_its_events() {
    let data = data();
    let disk = Disk::new(data.path(), LOG);
    let server = disk.server(data.path(), &["--durability", "logged"]);
    server.publish("notes", &json!({"kind": "x-note", "payload": 1}));
    disk.set(State::Unsynced);
    // Events of this durability are not synced one by one.
    server.publish("notes", &json!({"kind": "x-note", "payload": 2}));
    server.signal("-TERM");
    assert_eq!(server.ended().code(), Some(1));
    disk.set(State::Working);
    let server = disk.server(data.path(), &[]);
    let opened = server.get("/health/ready");
    assert_eq!(opened.status, 200);
    assert_eq!(server.history("notes").1.len(), 2);
}

#[test]
fn a_server_stops_on_a_disk_that_hangs_and_says_what_it_gave_up() {
    let given_up = [
        (LOG, &["writing accepted events", "closing the log"][..]),
        (STORE, &["ending deliveries to services"]),
    ];
    for (part, steps) in given_up {
        let data = data();
        let disk = Disk::new(data.path(), part);
        let server = disk.server(data.path(), &["--set", "stop_timeout=2s"]);
        let mut member = Socket::joined(server.address, "ada", "notes");
        server.publish("notes", &json!({"kind": "x-note", "payload": 1}));
        disk.set(State::Hung);
        member.push("x-note", &json!(2));
        server.signal("-TERM");
        for step in steps {
            assert_eq!(server.logged(&format!("\"step\":\"{step}\""))["level"], "WARN");
        }
        assert_eq!(server.logged("\"stopped\"")["complete"], false);
        assert_eq!(server.ended().code(), Some(1));
        disk.set(State::Working);
        let server = Server::start(data.path());
        assert_eq!(server.history("notes").1[0]["payload"], 1);
    }
}

/// Asks for a lock of the whole document, as the user who has it.
fn lock(server: &Server) -> Answer {
    server.post("/v1/documents/notes/locks", &json!({"user": "ada"}))
}

#[test]
fn a_full_disk_under_the_fencing_tokens_refuses_locks_and_gives_no_token_twice() {
    const TOKENS: &str = "fencing-tokens";
    let data = data();
    let disk = Disk::new(data.path(), TOKENS);
    let server = disk.server(data.path(), &[]);
    disk.set(State::Full(10));
    // The tokens that the file names already last for so many requests.
    let token = |answer: &Answer| answer.json()["token"].as_u64().unwrap();
    let mut last = 0;
    let refused = loop {
        let answer = lock(&server);
        if answer.status != 201 {
            break answer;
        }
        last = token(&answer);
    };
    assert_eq!((refused.status, &refused.json()["reason"]), (503, &json!("log_failed")), "{refused:?}");
    // Everything else goes on.
    server.publish("notes", &json!({"kind": "x-note", "payload": 1}));
    assert_eq!(server.get("/health/live").status, 200);
    disk.set(State::Working);
    assert_eq!(lock(&server).status, 201);
    server.kill();
    // The draft of the file that was cut short is no file.
    let server = disk.server(data.path(), &[]);
    assert!(token(&lock(&server)) > last);
    server.kill();

    disk.set(State::Full(0));
    let output = disk.serve(data.path(), &[]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write the fencing tokens' file") && error.contains(TOKENS), "{error}");
}

#[test]
fn without_a_checkpoint_of_the_present_what_a_kill_leaves_open_is_ended_all_the_same() {
    for state in [State::Full(0), State::Full(20), State::Unsynced] {
        let data = data();
        let disk = Disk::new(data.path(), "open-sessions");
        let settings = ["--set", "presence.checkpoint_interval=50ms"];
        let server = disk.server(data.path(), &settings);
        let join = |user: &str| {
            let path = format!("/v1/documents/of-{user}/participants");
            assert_eq!(server.post(&path, &json!({"user": user})).status, 201);
        };
        join("ada");
        let file = data.path().join("open-sessions");
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("ada")) {
            std::thread::yield_now();
        }
        disk.set(state);
        join("ben");
        assert_eq!(server.logged("checkpoint")["level"], "WARN");
        assert_eq!(server.get("/health/ready").status, 200);
        server.kill();
        disk.set(State::Working);
        let server = disk.server(data.path(), &settings);
        server.kill();
        let exported = success(&run(&["log", "export", data.path().to_str().unwrap()]));
        let events = exported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let left: Vec<_> = events.filter(|event| event["kind"] == "user.left").collect();
        assert_eq!(left.len(), 2, "{state:?}: {left:?}");
        assert!(left.iter().all(|event| event["payload"]["reason"] == "crashed"), "{left:?}");
    }
}

#[test]
fn decisions_that_the_disk_does_not_take_are_counted_and_stay_in_memory() {
    let (data, service) = (data(), Service::start());
    let disk = Disk::new(data.path(), "router/decisions");
    let settings = routing(data.path(), &service);
    let mut settings: Vec<_> = settings.iter().map(String::as_str).collect();
    settings.extend(["--set", "router.decisions.disk=true"]);
    let server = disk.server(data.path(), &settings);
    publish_notes(&server, 1..=3);
    server.counted("/router/targets/noter/delivered", &json!(3));
    let files = || std::fs::read_dir(data.path().join("router/decisions")).unwrap().count();
    assert_eq!(files(), 1);
    disk.set(State::Full(50));
    publish_notes(&server, 4..=6);
    assert_eq!(server.logged("decisions cannot be written to disk")["level"], "ERROR");
    server.counted("/router/targets/noter/delivered", &json!(6));
    disk.set(State::Working);
    // Each failure would push an old file out.
    assert_eq!(files(), 1);
    publish_notes(&server, 7..=9);
    server.counted("/router/targets/noter/delivered", &json!(9));
    let decided = |server: &Server| {
        let decisions = server.get("/v1/decisions?outcome=delivered").json();
        decisions.as_array().unwrap().len() as u64
    };
    while decided(&server) < 9 {
        std::thread::yield_now();
    }
    let unwritten = server.get("/v1/stats").json()["router"]["decision_log"]["unwritten"].as_u64().unwrap();
    assert!((1..=3).contains(&unwritten), "{unwritten}");
    assert_eq!(server.get("/health/ready").status, 200);
    server.signal("-TERM");
    assert_eq!(server.ended().code(), Some(0));
    // The files have the others, and a line that was cut short hides none of them.
    let server = Server::start_with(data.path(), &settings);
    assert_eq!(decided(&server), 9 - unwritten);
}
