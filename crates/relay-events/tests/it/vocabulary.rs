//! The payloads that each kind accepts, and those that it refuses.

use bytes::Bytes;
use relay_core::testing::vocabulary_suite;
use relay_core::{DeliveryClass, DocumentId, Draft, JsonText, LockScope, Payload};
use relay_events::{
    Body, DocumentEdited, KINDS, PayloadError, RelayVocabulary, TypedPayload, cloudevents, json,
};

use crate::support::PAYLOADS;

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
fn the_vocabulary_passes_the_suite() {
    let draft = |kind: &str, json: &str, region: Option<&str>| {
        let payload = Payload::Json(JsonText::parse(Bytes::copy_from_slice(json.as_bytes())).unwrap());
        let mut draft =
            Draft::new(DocumentId::new("notes").unwrap(), relay_events::kind(kind).unwrap(), payload);
        if let Some(region) = region {
            draft.metadata.insert(LockScope::REGION_KEY, region).unwrap();
        }
        draft
    };
    let edit = r#"{"patches": [[0, 0, "h"]]}"#;
    let admitted = [
        draft("document.edited", edit, None),
        draft("document.edited", r#"{"format": "quill-delta", "change": []}"#, Some("intro")),
        draft("document.saved", r#"{"through": 42}"#, None),
        draft("document.saved", r#"{"through": 43}"#, None),
        draft("cursor.moved", r#"{"position": 7}"#, None),
        draft("x-note", "7", None),
    ];
    let refused = [
        draft("document.edited", edit, Some("")),
        draft("document.edited", "{}", None),
        draft("document.saved", r#"{"through": "all"}"#, None),
        draft("user.joined", r#"{"user": "ada"}"#, None),
        draft("x-note", &("[".repeat(100) + &"]".repeat(100)), None),
    ];
    vocabulary_suite(&RelayVocabulary, &admitted, &refused);
}

#[test]
fn metadata_of_the_server_is_refused_but_for_the_causes_of_services() {
    let draft = |actor: &str, key: &str| {
        let mut draft = Draft::new(
            DocumentId::new("notes").unwrap(),
            relay_events::kind("x-note").unwrap(),
            Payload::json(&7).unwrap(),
        );
        draft.actor = actor.parse().unwrap();
        draft.metadata.insert(key, "quality").unwrap();
        relay_events::check(draft)
    };
    for actor in ["user:ada", "system"] {
        let error = draft(actor, "relay.causes").unwrap_err();
        assert_eq!(error.code().as_str(), "invalid_request");
        assert!(error.to_string().contains("`relay.causes`"), "{error}");
        assert!(draft(actor, "relaycauses").is_ok());
    }
    assert!(draft("service:sift", "relay.causes").is_ok());
    for key in ["relay.", "relay.cause", "relay.causes2", "relay.priority"] {
        assert!(draft("service:sift", key).unwrap_err().to_string().contains(&format!("`{key}`")));
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
        ("presence.updated", r#"{"state": 7}"#, "`state`: "),
        ("cursor.moved", r#"{"position": null}"#, "position"),
        ("document.edited", r#"{"patches": [[0, 0, "h"], [0, -1, "x"]]}"#, "`patches[1][1]`: "),
        ("document.edited", r#"{"patches": [[0, 0]]}"#, "patches[0]"),
        ("document.edited", r#"{"format": "quill-delta"}"#, "change"),
        ("document.edited", r#"{"format": 7, "change": []}"#, "`format`: "),
        ("document.edited", r#"{"text": "x"}"#, "patches"),
        ("document.saved", r#"{"through": "all"}"#, "`through`: "),
        ("document.locked", r#"{"holder": "ada", "token": 1}"#, "expires_at"),
        ("document.unlocked", r#"{"holder": "ada", "token": 1, "reason": "whim"}"#, "whim"),
        ("annotation.added", r#"{"annotation": "a"}"#, "text"),
        ("annotation.resolved", r"[]", "annotation"),
        ("service.changed", r#"{"service": "sift", "state": "sleepy"}"#, "sleepy"),
        ("system.notice", r#"{"level": "loud", "code": "c", "message": "m"}"#, "loud"),
        ("system.notice", r#"{"level": "info", "code": 1e400, "message": "m"}"#, "number out of range"),
        ("user.joined", r#"{"user": "a", "user": "b"}"#, "duplicate field `user`"),
    ];
    for (kind, json, mention) in wrong {
        let error = parse(kind, json).expect_err(kind);
        assert_eq!(error.code().as_str(), "invalid_payload", "{kind}");
        let message = error.to_string();
        assert!(message.contains(kind) && message.contains(mention), "{kind}: {message}");
    }
}

#[test]
fn an_edit_may_be_a_change_that_only_clients_understand() {
    let change = |json: &str| DocumentEdited::Other {
        format: "quill-delta".to_owned(),
        change: serde_json::from_str(json).unwrap(),
    };
    for json in [r#"{"ops": [{"retain": 3}]}"#, "null"] {
        let payload = format!(r#"{{"format": "quill-delta", "change": {json}}}"#);
        assert_eq!(parse("document.edited", &payload).unwrap(), Body::DocumentEdited(change(json)));
        let written = change(json).to_payload().unwrap();
        assert_eq!(Body::parse(&DocumentEdited::KIND, &written).unwrap(), Body::DocumentEdited(change(json)));
    }
}

#[test]
fn a_payload_may_be_64_levels_deep_and_not_one_more() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let check = |json: String| {
        let payload = Payload::Json(JsonText::parse(json.into()).unwrap());
        let document = DocumentId::new("notes").unwrap();
        relay_events::check(Draft::new(document, relay_events::kind("x-a").unwrap(), payload))
    };
    assert!(check(nested(64)).is_ok());
    assert!(check(nested(65)).unwrap_err().to_string().contains("64 levels"));
    assert!(check(nested(100_000)).is_err());
    // Many arrays in a row are not deep, and brackets in texts open nothing.
    assert!(check(format!("[{}0]", "[[]],".repeat(1000))).is_ok());
    assert!(check(format!(r#"{{"\\\"{}": "{}"}}"#, "[".repeat(100), "{".repeat(100))).is_ok());
}

#[test]
fn an_error_says_no_more_than_its_reader_can_read() {
    let long = "x".repeat(1_000_000);
    let document = DocumentId::new("doc").unwrap();
    for draft in [
        format!(r#"{{"kind": "user.left", "payload": {{"user": "ada", "reason": "{long}"}}}}"#),
        format!(r#"{{"kind": "presence.updated", "payload": {{"state": {{"{long}": 1e999}}}}}}"#),
        format!(r#"{{"kind": "x-a", "payload": 1, "{long}": 1}}"#),
        format!(r#"{{"kind": "{long}", "payload": 1}}"#),
        format!(r#"{{"kind": "x-a", "payload": 1, "ttl_ms": "{long}"}}"#),
    ] {
        let message = json::decode_draft(&document, draft.as_bytes()).unwrap_err().to_string();
        assert!(message.len() < 1000, "{} bytes", message.len());
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
        assert_eq!(error.code().as_str(), "unknown_event", "{name}");
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
        (r#"{"kind": 7, "payload": 1}"#, "invalid_request", "`kind`: "),
        (r#"{"kind": "x-a", "payload": 1, "ttl_ms": -1}"#, "invalid_request", "`ttl_ms`: "),
        (r#"{"kind": "x-a", "payload": 1, "metadata": {"a": 1}}"#, "invalid_request", "`metadata.a`: "),
        (r#"{"kind": "x-a", "kind": "x-b", "payload": 1}"#, "invalid_request", "duplicate field `kind`"),
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
        assert_eq!(error.code().as_str(), code, "{json}");
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
    assert_ne!(of("/a 1", "2").id, of("/a", "1 2").id, "however their names are cut");
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

#[test]
fn what_a_foreign_producer_says_for_others_stops_no_draft() {
    let document = DocumentId::new("doc").unwrap();
    let json = br#"{"specversion": "1.0", "source": "/a", "id": "1", "type": "x-a", "data": 1,
        "time": "0001-01-01T00:00:00Z", "sequence": 7, "subject": "s", "dataschema": "/x", "other": {"a": [1]}}"#;
    assert!(cloudevents::decode_draft(&document, json).is_ok());
}

#[test]
fn a_draft_chooses_no_session() {
    let document = DocumentId::new("doc").unwrap();
    let event = br#"{"specversion": "1.0", "source": "/a", "id": "1", "type": "x-a", "data": 1,
        "relaysession": "01a20a5d-9132-77ee-92fe-83d1f6e38e50"}"#;
    assert_eq!(cloudevents::decode_draft(&document, event).unwrap().session, None);
    assert!(json::decode_draft(&document, br#"{"kind": "x-a", "payload": 1, "session": "s"}"#).is_err());
}

#[test]
fn a_foreign_cloud_event_in_headers_becomes_the_same_draft_as_in_json() {
    let document = DocumentId::new("doc").unwrap();
    let of = |more: &[(&'static str, &'static str)], body: &'static str| {
        let mut headers =
            vec![("ce-specversion", "1.0"), ("Ce-Id", "1"), ("ce-source", "/a"), ("ce-type", "x-a")];
        headers.extend(more.iter().copied());
        cloudevents::http::decode_draft(&document, headers, body.into())
    };
    let json = br#"{"specversion": "1.0", "source": "/a", "id": "1", "type": "x-a", "data": {"a": 1}}"#;
    let expected = cloudevents::decode_draft(&document, json).unwrap();
    let draft =
        of(&[("host", "x"), ("Content-Type", "application/json; charset=utf-8")], r#"{"a": 1}"#).unwrap();
    assert_eq!((draft.id, &draft.metadata), (expected.id, &expected.metadata));
    assert_eq!(draft.payload, expected.payload);

    let binary =
        of(&[("content-type", "application/octet-stream"), ("ce-data", "no attribute")], "[").unwrap();
    assert_eq!(binary.payload, Payload::Binary(Bytes::from_static(b"[")));
    let quoted = of(&[("ce-relaykey", r#""a \"b\" %E2%82%AC""#)], "1").unwrap();
    assert_eq!(quoted.key.as_deref(), Some("a \"b\" €"));

    let wrong = [
        (of(&[], "["), "body"),
        (of(&[("ce-id", "2")], "1"), "duplicate field `id`"),
        (of(&[("ce-relaykey", "%ff")], "1"), "ce-relaykey"),
        (of(&[("ce-relayactor", "ada")], "1"), "actor"),
        (cloudevents::http::decode_draft(&document, [("ce-id", "1")], "1".into()), "specversion"),
    ];
    for (result, mention) in wrong {
        let error = result.expect_err(mention).to_string();
        assert!(error.contains(mention), "{mention}: {error}");
    }
}

#[test]
fn an_event_of_another_vocabulary_is_read_as_it_is() {
    let event = |kind: &str, seq: &str| {
        let json = format!(
            r#"{{"id": "0199c9a2-6a51-7cc0-8f3e-2b7d5c6f1a90", "document": "notes", "kind": "{kind}", {seq}
                "epoch": "00c0ffee00c0ffee", "time": "2026-01-02T03:04:05Z", "actor": "system", "payload": 1}}"#
        );
        json::decode(json.as_bytes())
    };
    // The positions of an event decide, even where this vocabulary has another class.
    for kind in ["document.exploded", "document.edited", "cursor.moved", "x-a"] {
        let class = |positions| event(kind, positions).unwrap().kind.class();
        assert_eq!(class(r#""seq": 7, "offset": 9,"#), DeliveryClass::Sequenced, "{kind}");
        assert_eq!(class(r#""seq": 7,"#), DeliveryClass::Sequenced, "{kind}");
        assert_eq!(class(r#""offset": 9,"#), DeliveryClass::Logged, "{kind}");
        assert_eq!(class(""), DeliveryClass::Ephemeral, "{kind}");
    }
    assert!(event("Document Exploded", "").is_err());
}
