//! A log that nobody reads: the server goes on, and stops when it is told to.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{PATIENCE, ReservedAddress, relay, request, wait};

/// A server that logs everything, to a pipe. Its standard error is another one.
struct Server {
    child: Child,
    reserved: ReservedAddress,
    _data: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let (reserved, data) = (ReservedAddress::new(), tempfile::tempdir().unwrap());
        let mut command = relay();
        command.args(["serve", "--listen", &reserved.address.to_string(), "--data-dir"]).arg(data.path());
        command.env("RELAY_LOG_FILTER", "trace").current_dir(data.path());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let server = Self { child, reserved, _data: data };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(server.reserved.address).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::yield_now();
        }
        server
    }

    fn dropped_lines(&self) -> u64 {
        let stats = request(self.reserved.address, "GET", "/v1/stats", &[], b"").json();
        stats["drops"]["log_line"].as_u64().unwrap()
    }

    /// Publishes until the server has dropped lines of its log, and further on.
    fn publish_until_lines_are_dropped(&self) {
        // Each publish writes more than a kilobyte of lines, and a few megabytes wait at most.
        const MOST: u64 = 20_000;
        let mut published = 0;
        let mut publish = || {
            published += 1;
            assert!(published < MOST, "no line of the log was dropped");
            let body = json!({"kind": "x-note", "payload": published}).to_string();
            let headers = [("content-type", "application/json")];
            let path = "/v1/documents/doc/events";
            let answer = request(self.reserved.address, "POST", path, &headers, body.as_bytes());
            assert_eq!((answer.status, &answer.json()["seq"]), (201, &Value::from(published)), "{answer:?}");
        };
        while self.dropped_lines() == 0 {
            (0..32).for_each(|_| publish());
        }
        (0..10).for_each(|_| publish());
        assert_eq!(request(self.reserved.address, "GET", "/health/ready", &[], b"").status, 200);
    }

    /// Stops the server in order.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert_eq!(wait(&mut self.child).code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_whose_output_nobody_reads_goes_on_and_stops_in_order() {
    let server = Server::start();
    server.publish_until_lines_are_dropped();
    server.stop();
}

#[test]
fn a_server_whose_output_is_closed_goes_on_and_stops_in_order() {
    let mut server = Server::start();
    drop((server.child.stdout.take(), server.child.stderr.take()));
    server.publish_until_lines_are_dropped();
    server.stop();
}
