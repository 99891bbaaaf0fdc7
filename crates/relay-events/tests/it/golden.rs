//! Records of every version can be read by every later one.
//!
//! Each `.hex` file in `tests/golden` is a record as its version wrote it, as hexadecimal text; the `.json` file beside it
//! is the same event's JSON envelope. Files may be added and never changed, since logs with such records exist. The
//! environment variable `RELAY_WRITE_GOLDEN=1` writes the missing files and leaves the existing ones.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use relay_core::{
    Actor, DeliveryClass, DocumentId, Draft, Epoch, Event, EventId, JsonText, Kind, Metadata, Payload, Seq,
    ServiceName, SessionId, Timestamp, TraceContext, UserId,
};
use relay_events::{Body, binary, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn draft(kind: Kind, payload: Payload) -> Draft {
    Draft::new(DocumentId::new("reports/2026 — Größe").unwrap(), kind, payload)
        .id(EventId::from_u128(0x0199_c9a2_6a51_7cc0_8f3e_2b7d_5c6f_1a90))
}

fn at(draft: Draft, seq: Option<u64>) -> Event {
    let time = Timestamp::from_micros(1_767_323_045_000_006);
    draft.into_event(Epoch::from_u64(0x00c0_ffee_00c0_ffee), seq.map(Seq::new), time)
}

/// The events of the records of version 1.
fn version_1() -> Vec<(String, Event)> {
    let text =
        |json: &'static str| Payload::Json(JsonText::parse(Bytes::from_static(json.as_bytes())).unwrap());
    let edit = text(r#"{"patches":[[0,0,"h"],[1,2,"é"]],"base":6}"#);
    let mut metadata = Metadata::default();
    metadata.insert("lang", "de").unwrap();
    metadata.insert("source", "import").unwrap();
    let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("a=1,b=2"))
        .unwrap();
    let full = draft(relay_events::DOCUMENT_EDITED, edit)
        .actor(Actor::User(UserId::new("ada").unwrap()))
        .session(SessionId::from_u128(7))
        .ttl(Duration::from_secs(30))
        .trace(trace)
        .metadata(metadata);
    let binary =
        draft(relay_events::DOCUMENT_EDITED, Payload::Binary(Bytes::from_static(&[0, 1, 2, 253, 254, 255])))
            .actor(Actor::Service(ServiceName::new("stitch").unwrap()));
    let cursor = draft(relay_events::CURSOR_MOVED, text(r#"{"position":7}"#)).key("connection 1");
    let forgotten = Kind::new("document.exploded", DeliveryClass::Sequenced).unwrap();
    let mut records = vec![
        ("v1-every-field".to_owned(), at(full, Some(7))),
        ("v1-binary-payload".to_owned(), at(binary, Some(u64::MAX))),
        ("v1-ephemeral".to_owned(), at(cursor, None)),
        (
            "v1-custom-kind".to_owned(),
            at(draft(relay_events::kind("x-note").unwrap(), text("null")), Some(1)),
        ),
        ("v1-unknown-kind".to_owned(), at(draft(forgotten, text("[1, 2]")), Some(250))),
    ];
    for (kind, json) in PAYLOADS_1 {
        let kind = relay_events::kind(kind).unwrap();
        let name = format!("v1-{kind}");
        // Every kind that was stored had a seq at the time. Such events stay sequenced, also those of kinds that are logged now.
        let (kind, seq) = match kind.class() {
            DeliveryClass::Ephemeral => (kind, None),
            _ => (Kind::new(kind.as_str(), DeliveryClass::Sequenced).unwrap(), Some(9)),
        };
        records.push((name, at(draft(kind, text(json)), seq)));
    }
    for (name, kind, json) in [
        ("v1-logged", relay_events::USER_JOINED, r#"{"user":"ada"}"#),
        ("v1-logged-unknown-kind", Kind::new("user.waved", DeliveryClass::Logged).unwrap(), "1"),
    ] {
        records.push((name.to_owned(), at(draft(kind, text(json)), None)));
    }
    records
}

/// The payloads of each kind at the time of version 1. They must never change, as the files.
const PAYLOADS_1: &[(&str, &str)] = &[
    ("session.started", r#"{"started_at":"2026-01-02T03:04:05Z"}"#),
    ("session.ended", r#"{"reason":"stale"}"#),
    ("user.joined", r#"{"user":"ada","name":"Ada"}"#),
    ("user.left", r#"{"user":"ada","reason":"left"}"#),
    ("presence.updated", r#"{"state":{"typing":true}}"#),
    ("cursor.moved", r#"{"position":7,"anchor":{"path":[1,2]}}"#),
    ("document.edited", r#"{"format":"quill-delta","change":{"ops":[{"retain":3}]}}"#),
    ("document.saved", r#"{"through":42,"revision":"r1"}"#),
    ("document.locked", r#"{"holder":"ada","token":9,"expires_at":"2026-01-02T03:04:05Z","region":"intro"}"#),
    ("document.unlocked", r#"{"holder":"ada","token":9,"reason":"expired"}"#),
    ("annotation.added", r#"{"annotation":"a1","text":"why?","range":[3,9],"tags":["question"]}"#),
    ("annotation.resolved", r#"{"annotation":"a1","resolution":"accepted"}"#),
    ("service.changed", r#"{"service":"sift","state":"degraded","reason":"slow"}"#),
    ("system.notice", r#"{"level":"warning","code":"reconnect","message":"come back"}"#),
];

#[test]
fn the_records_on_the_disk_are_read_as_what_they_were() {
    if std::env::var_os("RELAY_WRITE_GOLDEN").is_some() {
        for (name, event) in version_1() {
            let path = folder().join(format!("{name}.hex"));
            if !path.exists() {
                fs::write(path, hex(&binary::encode(&event))).unwrap();
                fs::write(folder().join(format!("{name}.json")), json::encode(&event)).unwrap();
            }
        }
    }
    let expected = version_1();
    assert!(expected.len() >= 5);
    for (name, event) in expected {
        let record = unhex(&fs::read_to_string(folder().join(format!("{name}.hex"))).unwrap());
        let decoded = binary::decode(&record).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decoded, event, "{name}");
        let envelope = fs::read(folder().join(format!("{name}.json"))).unwrap();
        assert_eq!(json::encode(&decoded), envelope, "{name}");
        assert_eq!(decoded.kind.class(), event.kind.class(), "{name}");
        if !name.ends_with("unknown-kind") {
            Body::of(&decoded).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// A file that is not listed would be a record that no test reads.
#[test]
fn every_golden_file_is_read() {
    let known: Vec<String> =
        version_1().iter().flat_map(|(name, _)| [format!("{name}.hex"), format!("{name}.json")]).collect();
    for file in fs::read_dir(folder()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "{name} is not read by this test");
    }
}
