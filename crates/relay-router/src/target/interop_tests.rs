//! Deliveries to the unmodified Python packages `standardwebhooks` and `cloudevents`, in a server of their
//! own. Without Python the test is skipped with a message, but not in CI.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use relay_core::{Delivery, DocumentId, Draft, Epoch, Event, Payload, Seq, SystemClock, Target, Timestamp};
use serde_json::{Value, json};

use super::{HttpTarget, HttpTargetConfig, Outbound, OutboundPolicy};
use crate::rules::DeliveryFormat;

const PACKAGES: [&str; 2] = ["standardwebhooks==1.1.0", "cloudevents==2.2.0"];
const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// The receiver, which prints the deliveries it decodes. Killed when dropped.
struct Receiver {
    child: Child,
    printed: BufReader<std::process::ChildStdout>,
    url: String,
}

impl Receiver {
    fn start(python: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/target/interop_tests/receiver.py");
        let mut command = Command::new(python);
        let mut child = command.args([script, NEW, OLD]).stdout(Stdio::piped()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        printed.read_line(&mut port).unwrap();
        Self { child, printed, url: format!("http://127.0.0.1:{}/events", port.trim()) }
    }

    fn understood(&mut self) -> Value {
        let mut line = String::new();
        self.printed.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python() -> Option<PathBuf> {
    let skip = |why: &str| {
        assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1"), "{why}");
        eprintln!("skipped: {why}; to install it: apt-get install python3-pip python3-venv");
        None
    };
    let worked = |output: std::io::Result<Output>| output.is_ok_and(|output| output.status.success());
    // The test runs from `<target>/<profile>/deps`; `<target>/tmp` is the directory that Cargo has for tests.
    let program = std::env::current_exe().unwrap();
    let environment = program.ancestors().nth(3).unwrap().join("tmp/interop");
    let python = environment.join("bin/python");
    if worked(Command::new(&python).args(["-c", "import standardwebhooks, cloudevents"]).output()) {
        return Some(python);
    }
    if !worked(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment).output()) {
        return skip("python3 with venv is not installed");
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
    if worked(pip.output()) { Some(python) } else { skip("pip cannot install the packages") }
}

fn event(n: u64) -> Arc<Event> {
    let payload = Payload::json(&json!({"n": n, "text": "schön, \"quoted\" – and more"})).unwrap();
    let document = DocumentId::new("my notes/ä").unwrap();
    let draft = Draft::new(document, relay_events::kind("x-note").unwrap(), payload);
    Arc::new(draft.into_event(Epoch::from_u64(7), Some(Seq::new(n)), Timestamp::UNIX_EPOCH))
}

async fn deliver(url: &str, format: DeliveryFormat, secrets: &[&str], events: &[Arc<Event>]) {
    let policy =
        OutboundPolicy { allow_networks: vec!["127.0.0.0/8".parse().unwrap()], ..OutboundPolicy::default() };
    let config = HttpTargetConfig {
        url: url.to_owned(),
        format,
        secrets: secrets.iter().map(|secret| (*secret).to_owned()).collect(),
        ..HttpTargetConfig::default()
    };
    let clock = Arc::new(SystemClock::new());
    let target = HttpTarget::new(config, Outbound::new(policy).unwrap(), clock).unwrap();
    target.deliver(Delivery::new(events.to_vec())).await.unwrap();
}

#[tokio::test]
async fn others_verify_the_signatures_and_read_the_events_in_all_three_forms() {
    let Some(python) = python() else { return };
    let mut receiver = Receiver::start(&python);
    let url = receiver.url.clone();
    let events = [event(1), event(2)];
    for (format, count) in
        [(DeliveryFormat::Structured, 1), (DeliveryFormat::Binary, 1), (DeliveryFormat::Batch, 2)]
    {
        deliver(&url, format, &[NEW, OLD], &events[..count]).await;
        let understood = receiver.understood();
        // During a rotation the receivers of both secrets verify the delivery.
        assert_eq!(understood["verified"], json!([true, true]), "{format:?}");
        assert_eq!(understood["forged"], false);
        let read = understood["events"].as_array().unwrap();
        assert_eq!(read.len(), count);
        for (read, event) in read.iter().zip(&events) {
            assert_eq!(read["id"], event.id.to_string());
            assert_eq!(read["type"], "x-note");
            assert_eq!(read["data"]["text"], "schön, \"quoted\" – and more");
            assert_eq!(read["data"]["n"], event.seq.unwrap().get());
            // The text sorts as the numbers do.
            assert_eq!(read["sequence"].as_str().unwrap().len(), 20);
        }
        if count == 1 {
            assert_eq!(understood["webhook_id"], events[0].id.to_string());
        }
    }
    deliver(&url, DeliveryFormat::Structured, &[OLD], &events[..1]).await;
    assert_eq!(receiver.understood()["verified"], json!([false, true]));
}
