//! The values of this crate: the texts that they take, refuse and give.

use std::time::Duration;

use proptest::prelude::*;
use relay_core::testing::ManualClock;
use relay_core::{
    Actor, Clock, DeliveryClass, DocumentId, Epoch, EventId, Head, InvalidId, Kind, Metadata, Recovery,
    ResetReason, Seq, ServiceName, StartPosition, SubscribeAck, SystemClock, Timestamp, TraceContext, UserId,
};

#[test]
fn an_id_takes_its_limit_in_bytes_and_not_one_more() {
    assert!(DocumentId::new("é".repeat(128)).is_ok());
    let error = DocumentId::new("é".repeat(128) + "x").unwrap_err();
    assert!(matches!(error, InvalidId::TooLong { bytes: 257, max: 256, .. }), "{error}");
    assert!(matches!(DocumentId::new(""), Err(InvalidId::Empty { .. })));
    assert!(UserId::new("u".repeat(256)).is_ok() && UserId::new("u".repeat(257)).is_err());
    assert!(ServiceName::new("s".repeat(128)).is_ok() && ServiceName::new("s".repeat(129)).is_err());
}

#[test]
fn an_epoch_is_16_hexadecimal_digits_and_nothing_else() {
    for text in ["", "7", "00c0ffee00c0ffe", "000c0ffee00c0ffee", "00c0ffee00c0ffeg", "+0c0ffee00c0ffee"] {
        assert!(text.parse::<Epoch>().is_err(), "{text:?}");
    }
}

#[test]
fn an_error_never_carries_all_of_what_was_wrong() {
    let error = DocumentId::new("x".repeat(1_000_000)).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn an_actor_that_is_nobody_is_refused() {
    for text in ["", "ada", "user:", "robot:r2", "System", "service"] {
        assert!(text.parse::<Actor>().is_err(), "{text:?}");
    }
    let odd: Actor = "user:a:b".parse().unwrap();
    assert_eq!(odd.to_string(), "user:a:b");
}

#[test]
fn the_same_name_gives_the_same_event_id() {
    assert_eq!(EventId::from_name("a 1"), EventId::from_name("a 1"));
    assert_ne!(EventId::from_name("a 1"), EventId::from_name("a 2"));
}

#[test]
fn times_of_other_zones_are_understood_and_impossible_ones_refused() {
    let time: Timestamp = "2026-01-02T03:04:05+02:00".parse().unwrap();
    assert_eq!(time.to_string(), "2026-01-02T01:04:05.000000Z");
    for text in ["", "2026-01-02", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z", "10000-01-01T00:00:00Z"] {
        assert!(text.parse::<Timestamp>().is_err(), "{text}");
    }
}

#[test]
fn metadata_keeps_its_limits_and_changes_nothing_when_it_refuses() {
    let mut metadata = Metadata::default();
    for n in 0..Metadata::MAX_ENTRIES {
        metadata.insert(format!("key {n}"), "v").unwrap();
    }
    assert!(metadata.insert("one more", "v").is_err());
    // There is always space for one of the server's own, in whatever order the entries come.
    let mut delivered = metadata.clone();
    delivered.insert("relay.causes", "quality").unwrap();
    for key in ["one more", "relay.more"] {
        assert!(delivered.insert(key, "v").is_err(), "{key}");
    }
    let json = serde_json::to_string(&delivered).unwrap();
    assert_eq!(serde_json::from_str::<Metadata>(&json).unwrap(), delivered);
    assert_eq!(delivered.remove("relay.causes").as_deref(), Some("quality"));
    assert_eq!(delivered, metadata);
    metadata.insert("key 0", "another").unwrap();
    assert!(metadata.insert("key 0", "v".repeat(Metadata::MAX_VALUE_BYTES + 1)).is_err());
    assert!(metadata.insert("", "v").is_err());
    assert!(Metadata::default().insert("k".repeat(Metadata::MAX_KEY_BYTES), "v").is_ok());
    assert!(Metadata::default().insert("k".repeat(Metadata::MAX_KEY_BYTES + 1), "v").is_err());
    assert_eq!((metadata.iter().count(), metadata.get("key 0")), (32, Some("another")));
}

#[test]
fn a_trace_context_is_of_the_standards_form_or_refused() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(TraceContext::new(good, Some("")).unwrap().tracestate(), None);
    let bad = [
        good.to_uppercase(),
        good.replace("00-", "ff-"),
        format!("{good}-x"),
        "00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned(),
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01".to_owned(),
    ];
    for parent in bad {
        assert!(TraceContext::new(&parent, None).is_err(), "{parent}");
    }
    assert!(TraceContext::new(good, Some(&"s".repeat(513))).is_err());
    assert!(TraceContext::new(good, Some("a=\u{7}")).is_err());
}

#[test]
fn a_manual_clock_stands_still_and_its_spans_outlast_a_set_wall() {
    let clock = ManualClock::new();
    let (wall, span) = (clock.wall(), clock.monotonic());
    assert_eq!((clock.wall(), clock.monotonic()), (wall, span));
    clock.set_wall(Timestamp::UNIX_EPOCH);
    clock.advance(Duration::from_secs(1));
    assert_eq!(clock.monotonic(), span + Duration::from_secs(1));
    assert!(SystemClock::new().wall() > wall.saturating_add(Duration::ZERO));
}

/// The recovery that a subscriber has to get, said without any of the arithmetic: a history of the seqs `first..=last` in `epoch`.
fn expected(start: StartPosition, epoch: Epoch, kept: &[u64], last: u64) -> (u64, Recovery) {
    let everything = kept.first().map_or(last, |first| first - 1);
    match start {
        StartPosition::Live => (last, Recovery::Live),
        StartPosition::After { epoch: of, seq } => {
            let known = seq.get();
            let missing: Vec<u64> = (known + 1..=last).collect();
            if known > 0 && of.is_some_and(|of| of != epoch) {
                (everything, Recovery::Reset(ResetReason::EpochChanged))
            } else if known > last {
                (everything, Recovery::Reset(ResetReason::Ahead))
            } else if missing.iter().all(|seq| kept.contains(seq)) {
                (known, Recovery::Recovered)
            } else {
                (everything, Recovery::Reset(ResetReason::Trimmed))
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_opening_gives_everything_that_is_missing_or_says_why_not(
        last in 0..20u64,
        dropped in 0..20u64,
        start in prop_oneof![
            Just(None),
            (prop::option::of(1..3u64), 0..25u64).prop_map(Some),
        ],
    ) {
        let epoch = Epoch::from_u64(1);
        let dropped = dropped.min(last);
        let kept: Vec<u64> = (dropped + 1..=last).collect();
        let head = Head::new(epoch, Seq::new(dropped + 1), Seq::new(last));
        let start = match start {
            None => StartPosition::Live,
            Some((of, seq)) => StartPosition::After { epoch: of.map(Epoch::from_u64), seq: Seq::new(seq) },
        };
        let ack = SubscribeAck::decide(start, head);
        prop_assert_eq!((ack.position.get(), ack.recovery), expected(start, epoch, &kept, last));
        let written = serde_json::to_string(&ack).unwrap();
        prop_assert_eq!(serde_json::from_str::<SubscribeAck>(&written).unwrap(), ack, "{}", written);
    }

    #[test]
    fn a_time_is_read_as_it_was_written(micros in 0..=Timestamp::MAX.as_micros()) {
        let time = Timestamp::from_micros(micros);
        prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
    }

    #[test]
    fn an_epoch_is_read_as_it_was_written(bits: u64) {
        let epoch = Epoch::from_u64(bits);
        prop_assert_eq!(epoch.to_string().parse::<Epoch>().unwrap(), epoch);
    }

    #[test]
    fn a_static_kind_has_a_name_that_a_kind_may_have(name in "[a-z0-9._-]{0,70}|.{0,8}") {
        let name: &'static str = name.leak();
        let made = std::panic::catch_unwind(|| Kind::from_static(name, DeliveryClass::Sequenced));
        prop_assert_eq!(made.is_ok(), Kind::new(name, DeliveryClass::Sequenced).is_ok(), "{}", name);
    }

    #[test]
    fn arbitrary_text_is_an_actor_or_refused(text in ".*") {
        if let Ok(actor) = text.parse::<Actor>() {
            prop_assert_eq!(actor.to_string(), text);
        }
    }
}
