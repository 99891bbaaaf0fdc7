//! Chains: each comes back from its signed form, and none that the key has not signed does.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;
use relay_core::{CheckedDraft, Draft, Epoch, EventSink, PublishAck, PublishError, Seq, Timestamp};

use super::key::UnverifiedChain;
use super::*;
use crate::test_support::{name, note};

/// A sink that keeps the metadata of each draft, and then refuses it.
#[derive(Default)]
struct Spy(Mutex<Vec<Metadata>>);

#[async_trait]
impl EventSink for Spy {
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        self.0.lock().push(draft.metadata.clone());
        Err(PublishError::Closed)
    }
}

fn key(byte: u8) -> CausesKey {
    CausesKey::new(&[byte; CausesKey::BYTES])
}

fn by_service(metadata: Metadata) -> Draft {
    note("notes", 1).actor(Actor::Service(name("sift"))).metadata(metadata)
}

fn event(draft: Draft) -> Arc<Event> {
    Arc::new(draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH))
}

fn causes(value: &str) -> Metadata {
    let mut metadata = Metadata::default();
    metadata.insert(CAUSES_KEY, value).unwrap();
    metadata
}

fn delivered(event: &Arc<Event>, rule: Option<&str>) -> Option<String> {
    let rule = rule.map(Arc::from);
    with_causes(event, rule.as_ref(), &key(1)).metadata.get(CAUSES_KEY).map(str::to_owned)
}

#[test]
fn the_signature_of_a_chain_stays_the_same_over_versions() {
    let signed = key(7).sign("quality,grammar");
    // HMAC-SHA256 of the label and the chain with a zero byte between them, by Python's `hmac`.
    assert_eq!(signed, "quality,grammar;mVAHcMajX35aBHttLjpHzZjB26BOxJ8nozkfAqe1Sr0");
}

#[test]
fn a_delivered_chain_is_signed_whatever_led_to_the_delivery() {
    let signed = |chain: &str| key(1).sign(chain);
    let (first, result) = (event(note("notes", 1)), event(by_service(causes("quality"))));
    assert_eq!(delivered(&first, Some("quality")), Some(signed("quality")));
    assert_eq!(delivered(&result, Some("grammar")), Some(signed("quality,grammar")));
    // By a record of an earlier version, which has no rule, or by one whose rule is in the chain.
    assert_eq!(delivered(&result, None), Some(signed("quality")));
    assert_eq!(delivered(&result, Some("quality")), Some(signed("quality")));
    assert_eq!(delivered(&first, None), None);
    // What earlier versions stored: a user's chain, and one without space for a signature.
    assert_eq!(delivered(&event(note("notes", 1).metadata(causes("audit"))), None), None);
    let long = "r".repeat(MAX_CHAIN_BYTES + 1);
    assert_eq!(delivered(&event(by_service(causes(&long))), None), None);
}

#[test]
fn the_longest_chain_is_one_value_with_its_signature() {
    let rule = Arc::from("b");
    let of_length = |bytes: usize| event(by_service(causes(&"a".repeat(bytes))));
    let longest = extend_chain(&of_length(MAX_CHAIN_BYTES - 2), &rule).unwrap();
    assert_eq!(key(1).sign(&longest).len(), Metadata::MAX_VALUE_BYTES);
    let error = extend_chain(&of_length(MAX_CHAIN_BYTES - 1), &rule).unwrap_err();
    assert!(error.to_string().contains("longer than 980 bytes"), "{error}");
}

#[test]
fn full_metadata_has_space_for_the_chain() {
    let mut full = Metadata::default();
    for n in 0..Metadata::MAX_ENTRIES {
        full.insert(format!("key {n}"), "v").unwrap();
    }
    let given = with_causes(&event(note("notes", 1).metadata(full)), Some(&Arc::from("quality")), &key(1));
    // A service that copies all of it is taken at its word.
    let draft = relay_events::check(by_service(given.metadata.clone())).unwrap();
    let value = draft.metadata.get(CAUSES_KEY).unwrap();
    assert_eq!(key(1).verify(value), Ok("quality"));
}

#[test]
fn a_dry_run_takes_the_metadata_of_a_delivery() {
    let metadata = causes(&key(9).sign("quality,grammar"));
    let error = extend_chain(&event(by_service(metadata)), &Arc::from("grammar")).unwrap_err();
    assert_eq!(error, LoopError::Cycle { rule: "grammar".into(), chain: "quality,grammar".into() });
}

#[test]
fn no_debug_form_has_the_key() {
    assert_eq!(format!("{:?}", key(7)), "CausesKey { .. }");
}

#[tokio::test]
async fn a_sink_strips_signatures_and_refuses_what_it_cannot_verify() {
    let spy = Arc::new(Spy::default());
    let sink = VerifiedSink::new(spy.clone(), key(1));
    let publish = async |metadata| {
        sink.publish(relay_events::check(by_service(metadata)).unwrap()).await.unwrap_err().to_string()
    };
    let closed = PublishError::Closed.to_string();
    let mut copied = causes(&key(1).sign("quality"));
    copied.insert("lang", "en").unwrap();
    assert_eq!(publish(copied.clone()).await, closed);
    assert_eq!(publish(Metadata::default()).await, closed);
    copied.insert(CAUSES_KEY, "quality").unwrap();
    assert_eq!(*spy.0.lock(), [copied.clone(), Metadata::default()]);
    assert_eq!(
        publish(copied).await,
        "the metadata `relay.causes` is `quality`, and it has no signature of this server; copy it unchanged from the \
         delivery of the event that led to this one, or leave it out"
    );
    let long = publish(causes(&"é".repeat(500))).await;
    assert!(long.contains(&format!("is `{}…`, and", "é".repeat(64))), "{long}");
    assert_eq!(spy.0.lock().len(), 2);
}

fn chains() -> impl Strategy<Value = String> {
    prop::collection::vec("[A-Za-z0-9._-]{1,24}", 1..=20).prop_map(|rules| rules.join(","))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_is_verified_by_its_key_alone(chain in chains()) {
        let signed = key(1).sign(&chain);
        prop_assert_eq!(key(1).verify(&signed), Ok(&*chain));
        prop_assert_eq!(key(1).verify(&chain), Err(UnverifiedChain::Unsigned));
        prop_assert_eq!(key(2).verify(&signed), Err(UnverifiedChain::Mismatch));
    }

    #[test]
    fn a_signed_chain_with_any_change_is_refused(
        chain in chains(),
        at in any::<prop::sample::Index>(),
        with in "[ -~]{0,2}",
        removed in 0_usize..=2,
    ) {
        let signed = key(1).sign(&chain);
        let at = at.index(signed.len());
        let changed = format!("{}{with}{}", &signed[..at], &signed[(at + removed).min(signed.len())..]);
        prop_assume!(changed != signed);
        prop_assert!(key(1).verify(&changed).is_err(), "{}", changed);
    }
}
