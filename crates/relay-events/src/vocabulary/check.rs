//! The check of drafts that come from outside, and the drafts of the server, which need none.

use relay_core::{Actor, CheckedDraft, DocumentId, Draft, Kind, LockClaim, Metadata, Payload, Vocabulary};

use super::shape::Shape::{self, Any, List, NotNull, Object, Optional, Text, Tuple, Unsigned, Word};
use super::{
    ANNOTATION_ADDED, ANNOTATION_RESOLVED, Body, CAUSES_KEY, CURSOR_MOVED, DOCUMENT_EDITED, DOCUMENT_LOCKED,
    DOCUMENT_SAVED, DOCUMENT_UNLOCKED, LOCK_RENEWED, PRESENCE_UPDATED, PayloadError, SERVICE_CHANGED,
    SESSION_ENDED, SESSION_STARTED, SYSTEM_NOTICE, TypedPayload, USER_JOINED, USER_LEFT,
};

/// The most levels of arrays and objects in one another in a payload. Many JSON readers give up at 100 or 128 levels,
/// envelope and frame included, and a client must be able to read what another client published.
const MAX_DEPTH: usize = 64;

/// Kinds whose events state the server's own decisions. A client that could publish them could forge sessions and locks.
const RESERVED: &[Kind] = &[
    SESSION_STARTED,
    SESSION_ENDED,
    USER_JOINED,
    USER_LEFT,
    DOCUMENT_LOCKED,
    DOCUMENT_UNLOCKED,
    LOCK_RENEWED,
    SERVICE_CHANGED,
];

/// The shapes of the payloads of all kinds that may be published, apart from `x-…` kinds. Each accepts at most what the
/// payload type of the kind accepts.
static SHAPES: &[(Kind, Shape)] = &[
    (PRESENCE_UPDATED, Object { members: &[("state", ANY_OBJECT)], required: &[&["state"]] }),
    (CURSOR_MOVED, Object { members: &[("position", NotNull), ("anchor", Any)], required: &[&["position"]] }),
    (
        DOCUMENT_EDITED,
        Object {
            members: &[
                ("patches", Optional(&List(&Tuple(&[Unsigned, Unsigned, Text])))),
                ("base", Optional(&Unsigned)),
                ("format", Optional(&Text)),
                ("change", Any),
            ],
            required: &[&["patches"], &["format", "change"]],
        },
    ),
    (
        DOCUMENT_SAVED,
        Object {
            members: &[("through", Unsigned), ("revision", Optional(&Text))],
            required: &[&["through"]],
        },
    ),
    (
        ANNOTATION_ADDED,
        Object {
            members: &[("annotation", Text), ("text", Text), ("range", Any), ("tags", List(&Text))],
            required: &[&["annotation", "text"]],
        },
    ),
    (
        ANNOTATION_RESOLVED,
        Object {
            members: &[("annotation", Text), ("resolution", Optional(&Text))],
            required: &[&["annotation"]],
        },
    ),
    (
        SYSTEM_NOTICE,
        Object {
            members: &[
                ("level", Word(&["info", "warning", "error"])),
                ("code", Text),
                ("message", Text),
                ("reconnect_after_ms", Optional(&Unsigned)),
            ],
            required: &[&["level", "code", "message"]],
        },
    ),
];
const ANY_OBJECT: Shape = Object { members: &[], required: &[&[]] };

/// The vocabulary's rules for drafts from outside: the kind is not reserved for the server, the payload has the type of its
/// kind and is nested in no more than 64 levels, the metadata has no key of the server but [`CAUSES_KEY`] from a service, and an
/// edit's claim about locks is well-formed. The signature of [`CAUSES_KEY`] is not checked here, since it needs the router's key.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelayVocabulary;

impl Vocabulary for RelayVocabulary {
    type Error = PayloadError;

    fn check(&self, draft: &Draft) -> Result<Option<LockClaim>, PayloadError> {
        check_payload(&draft.kind, &draft.payload)?;
        check_metadata(draft)?;
        Ok(if draft.kind == DOCUMENT_EDITED { Some(LockClaim::of(&draft.metadata)?) } else { None })
    }
}

/// Checks `draft` by the [`RelayVocabulary`]. Every edge does this before it publishes.
///
/// ```
/// use relay_core::{DocumentId, Draft, Payload};
///
/// let notes = DocumentId::new("notes")?;
/// let saved = |payload| Draft::new(notes.clone(), relay_events::DOCUMENT_SAVED, payload);
/// assert!(relay_events::check(saved(Payload::json(&serde_json::json!({"through": 7}))?)).is_ok());
/// assert!(relay_events::check(saved(Payload::json(&"everything")?)).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PayloadError::Reserved`], [`PayloadError::InvalidClaim`], and the errors of [`Body::parse`].
pub fn check(draft: Draft) -> Result<CheckedDraft, PayloadError> {
    CheckedDraft::new(draft, &RelayVocabulary)
}

/// Returns a draft of one of the server's own events in `document`. Every kind is allowed, also those that are reserved for
/// the server.
///
/// The type of `payload` decides about the kind, so the two fit and need no check. The draft claims nothing about locks, so
/// no lock refuses it. An edge gives drafts from outside to [`check`] instead.
///
/// # Errors
/// [`PayloadError::Invalid`] when a free-form part of the payload cannot be JSON.
pub fn server_draft<P: TypedPayload>(
    document: DocumentId,
    payload: &P,
) -> Result<CheckedDraft, PayloadError> {
    /// Accepts every typed payload.
    struct ByType;

    impl Vocabulary for ByType {
        type Error = PayloadError;

        fn check(&self, _typed: &Draft) -> Result<Option<LockClaim>, PayloadError> {
            Ok(None)
        }
    }
    CheckedDraft::new(Draft::new(document, P::KIND, payload.to_payload()?), &ByType)
}

/// Checks that `kind` may be published from outside, and that `payload` has its type and is not nested too deeply.
fn check_payload(kind: &Kind, payload: &Payload) -> Result<(), PayloadError> {
    if RESERVED.contains(kind) {
        return Err(PayloadError::Reserved { kind: kind.clone() });
    }
    if let Payload::Json(text) = payload {
        let shape = SHAPES.iter().find(|(shaped, _)| shaped == kind).map(|(_, shape)| shape);
        if shape.is_some_and(|shape| shape.matches(text.as_bytes(), MAX_DEPTH)) {
            return Ok(());
        }
        // An `x-…` kind has no shape. For the others the steps from here on find and explain the mistake.
        if is_deeper_than(MAX_DEPTH, text.as_bytes()) {
            let detail = format!("it is nested deeper than {MAX_DEPTH} levels");
            return Err(PayloadError::Invalid { kind: kind.clone(), detail });
        }
    }
    Body::parse(kind, payload).map(|_| ())
}

/// Checks that nobody sets metadata to which the server gives a meaning, except for a service that copies its causes.
fn check_metadata(draft: &Draft) -> Result<(), PayloadError> {
    let is_service = matches!(draft.actor, Actor::Service(_));
    let is_refused =
        |key: &str| key.starts_with(Metadata::SERVER_PREFIX) && !(is_service && key == CAUSES_KEY);
    match draft.metadata.iter().find(|(key, _)| is_refused(key)) {
        Some((key, _)) => Err(PayloadError::ReservedMetadata { key: key.clone() }),
        None => Ok(()),
    }
}

/// Returns true when more than `levels` arrays and objects lie in one another in `json`, which is valid.
fn is_deeper_than(levels: usize, json: &[u8]) -> bool {
    // Most payloads open so few that no depth needs to be tracked. Counts of one byte let many bytes be compared at once.
    let opening = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(matches!(byte, b'[' | b'{'))).sum::<u8>();
    if json.chunks(usize::from(u8::MAX)).map(|chunk| usize::from(opening(chunk))).sum::<usize>() <= levels {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > levels {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use relay_core::JsonText;
    use serde_json::{Value, json};

    use super::*;
    use crate::KINDS;

    fn shape_of(kind: &Kind) -> &'static Shape {
        SHAPES.iter().find(|(shaped, _)| shaped == kind).map(|(_, shape)| shape).unwrap()
    }

    /// Payloads of every kind that may be published, in each of its forms.
    fn payloads() -> Vec<(Kind, Value)> {
        vec![
            (PRESENCE_UPDATED, json!({"state": {"typing": true, "n": [null, -1, 1.5]}})),
            (CURSOR_MOVED, json!({"position": 7, "anchor": {"path": [1, 2]}})),
            (CURSOR_MOVED, json!({"position": {"path": [1]}, "anchor": null})),
            (DOCUMENT_EDITED, json!({"patches": [[0, 2, "é"], [1, 0, "\n"]], "base": 41})),
            (DOCUMENT_EDITED, json!({"patches": [], "base": null, "format": null})),
            (DOCUMENT_EDITED, json!({"format": "quill-delta", "change": {"ops": [{"retain": 3}]}})),
            (DOCUMENT_EDITED, json!({"format": "f", "change": null, "patches": null})),
            (DOCUMENT_SAVED, json!({"through": 42, "revision": "r1"})),
            (DOCUMENT_SAVED, json!({"through": 42, "from_the_future": [{}]})),
            (ANNOTATION_ADDED, json!({"annotation": "a1", "text": "why?", "range": [3, 9], "tags": ["q"]})),
            (ANNOTATION_RESOLVED, json!({"annotation": "a1", "resolution": null})),
            (
                SYSTEM_NOTICE,
                json!({"level": "warning", "code": "c", "message": "m", "reconnect_after_ms": 5}),
            ),
        ]
    }

    #[test]
    fn every_kind_is_reserved_or_has_a_shape_that_accepts_its_payloads() {
        for kind in KINDS {
            let is_shaped = SHAPES.iter().any(|(shaped, _)| shaped == kind);
            assert_ne!(RESERVED.contains(kind), is_shaped, "{kind}");
            assert_eq!(payloads().iter().any(|(example, _)| example == kind), is_shaped, "{kind}");
        }
        for (kind, payload) in payloads() {
            assert!(shape_of(&kind).matches(payload.to_string().as_bytes(), MAX_DEPTH), "{kind} {payload}");
        }
    }

    #[test]
    fn a_shape_counts_levels_in_known_and_unknown_members() {
        for member in ["anchor", "from_the_future"] {
            let nested = |levels: usize| {
                let value = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
                format!(r#"{{"position": 1, "{member}": {value}}}"#)
            };
            assert!(shape_of(&CURSOR_MOVED).matches(nested(MAX_DEPTH - 1).as_bytes(), MAX_DEPTH));
            assert!(!shape_of(&CURSOR_MOVED).matches(nested(MAX_DEPTH).as_bytes(), MAX_DEPTH));
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "(info|a|\\PC{0,3})".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{0,3}", inner, 0..3).prop_map(|map| json!(map)),
            ]
        })
    }

    fn accepted_by_shape_alone(kind: &Kind, text: &str) -> bool {
        let Ok(json) = JsonText::parse(text.to_owned().into()) else { return false };
        let payload = Payload::Json(json);
        shape_of(kind).matches(text.as_bytes(), MAX_DEPTH)
            && (is_deeper_than(MAX_DEPTH, text.as_bytes()) || Body::parse(kind, &payload).is_err())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1024, ..ProptestConfig::default() })]

        #[test]
        fn a_shape_accepts_nothing_that_its_type_refuses(
            example in prop::sample::select(payloads()),
            values in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 0..3),
            removed in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let (kind, mut payload) = example;
            let members = payload.as_object_mut().unwrap();
            let names: Vec<String> = members.keys().cloned().collect();
            for (name, value) in values {
                members.insert(name.get(&names).clone(), value);
            }
            if let Some(removed) = removed {
                members.remove(removed.get(&names));
            }
            prop_assert!(!accepted_by_shape_alone(&kind, &payload.to_string()), "{kind} {payload}");
        }

        #[test]
        fn a_shape_accepts_no_damage_that_its_type_refuses(
            example in prop::sample::select(payloads()),
            at in any::<prop::sample::Index>(),
            with in prop::sample::select(&["", "\"", ",", "[", "]", "{", "}", "-", "1e999", ".5", "null", "\\ud800", "0"][..]),
            replace in any::<bool>(),
        ) {
            let (kind, payload) = example;
            let text = payload.to_string();
            let at = at.index(text.len());
            prop_assume!(text.is_char_boundary(at) && text.is_char_boundary(at + usize::from(replace)));
            let damaged = format!("{}{with}{}", &text[..at], &text[at + usize::from(replace)..]);
            prop_assert!(!accepted_by_shape_alone(&kind, &damaged), "{kind} {damaged}");
        }
    }
}
