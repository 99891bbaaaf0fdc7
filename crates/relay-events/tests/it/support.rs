//! Strategies for events of every kind and form.

use std::time::Duration;

use proptest::prelude::*;
use relay_core::{
    Actor, DocumentId, Draft, Epoch, Event, EventId, JsonText, Kind, Metadata, Offset, Payload, Seq,
    ServiceName, SessionId, Timestamp, TraceContext, UserId,
};
use serde_json::{Value, json};

/// A payload of each kind of the vocabulary.
pub(crate) const PAYLOADS: &[(&str, &str)] = &[
    ("session.started", r#"{"started_at": "2026-01-02T03:04:05Z"}"#),
    ("session.ended", r#"{"reason": "stale"}"#),
    ("user.joined", r#"{"user": "ada", "name": "Ada"}"#),
    ("user.left", r#"{"user": "ada", "reason": "left"}"#),
    ("presence.updated", r##"{"state": {"colour": "#ff0000", "typing": true}}"##),
    ("cursor.moved", r#"{"position": 7, "anchor": {"path": [1, 2]}}"#),
    ("document.edited", r#"{"patches": [[0, 2, "é"], [1, 0, "\n"]], "base": 41}"#),
    ("document.saved", r#"{"through": 42, "revision": "r1"}"#),
    (
        "document.locked",
        r#"{"holder": "ada", "token": 9, "expires_at": "2026-01-02T03:04:05Z", "region": "intro"}"#,
    ),
    ("document.unlocked", r#"{"holder": "ada", "token": 9, "reason": "expired"}"#),
    ("lock.renewed", r#"{"holder": "ada", "token": 9, "expires_at": "2026-01-02T03:04:35Z"}"#),
    ("annotation.added", r#"{"annotation": "a1", "text": "why?", "range": [3, 9], "tags": ["question"]}"#),
    ("annotation.resolved", r#"{"annotation": "a1", "resolution": "accepted"}"#),
    ("service.changed", r#"{"service": "sift", "state": "degraded", "reason": "slow"}"#),
    ("system.notice", r#"{"level": "warning", "code": "reconnect", "message": "come back"}"#),
];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Generates a kind with a payload of its type.
fn content() -> impl Strategy<Value = (Kind, Payload)> {
    let text = |json: &str| Payload::Json(JsonText::parse(json.to_owned().into()).unwrap());
    let typed = prop::sample::select(PAYLOADS)
        .prop_map(move |(name, json)| (relay_events::kind(name).unwrap(), text(json)));
    let custom = ("x-(ephemeral-)?[a-z0-9._-]{1,20}", json_value())
        .prop_map(|(name, value)| (relay_events::kind(&name).unwrap(), Payload::json(&value).unwrap()));
    let name = prop::sample::select(&["document.edited", "x-update", "x-ephemeral-awareness"][..]);
    let binary = (name, prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(name, bytes)| (relay_events::kind(name).unwrap(), Payload::Binary(bytes.into())));
    prop_oneof![typed, custom, binary]
}

fn actor() -> impl Strategy<Value = Actor> {
    prop_oneof![
        ".{1,20}".prop_map(|id| Actor::User(UserId::new(id).unwrap())),
        ".{1,20}".prop_map(|name| Actor::Service(ServiceName::new(name).unwrap())),
        Just(Actor::System),
    ]
}

fn trace() -> impl Strategy<Value = TraceContext> {
    (1..u128::MAX, 1..u64::MAX, any::<u8>(), prop::option::of("[a-z]{1,8}=[a-z0-9]{1,8}")).prop_map(
        |(trace, parent, flags, state)| {
            TraceContext::new(&format!("00-{trace:032x}-{parent:016x}-{flags:02x}"), state.as_deref())
                .unwrap()
        },
    )
}

fn metadata() -> impl Strategy<Value = Metadata> {
    prop::collection::btree_map(".{1,10}", ".{0,20}", 0..4)
        .prop_map(|entries| Metadata::try_from(entries).unwrap())
}

/// Generates any event at any position.
pub(crate) fn event() -> impl Strategy<Value = Event> {
    let position = (any::<u64>(), 1..u64::MAX, prop::option::of(1..u64::MAX), 0..=Timestamp::MAX.as_micros());
    let optional = (
        prop::option::of(any::<u128>().prop_map(SessionId::from_u128)),
        prop::option::of(".{0,20}"),
        prop::option::of(any::<u64>()),
        prop::option::of(trace()),
        metadata(),
    );
    (any::<u128>(), ".{1,30}", content(), actor(), position, optional).prop_map(
        |(
            id,
            document,
            (kind, payload),
            actor,
            (epoch, seq, offset, time),
            (session, key, ttl, trace, metadata),
        )| {
            let seq = kind.is_sequenced().then_some(Seq::new(seq));
            let mut draft = Draft::new(DocumentId::new(document).unwrap(), kind, payload);
            draft.id = Some(EventId::from_u128(id));
            draft.actor = actor;
            draft.session = session;
            draft.key = key.map(Into::into);
            draft.ttl = ttl.map(Duration::from_millis);
            draft.trace = trace;
            draft.metadata = metadata;
            let mut event = draft.into_event(Epoch::from_u64(epoch), seq, Timestamp::from_micros(time));
            event.offset = offset.filter(|_| !event.kind.is_ephemeral()).map(Offset::new);
            event
        },
    )
}
