//! The commands besides `serve`, and the layers of its configuration.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::io::Write;
use std::process::Stdio;

use crate::support::{self, PATIENCE, ReservedAddress, Server, data, failure, lines, relay, run, success};
use serde_json::{Value, json};

#[track_caller]
fn check(line: &str, value: &str, source: &str) {
    assert!(line.contains(&format!(" = {value} ")) && line.ends_with(&format!("# {source}")), "{line}");
}

#[test]
fn flags_go_over_the_environment_over_the_file_over_defaults_and_each_source_is_shown() {
    let data = data();
    std::fs::write(
        data.path().join("relay.toml"),
        "listen = \"127.0.0.1:1\"\ndurability = \"logged\"\n[ws]\nmax_topics = 5\nstale_after = \"90s\"\n",
    )
    .unwrap();
    let shown = relay()
        .args(["config", "--listen", "127.0.0.1:3"])
        .env("RELAY_LISTEN", "127.0.0.1:2")
        .env("RELAY_WS__MAX_TOPICS", "6")
        .current_dir(data.path())
        .output()
        .unwrap();
    let shown = success(&shown);
    let line = |key: &str| shown.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
    check(line("listen"), "\"127.0.0.1:3\"", "flag --listen");
    check(line("ws.max_topics"), "6", "environment RELAY_WS__MAX_TOPICS");
    check(line("ws.stale_after"), "\"90s\"", "file relay.toml");
    check(line("durability"), "\"logged\"", "file relay.toml");
    check(line("stop_timeout"), "\"10s\"", "default");
}

#[test]
fn an_unknown_key_or_a_bad_value_is_one_line_that_names_it() {
    let data = data();
    let file = data.path().join("other.toml");
    let with_file = |text: &str| {
        std::fs::write(&file, text).unwrap();
        failure(&relay().arg("config").arg("--config").arg(&file).output().unwrap())
    };
    assert_eq!(
        with_file("[ws]\nmax_topic = 5"),
        format!(
            "relay: file {}: there is no key `ws.max_topic`; did you mean `ws.max_topics`?",
            file.display()
        )
    );
    assert!(
        with_file("[http]\nbody_timeout = 30").contains("`http.body_timeout` is `30`; it must be a time")
    );
    assert!(with_file("listen =").contains("is not TOML"));
    let unknown = relay().arg("config").env("RELAY_COLOUR", "blue").output().unwrap();
    assert!(failure(&unknown).contains("environment RELAY_COLOUR: there is no key `colour`"));
    assert!(failure(&run(&["config", "--durability", "paper"])).contains("`memory`, `logged`, `synced`"));
    assert!(failure(&run(&["config", "--config", "/no/such/file"])).contains("/no/such/file cannot be read"));
}

#[test]
fn a_configuration_that_a_server_refuses_fails_when_it_is_shown_too() {
    let data = data();
    let file = |name: &str, text: &str| std::fs::write(data.path().join(name), text).unwrap();
    let target = |url: &str| format!("[[targets]]\nname = \"one\"\nurl = \"{url}\"\n");
    file("malformed.toml", "[[rules]]\nname = \"one\"\n");
    file("scheme.toml", &target("ftp://service.example/"));
    file("address.toml", &target("http://127.0.0.1/"));
    file("cert.pem", "no certificate");
    let refused = [
        (&["memory.max_connection_bytes=1000000"][..], "memory.max_connection_bytes"),
        (&["memory.max_address_bytes=2147483648"], "memory.max_address_bytes"),
        (&["bus.max_payload_bytes=8000000"], "log.max_event_bytes"),
        (&["ws.tick=100us"], "ws.tick"),
        // The slots of these queues are allocated at the start.
        (&["log.queue_requests=4294967295"], "log.queue_requests"),
        (&["router.decisions.queue=18446744073709551615"], "router.decisions.queue"),
        (&["locks.default_ttl=2h"], "locks.default_ttl"),
        (&["router.heartbeat_every=20s"], "router.health.heartbeat_every"),
        (&["tls.cert=cert.pem"], "`tls.cert` is given without `tls.key`"),
        (&["tls.cert=cert.pem", "tls.key=cert.pem"], "there is no certificate in cert.pem"),
        (&["router.rules=missing.toml"], "missing.toml cannot be read"),
        (&["router.rules=malformed.toml"], "must name at least one target"),
        (&["router.rules=scheme.toml"], "must begin with `http://`"),
        (&["router.rules=address.toml"], "target `one`"),
    ];
    for (settings, named) in refused {
        let settings: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let run = |command: &str| {
            let all = [&[command, "--listen", "127.0.0.1:0", "--log-format", "json"], &settings[..]].concat();
            relay().args(all).current_dir(data.path()).output().unwrap()
        };
        let shown = run("config");
        let error = failure(&shown);
        assert!(error.contains(named), "{settings:?}: {error}");
        assert_eq!(error, failure(&run("serve")), "{settings:?}");
    }
    // The values are shown all the same.
    let shown = relay().args(["config", "--set", "locks.default_ttl=2h"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("locks.default_ttl = \"2h\""));
    success(&run(&["config", "--durability", "memory"]));
}

#[test]
fn a_server_that_cannot_listen_says_why() {
    let data = data();
    let server = Server::start(data.path());
    let other = support::data();
    let address = server.address.to_string();
    let second = relay()
        .args(["serve", "--durability", "memory", "--listen", &address])
        .current_dir(other.path())
        .output()
        .unwrap();
    assert!(failure(&second).starts_with(&format!("relay: cannot listen at {address}: ")));
    let kept = relay().args(["serve", "--listen", &address]).current_dir(other.path()).output().unwrap();
    assert!(failure(&kept).starts_with(&format!("relay: cannot listen at {address}: ")));
    assert_eq!(
        std::fs::read_dir(other.path()).unwrap().count(),
        0,
        "a start that failed leaves nothing behind"
    );
}

#[test]
fn one_command_follows_the_events_of_another_also_across_a_restart() {
    let data = data();
    let reserved = ReservedAddress::new();
    let server = Server::start_at(data.path(), reserved.address, &[]);
    let url = server.url();
    let ack =
        success(&run(&["publish", "my notes", "x-note", "{\"n\": 1}", "--url", &url, "--actor", "user:ada"]));
    assert_eq!(serde_json::from_str::<Value>(&ack).unwrap()["seq"], 1);

    let mut tail = relay()
        .args(["tail", "my notes", "--after-seq", "0", "--json", "--url", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let followed = lines(tail.stdout.take().unwrap());
    let next = || serde_json::from_str::<Value>(&followed.recv_timeout(PATIENCE).unwrap()).unwrap();
    assert_eq!(next()["actor"], "user:ada");
    server.kill();

    let server = Server::start_at(data.path(), reserved.address, &[]);
    let mut publish = relay();
    publish
        .args(["publish", "my notes", "x-note", "-", "--url", &url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut publish = publish.spawn().unwrap();
    publish.stdin.take().unwrap().write_all(b"{\"n\": 2}").unwrap();
    assert!(publish.wait().unwrap().success());
    let event = next();
    assert_eq!((&event["seq"], &event["payload"]), (&json!(2), &json!({"n": 2})));
    tail.kill().unwrap();
    tail.wait().unwrap();
    drop(server);
}

#[test]
fn a_refused_or_impossible_publish_says_why_and_fails() {
    let data = data();
    let server = Server::start(data.path());
    let publish = |kind: &str, payload: &str| {
        failure(&run(&["publish", "notes", kind, payload, "--url", &server.url()]))
    };
    assert!(
        publish("no.such.kind", "1")
            .starts_with("relay: unknown_event: there is no event kind `no.such.kind`")
    );
    assert!(publish("x-note", "{").starts_with("relay: the payload `{` is not JSON"));
    let nobody = failure(&run(&["publish", "notes", "x-note", "1", "--url", "http://127.0.0.1:1"]));
    assert!(nobody.starts_with("relay: cannot reach http://127.0.0.1:1; is `relay serve` running there?"));
    assert!(
        failure(&run(&["tail", "notes", "--url", "ftp://x"]))
            .contains("must be of the form http://host:port")
    );
}

#[test]
fn a_stopped_servers_log_can_be_checked_and_exported_and_an_open_one_is_left_alone() {
    let data = data();
    let server = Server::start(data.path());
    server.publish("notes", &json!([{"kind": "x-note", "payload": 1}, {"kind": "x-note", "payload": 2}]));
    let directory = data.path().to_str().unwrap();
    assert!(failure(&run(&["log", "check", directory])).contains("open"));
    server.signal("-TERM");
    assert!(server.ended().success());

    let checked = success(&run(&["log", "check", directory]));
    assert!(
        checked.starts_with("2 events of 1 document,") && checked.contains("the log is whole"),
        "{checked}"
    );
    let exported = success(&run(&["log", "export", directory]));
    let payloads: Vec<Value> = exported
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["payload"].clone())
        .collect();
    assert_eq!(payloads, [1, 2]);
    assert!(failure(&run(&["log", "check", "/no/such/log"])).contains("/no/such/log"));
}
