//! What each kind carries, and what it refuses.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod support;

use bytes::Bytes;
use relay_core::{DocumentId, JsonText, Payload};
use relay_events::{Body, KINDS, PayloadError, cloudevents, json};
use support::PAYLOADS;

fn parse(kind: &str, json: &str) -> Result<Body, PayloadError> {
    let payload = Payload::Json(JsonText::parse(Bytes::copy_from_slice(json.as_bytes())).unwrap());
    Body::parse(&relay_events::kind(kind)?, &payload)
}

#[test]
fn every_kind_takes_its_payload_and_gives_it_back() {
    assert_eq!(KINDS.len(), PAYLOADS.len(), "each kind of the vocabulary has its example");
    for (kind, json) in PAYLOADS {
        parse(kind, json).unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}

#[test]
fn fields_that_are_not_known_are_passed_over() {
    for (kind, json) in PAYLOADS {
        let more = format!("{}, \"from_the_future\": 1}}", json.strip_suffix('}').unwrap());
        assert!(parse(kind, &more).is_ok(), "{kind}: {more}");
    }
}

#[test]
fn a_payload_that_does_not_fit_is_refused_with_what_is_wrong() {
    #[rustfmt::skip]
    let wrong = [
        ("session.started", r"{}", "started_at"),
        ("session.started", r#"{"started_at": "yesterday"}"#, "RFC 3339"),
        ("session.ended", r#"{"reason": "boredom"}"#, "boredom"),
        ("user.joined", r#"{"name": "Ada"}"#, "user"),
        ("user.left", r#"{"user": "ada"}"#, "reason"),
        ("presence.updated", r#"{"state": 7}"#, "expected a map"),
        ("cursor.moved", r#"{"position": null}"#, "position"),
        ("document.edited", r#"{"patches": [[0, -1, "x"]]}"#, "patches"),
        ("document.edited", r#"{"text": "x"}"#, "patches"),
        ("document.saved", r#"{"through": "all"}"#, "expected u64"),
        ("document.locked", r#"{"holder": "ada", "token": 1}"#, "expires_at"),
        ("document.unlocked", r#"{"holder": "ada", "token": 1, "reason": "whim"}"#, "whim"),
        ("annotation.added", r#"{"annotation": "a"}"#, "text"),
        ("annotation.resolved", r"[]", "annotation"),
        ("service.changed", r#"{"service": "sift", "state": "sleepy"}"#, "sleepy"),
        ("system.notice", r#"{"level": "loud", "code": "c", "message": "m"}"#, "loud"),
    ];
    for (kind, json, mention) in wrong {
        let error = parse(kind, json).expect_err(kind);
        assert_eq!(error.code(), "invalid_payload", "{kind}");
        let message = error.to_string();
        assert!(message.contains(kind) && message.contains(mention), "{kind}: {message}");
    }
}

#[test]
fn binary_payloads_fit_edits_and_kinds_of_ones_own_alone() {
    let bytes = Payload::Binary(Bytes::from_static(b"\0\x01"));
    for kind in KINDS {
        assert_eq!(Body::parse(kind, &bytes).is_ok(), kind.as_str() == "document.edited", "{kind}");
    }
    assert!(Body::parse(&relay_events::kind("x-update").unwrap(), &bytes).is_ok());
}

#[test]
fn names_outside_the_vocabulary_are_refused() {
    for name in ["", "document.exploded", "X-note", "x-Note", "x-ü", &format!("x-{}", "n".repeat(63))] {
        let error = relay_events::kind(name).expect_err(name);
        assert_eq!(error.code(), "unknown_event", "{name}");
    }
    assert!(relay_events::kind(&format!("x-{}", "n".repeat(62))).is_ok());
}

#[test]
fn a_draft_that_is_malformed_is_refused_by_what_is_wrong() {
    let long = format!(r#"{{"kind": "x-a", "payload": 1, "key": "{}"}}"#, "k".repeat(257));
    #[rustfmt::skip]
    let wrong = [
        (r#"{"kind": "x-a", "payload": 1, "colour": 2}"#, "invalid_request", "colour"),
        (r#"{"kind": "x-a"}"#, "invalid_request", "payload"),
        (r#"{"payload": 1}"#, "invalid_request", "kind"),
        (r#"{"kind": "x-a", "payload": 1, "payload_base64": "AA=="}"#, "invalid_request", "exclude"),
        (r#"{"kind": "x-a", "payload_base64": "~"}"#, "invalid_request", "base64"),
        (r#"{"kind": "x-a", "payload": 1, "id": "7"}"#, "invalid_request", "UUID"),
        (r#"{"kind": "x-a", "payload": 1, "actor": "ada"}"#, "invalid_request", "actor"),
        (r#"{"kind": "x-a", "payload": 1, "traceparent": "00-1-2-3"}"#, "invalid_request", "traceparent"),
        (r#"{"kind": "document.exploded", "payload": 1}"#, "unknown_event", "document.exploded"),
        (r#"{"kind": "document.saved", "payload": 1}"#, "invalid_payload", "document.saved"),
        (&long, "invalid_request", "256"),
        ("[", "invalid_request", "EOF"),
    ];
    let document = DocumentId::new("doc").unwrap();
    for (json, code, mention) in wrong {
        let error = json::decode_draft(&document, json.as_bytes()).expect_err(json);
        assert_eq!(error.code(), code, "{json}");
        assert!(error.to_string().contains(mention), "{json}: {error}");
    }
}

#[test]
fn a_null_payload_is_a_payload() {
    let document = DocumentId::new("doc").unwrap();
    let draft = json::decode_draft(&document, br#"{"kind": "x-a", "payload": null}"#).unwrap();
    assert_eq!(draft.payload, Payload::json(&()).unwrap());
}

#[test]
fn a_foreign_cloud_event_becomes_a_draft_with_an_id_of_its_own() {
    let document = DocumentId::new("doc").unwrap();
    let of = |source: &str, id: &str| {
        let json = format!(
            r#"{{"specversion": "1.0", "source": "{source}", "id": "{id}", "type": "x-checked", "subject": "s", "data": 1}}"#
        );
        cloudevents::decode_draft(&document, json.as_bytes()).unwrap()
    };
    let draft = of("/a", "1");
    assert_eq!(draft.metadata.get("cloudevents.source"), Some("/a"));
    assert_eq!(draft.id, of("/a", "1").id, "sent again, it is the same");
    assert_ne!(draft.id, of("/a", "2").id);
    assert_ne!(draft.id, of("/b", "1").id, "another producer's is another");
    #[rustfmt::skip]
    let wrong = [
        (r#"{"specversion": "0.3", "source": "/a", "id": "1", "type": "x-a", "data": 1}"#, "0.3"),
        (r#"{"specversion": "1.0", "source": "/a", "id": "", "type": "x-a", "data": 1}"#, "empty"),
        (r#"{"specversion": "1.0", "source": "/a", "id": "1", "type": "x-a"}"#, "data"),
        (r#"{"specversion": "1.0", "id": "1", "type": "x-a", "data": 1}"#, "source"),
        (r#"{"specversion": "1.0", "source": "/a", "id": "1", "type": "x-a", "data": 1, "relayttlms": "soon"}"#, "relayttlms"),
    ];
    for (json, mention) in wrong {
        let error = cloudevents::decode_draft(&document, json.as_bytes()).expect_err(json).to_string();
        assert!(error.contains(mention), "{json}: {error}");
    }
}
