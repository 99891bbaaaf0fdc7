//! The promises of a channel to publishers and readers, fact by fact.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    available, available_seqs, checked, config, document, held_log, in_memory, laser, note, number, over,
    settle,
};
use futures_util::FutureExt;
use relay_bus::{Bus, BusConfig, Filter, LagPolicy};
use relay_core::testing::{AppendFault, ManualClock, MemoryLog};
use relay_core::{
    Clock, Draft, Epoch, EventId, EventLog, EventSource, EventStream, LogError, Offset, Payload,
    PublishError, ReadLimit, Recovery, ResetReason, Seq, StartPosition, StreamError, SubscribeError,
    Timestamp,
};

/// After this a test that waits has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const EVERYTHING: StartPosition = StartPosition::After { epoch: None, seq: Seq::ZERO };

async fn subscribe(bus: &Bus, name: &str, start: StartPosition) -> relay_bus::Subscription {
    bus.subscribe(&document(name), start, Filter::all(), LagPolicy::Refill).await.unwrap().1
}

#[tokio::test]
async fn times_never_run_backwards_within_a_document() {
    let log: Arc<dyn EventLog> = Arc::new(MemoryLog::new());
    let doc = document("doc");
    let at = |seconds: u64| Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(seconds));
    for log in [None, Some(log)] {
        let clock = Arc::new(ManualClock::new());
        let no_preload = config(|c| c.preload_events = 0);
        let bus = Bus::new(no_preload.clone(), log.clone(), clock.clone()).unwrap();
        let mut events = subscribe(&bus, "doc", EVERYTHING).await;
        for (step, seconds) in (1..).zip([100, 50, 70, 120]) {
            clock.set_wall(at(seconds));
            bus.publish(note(&doc, step)).await.unwrap();
            bus.publish(laser(&doc, "ada", step)).await.unwrap();
        }
        let times: Vec<Timestamp> = available(&mut events)
            .into_iter()
            .map(|event| event.unwrap())
            .filter(|event| event.seq.is_some())
            .map(|event| event.time)
            .collect();
        assert_eq!(times, [100, 100, 100, 120].map(at));
        let Some(log) = log else { continue };
        // Another process, whose clock is behind.
        let clock = Arc::new(ManualClock::new());
        clock.set_wall(at(10));
        let bus = Bus::new(no_preload, Some(log), clock).unwrap();
        let mut events = subscribe(&bus, "doc", StartPosition::Live).await;
        bus.publish(laser(&doc, "ada", 5)).await.unwrap();
        bus.publish(note(&doc, 6)).await.unwrap();
        let times: Vec<Timestamp> =
            available(&mut events).into_iter().map(|event| event.unwrap().time).collect();
        assert_eq!(times, [at(120), at(120)]);
    }
}

#[tokio::test]
async fn nobody_sees_or_is_told_of_an_event_before_the_log_has_it() {
    let log = held_log();
    let bus = over(log.clone(), BusConfig::default());
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    let mut publishing = Box::pin(bus.publish(note(&doc, 1)));
    assert!(publishing.as_mut().now_or_never().is_none());
    settle().await;
    assert!(available_seqs(&mut events).is_empty());
    log.let_through(1);
    let ack = publishing.await.unwrap();
    assert_eq!(ack.seq, Some(Seq::new(1)));
    assert!(ack.offset.is_some());
    assert_eq!(available_seqs(&mut events), [1]);
}

#[tokio::test]
async fn whoever_was_first_in_the_queue_gets_the_earlier_seq_in_one_batch() {
    let log = held_log();
    let bus = over(log.clone(), BusConfig::default());
    let doc = document("doc");
    let _keeps_it_open = subscribe(&bus, "doc", EVERYTHING).await;
    let mut publishing: Vec<_> = (0..20).map(|n| Box::pin(bus.publish(note(&doc, n)))).collect();
    for one in &mut publishing {
        assert!(one.as_mut().now_or_never().is_none());
    }
    log.let_through(20);
    let acks = futures_util::future::try_join_all(publishing).await.unwrap();
    let seqs: Vec<u64> = acks.iter().map(|ack| ack.seq.unwrap().get()).collect();
    assert_eq!(seqs, (1..=20).collect::<Vec<_>>());
    assert!(bus.stats().log_batches <= 2, "what waits is written together: {:?}", bus.stats());
}

#[tokio::test]
async fn a_publisher_that_gives_up_leaves_the_order_whole() {
    let log = held_log();
    let bus = over(log.clone(), BusConfig::default());
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    let mut first = Box::pin(bus.publish(note(&doc, 1)));
    assert!(first.as_mut().now_or_never().is_none());
    drop(first);
    log.let_through(2);
    let ack = bus.publish(note(&doc, 2)).await.unwrap();
    assert_eq!(ack.seq, Some(Seq::new(2)), "the abandoned event was accepted already");
    let numbers: Vec<u64> = available(&mut events).into_iter().map(|event| number(&event.unwrap())).collect();
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_outruns_the_log_is_told_so_and_nothing_of_it_happens() {
    let log = held_log();
    let config = config(|c| {
        c.max_pending_bytes = 3 * 1024;
        c.max_payload_bytes = 1024;
    });
    let bus = over(log.clone(), config);
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    let accepted: Vec<_> = (1..=4)
        .map(|n| {
            let (bus, draft) = (bus.clone(), note(&doc, n));
            tokio::spawn(async move { bus.publish(draft).await })
        })
        .collect();
    settle().await;
    let refused = bus.publish(note(&doc, 99)).await;
    assert!(matches!(refused, Err(PublishError::Overloaded { .. })), "{refused:?}");
    assert_eq!(bus.stats().refused_overloaded, 1);
    log.let_through(10);
    for publishing in accepted {
        publishing.await.unwrap().unwrap();
    }
    bus.publish(note(&doc, 5)).await.unwrap();
    let numbers: Vec<u64> = available(&mut events).into_iter().map(|event| number(&event.unwrap())).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_refused_with_both_sizes() {
    let bus = in_memory(config(|c| c.max_payload_bytes = 10));
    let kind = relay_events::kind("x-note").unwrap();
    let draft = checked(Draft::new(document("doc"), kind, Payload::json(&"0123456789").unwrap()));
    let error = bus.publish(draft).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { bytes: 12, max: 10 }), "{error}");
}

#[tokio::test]
async fn a_resent_draft_becomes_no_second_event() {
    let log = MemoryLog::new();
    for bus in [in_memory(BusConfig::default()), over(log.clone(), BusConfig::default())] {
        let doc = document("doc");
        let id = EventId::new();
        let twice = [bus.publish(note(&doc, 1).id(id)), bus.publish(note(&doc, 1).id(id))];
        let acks = futures_util::future::try_join_all(twice).await.unwrap();
        assert_eq!(acks.iter().map(|r| r.duplicate).collect::<Vec<_>>(), [false, true]);
        let again = bus.publish(note(&doc, 1).id(id)).await.unwrap();
        assert!(again.duplicate);
        assert_eq!((again.seq, again.time), (acks[0].seq, acks[0].time));
        let other = bus.publish(note(&doc, 2).id(id)).await;
        assert!(matches!(other, Err(PublishError::IdConflict { seq, .. }) if seq == Seq::FIRST), "{other:?}");
        assert_eq!(available_seqs(&mut subscribe(&bus, "doc", EVERYTHING).await), [1]);
        assert_eq!((bus.stats().duplicates, bus.stats().refused_id_conflict), (2, 1));
    }
    // Also after a restart.
    let bus = over(log, BusConfig::default());
    let doc = document("doc");
    let (_, mut events) = bus.subscribe(&doc, EVERYTHING, Filter::all(), LagPolicy::Refill).await.unwrap();
    let first = events.next().await.unwrap().unwrap();
    assert!(bus.publish(note(&doc, 1).id(first.id)).await.unwrap().duplicate);
}

#[tokio::test]
async fn an_id_is_recognised_after_its_event_has_left_memory() {
    let log = MemoryLog::new();
    let small = |bytes| {
        config(|c| {
            (c.cache_events, c.preload_events) = (4, 2);
            (c.idempotency_events, c.idempotency_bytes) = (20, bytes);
        })
    };
    let doc = document("doc");
    let bus = over(log.clone(), small(usize::MAX));
    let mut acks = Vec::new();
    for n in 1..=30 {
        acks.push(bus.publish(note(&doc, n)).await.unwrap());
    }
    // In the same server, and in another one that opens the document.
    for bus in [bus, over(log.clone(), small(usize::MAX))] {
        let resent = acks[10..].iter().zip(11..).map(|(ack, n)| bus.publish(note(&doc, n).id(ack.id)));
        let resent = futures_util::future::try_join_all(resent).await.unwrap();
        for (again, first) in resent.iter().zip(&acks[10..]) {
            assert_eq!(*again, first.as_duplicate());
        }
        let other = bus.publish(note(&doc, 99).id(acks[10].id)).await;
        assert!(
            matches!(other, Err(PublishError::IdConflict { seq, .. }) if seq == Seq::new(11)),
            "{other:?}"
        );
        assert_eq!((bus.stats().duplicates, bus.stats().refused_id_conflict), (20, 1));
    }
    // An event that retention has dropped is not recognised; nor is one further back than the bytes that may be read.
    log.trim(&doc, Seq::new(12)).await.unwrap();
    let bus = over(log.clone(), small(usize::MAX));
    assert!(bus.publish(note(&doc, 13).id(acks[12].id)).await.unwrap().duplicate);
    assert_eq!(bus.publish(note(&doc, 12).id(acks[11].id)).await.unwrap().seq, Some(Seq::new(31)));
    let bus = over(log.clone(), small(0));
    assert!(bus.publish(note(&doc, 30).id(acks[29].id)).await.unwrap().duplicate);
    assert_eq!(bus.publish(note(&doc, 20).id(acks[19].id)).await.unwrap().seq, Some(Seq::new(32)));
}

#[tokio::test]
async fn a_draft_whose_event_retention_drops_while_it_is_looked_up_becomes_an_event() {
    let log = MemoryLog::new();
    let doc = document("doc");
    let bus = over(log.clone(), config(|c| c.cache_events = 2));
    let first = bus.publish(note(&doc, 1)).await.unwrap();
    for n in 2..=9 {
        bus.publish(note(&doc, n)).await.unwrap();
    }
    assert!(bus.publish(note(&doc, 1).id(first.id)).await.unwrap().duplicate);
    log.trim(&doc, Seq::new(5)).await.unwrap();
    let ack = bus.publish(note(&doc, 1).id(first.id)).await.unwrap();
    assert_eq!((ack.seq, ack.duplicate), (Some(Seq::new(10)), false));
}

#[tokio::test]
async fn a_log_that_fails_is_reported_to_everyone_and_no_event_is_seen() {
    let log = MemoryLog::new();
    let bus = over(log.clone(), BusConfig::default());
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    bus.publish(note(&doc, 1)).await.unwrap();
    log.fail_after(0);
    let refused = bus.publish(note(&doc, 2)).await;
    assert!(matches!(refused, Err(PublishError::Log(LogError::Failed { .. }))), "{refused:?}");
    let mut received = available(&mut events);
    assert!(matches!(received.pop(), Some(Err(StreamError::Log(LogError::Failed { .. })))));
    assert_eq!(received.len(), 1);
    // The document is opened again when it is used next, and goes on where the log stands.
    log.fail_after(usize::MAX);
    assert_eq!(bus.publish(note(&doc, 3)).await.unwrap().seq, Some(Seq::new(2)));
    assert_eq!(bus.stats().refused_log_failed, 1);
}

#[tokio::test]
async fn a_log_that_returns_wrong_offsets_has_failed_and_no_event_is_seen() {
    type Lie = fn(Vec<Offset>) -> Vec<Offset>;
    let lies: [(Lie, &str); 5] = [
        (|offsets| offsets[1..].to_vec(), "it returned 1 offsets for 2 events"),
        (|offsets| [offsets, vec![Offset::new(9)]].concat(), "it returned 3 offsets for 2 events"),
        (|offsets| vec![offsets[1], offsets[0]], "it returned offset 2 after offset 3"),
        (|offsets| vec![offsets[0], offsets[0]], "it returned offset 2 after offset 2"),
        (|offsets| vec![Offset::new(1), offsets[1]], "it returned offset 1 after offset 1"),
    ];
    for (lie, message) in lies {
        let log = MemoryLog::new();
        let bus = over(log.clone(), BusConfig::default());
        let doc = document("doc");
        let mut events = subscribe(&bus, "doc", EVERYTHING).await;
        assert_eq!(bus.publish(note(&doc, 1)).await.unwrap().offset, Some(Offset::new(1)));
        log.fail_next_append(AppendFault::Offsets(lie));
        let refused =
            futures_util::future::join(bus.publish(note(&doc, 2)), bus.publish(note(&doc, 3))).await;
        for refused in [refused.0, refused.1] {
            let Err(PublishError::Log(LogError::Failed { source })) = refused else { panic!("{refused:?}") };
            assert_eq!(source.to_string(), message);
        }
        let mut received = available(&mut events);
        let Some(Err(StreamError::Log(LogError::Failed { source }))) = received.pop() else {
            panic!("the stream does not end with the failure: {received:?}")
        };
        assert_eq!(source.to_string(), message);
        assert_eq!(received.len(), 1, "neither event is shown");
        assert_eq!((bus.stats().sequenced_published, bus.stats().refused_log_failed), (1, 2));
        // The log has kept them, as the document shows when it is opened again.
        let ack = bus.publish(note(&doc, 4)).await.unwrap();
        assert_eq!((ack.seq, ack.offset), (Some(Seq::new(4)), Some(Offset::new(4))));
    }
}

#[tokio::test]
async fn a_document_to_which_another_server_appends_is_lost_and_opened_again() {
    let log = MemoryLog::new();
    let (bus, other) = (over(log.clone(), BusConfig::default()), over(log, BusConfig::default()));
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    bus.publish(note(&doc, 1)).await.unwrap();
    assert_eq!(other.publish(note(&doc, 2)).await.unwrap().seq, Some(Seq::new(2)));
    let refused = bus.publish(note(&doc, 3)).await;
    assert!(matches!(refused, Err(PublishError::Ownership(_))), "{refused:?}");
    let received = available(&mut events);
    assert!(matches!(&received[..], [Ok(_), Err(StreamError::Ownership(_))]), "{received:?}");
    assert_eq!((bus.stats().refused_not_owner, bus.stats().refused_log_failed), (1, 0));
    assert_eq!(bus.publish(note(&doc, 3)).await.unwrap().seq, Some(Seq::new(3)));
}

#[tokio::test]
async fn a_slow_reader_sees_only_the_newest_ephemeral_event_of_each_key() {
    let bus = in_memory(config(|c| c.max_ephemeral_keys = 2));
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    for number in 1..=50 {
        bus.publish(laser(&doc, "ada", number)).await.unwrap();
        bus.publish(laser(&doc, "bob", number)).await.unwrap();
    }
    let received: Vec<_> = available(&mut events).into_iter().map(Result::unwrap).collect();
    assert_eq!(received.iter().map(|event| number(event)).collect::<Vec<_>>(), [50, 50]);
    assert!(received.iter().all(|event| event.seq.is_none()));
    // A later subscriber does not get old ones.
    assert!(available(&mut subscribe(&bus, "doc", EVERYTHING).await).is_empty());
    // More keys than are held: the longest unchanged goes, and is counted.
    bus.publish(laser(&doc, "cyd", 1)).await.unwrap();
    assert_eq!(bus.stats().ephemeral_dropped, 1);
}

#[tokio::test]
async fn a_reader_that_may_not_fall_behind_is_told_when_it_does() {
    let bus = over(MemoryLog::new(), config(|c| c.cache_events = 2));
    let doc = document("doc");
    let policy = LagPolicy::Disconnect { max_behind: 10 };
    let (_, mut strict) = bus.subscribe(&doc, EVERYTHING, Filter::all(), policy).await.unwrap();
    let mut patient = subscribe(&bus, "doc", EVERYTHING).await;
    // Publishers wait for neither.
    strict.stand_for(0);
    patient.stand_for(0);
    for number in 0..11 {
        bus.publish(note(&doc, number)).await.unwrap();
    }
    let told = strict.next().await.unwrap();
    assert!(matches!(told, Err(StreamError::Lagged { behind: 11, .. })), "{told:?}");
    assert!(strict.next().await.is_none(), "an error is the last word");
    assert_eq!(available_seqs(&mut patient), (1..=11).collect::<Vec<_>>());
    assert_eq!(bus.stats().readers_lagged, 1);
}

#[tokio::test]
async fn a_filter_lets_through_what_it_says() {
    let bus = in_memory(BusConfig::default());
    let doc = document("doc");
    let filter =
        Filter::all().kind(relay_events::kind("x-note").unwrap()).predicate(|e| number(e).is_multiple_of(2));
    let (_, mut events) = bus.subscribe(&doc, EVERYTHING, filter, LagPolicy::Refill).await.unwrap();
    for number in 0..1000 {
        bus.publish(note(&doc, number)).await.unwrap();
        bus.publish(laser(&doc, "ada", number)).await.unwrap();
    }
    let mut numbers = Vec::new();
    while numbers.len() < 500 {
        numbers.push(number(&events.next().await.unwrap().unwrap()));
    }
    assert_eq!(numbers, (0..1000).step_by(2).collect::<Vec<_>>());
}

#[tokio::test]
async fn positions_that_cannot_be_continued_are_answered_with_a_reset() {
    let bus = over(MemoryLog::new(), BusConfig::default());
    let doc = document("doc");
    for number in 0..5 {
        bus.publish(note(&doc, number)).await.unwrap();
    }
    let open = async |epoch, seq| {
        let start = StartPosition::After { epoch, seq: Seq::new(seq) };
        let (opening, mut events) =
            bus.subscribe(&doc, start, Filter::all(), LagPolicy::Refill).await.unwrap();
        (opening.recovery, available_seqs(&mut events))
    };
    let all: Vec<u64> = (1..=5).collect();
    let elsewhere = Some(Epoch::from_u64(1));
    assert_eq!(open(elsewhere, 3).await, (Recovery::Reset(ResetReason::EpochChanged), all.clone()));
    assert_eq!(open(None, 9).await, (Recovery::Reset(ResetReason::Ahead), all.clone()));
    assert_eq!(open(elsewhere, 0).await, (Recovery::Recovered, all));
    assert_eq!(open(None, 3).await, (Recovery::Recovered, vec![4, 5]));
}

#[tokio::test]
async fn what_retention_has_dropped_is_not_served_from_memory() {
    let log = MemoryLog::new();
    let bus = over(log.clone(), BusConfig::default());
    let doc = document("doc");
    for number in 1..=12 {
        bus.publish(note(&doc, number)).await.unwrap();
    }
    log.trim(&doc, Seq::new(7)).await.unwrap();
    let limit = ReadLimit::default();
    let gone = EventSource::history(&bus, &doc, Seq::ZERO, limit).await;
    assert!(
        matches!(gone, Err(SubscribeError::Log(LogError::Trimmed { first, .. })) if first == Seq::new(8))
    );
    let (head, page) = EventSource::history(&bus, &doc, Seq::new(7), limit).await.unwrap();
    assert_eq!((head.first, head.last), (Seq::new(8), Seq::new(12)));
    assert_eq!(page.len(), 5);
    let (opening, mut events) =
        bus.subscribe(&doc, EVERYTHING, Filter::all(), LagPolicy::Refill).await.unwrap();
    assert_eq!(opening.recovery, Recovery::Reset(ResetReason::Trimmed));
    assert_eq!(available_seqs(&mut events), [8, 9, 10, 11, 12]);
}

#[tokio::test]
async fn an_idle_document_leaves_memory_and_comes_back_as_it_was() {
    let clock = Arc::new(ManualClock::new());
    let log = Arc::new(MemoryLog::new());
    let bus = Bus::new(BusConfig::default(), Some(log), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let doc = document("doc");
    let before = bus.publish(note(&doc, 1)).await.unwrap();
    let reader = subscribe(&bus, "doc", StartPosition::Live).await;
    clock.advance(Duration::from_secs(61));
    assert_eq!(bus.sweep(), 0, "somebody is there");
    drop(reader);
    assert_eq!(bus.sweep(), 0, "somebody was there just now");
    clock.advance(Duration::from_secs(60));
    assert_eq!(bus.sweep(), 1);
    assert_eq!(bus.stats().open_channels, 0);
    let after = bus.publish(note(&doc, 2)).await.unwrap();
    assert_eq!((after.epoch, after.seq), (before.epoch, Some(Seq::new(2))));
    assert_eq!((bus.stats().channels_opened, bus.stats().channels_evicted), (2, 1));
}

#[tokio::test]
async fn more_documents_than_allowed_are_refused_unless_one_is_idle() {
    let bus = over(MemoryLog::new(), config(|c| c.max_channels = 2));
    let first = subscribe(&bus, "a", StartPosition::Live).await;
    let _second = subscribe(&bus, "b", StartPosition::Live).await;
    for name in ["a", "b"] {
        bus.publish(note(&document(name), 1)).await.unwrap();
    }
    assert!(!bus.has_free_place());
    let refused = bus.publish(note(&document("c"), 1)).await;
    assert!(matches!(refused, Err(PublishError::TooManyDocuments { open: 2 })));
    drop(first);
    assert!(bus.has_free_place());
    bus.publish(note(&document("c"), 1)).await.unwrap();
    assert_eq!(bus.stats().channel_places, 2);
    // Now "c" is idle, and "a" is opened in its place from the log.
    let _first = subscribe(&bus, "a", StartPosition::Live).await;
    let refused = bus.subscribe(&document("c"), StartPosition::Live, Filter::all(), LagPolicy::Refill).await;
    assert!(matches!(refused, Err(SubscribeError::TooManyDocuments { open: 2 })));
    assert_eq!((bus.stats().open_channels, bus.stats().channel_places), (2, 2));
}

#[tokio::test]
async fn a_document_without_events_takes_no_place() {
    let (log, two) = (MemoryLog::new(), || config(|c| c.max_channels = 2));
    for bus in [over(log.clone(), two()), in_memory(two())] {
        let mut readers = Vec::new();
        for number in 0..100 {
            readers.push(subscribe(&bus, &format!("empty {number}"), StartPosition::Live).await);
        }
        for name in ["a", "b"] {
            bus.publish(laser(&document("empty 1"), "ada", 1)).await.unwrap();
            bus.publish(note(&document(name), 1)).await.unwrap();
        }
        assert_eq!((bus.stats().open_channels, bus.stats().channel_places), (102, 2));
        let _reader = (
            subscribe(&bus, "a", StartPosition::Live).await,
            subscribe(&bus, "b", StartPosition::Live).await,
        );
        let refused = bus.publish(note(&document("empty 1"), 1)).await;
        assert!(matches!(refused, Err(PublishError::TooManyDocuments { open: 2 })));
        // The ephemeral events have one key.
        assert_eq!(available(&mut readers[1]).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_writes_what_was_accepted_and_ends_streams_after_their_last_event() {
    let log = held_log();
    let bus = over(log.clone(), BusConfig::default());
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    let publishing = tokio::spawn({
        let (bus, draft) = (bus.clone(), note(&doc, 1));
        async move { bus.publish(draft).await }
    });
    settle().await;
    let stopping = tokio::spawn({
        let bus = bus.clone();
        async move { bus.shutdown(Duration::from_secs(10)).await }
    });
    settle().await;
    let late = bus.publish(note(&doc, 2)).await;
    assert!(matches!(late, Err(PublishError::Closed)), "{late:?}");
    assert!(matches!(
        bus.subscribe(&doc, StartPosition::Live, Filter::all(), LagPolicy::Refill).await,
        Err(SubscribeError::Closed)
    ));
    log.let_through(1);
    assert!(stopping.await.unwrap().complete);
    assert_eq!(publishing.await.unwrap().unwrap().seq, Some(Seq::FIRST));
    assert_eq!(crate::support::seq(&events.next().await.unwrap().unwrap()), 1);
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_ever() {
    let bus = over(held_log(), BusConfig::default());
    let doc = document("doc");
    let mut events = subscribe(&bus, "doc", EVERYTHING).await;
    let waiting = tokio::spawn({
        let (bus, draft) = (bus.clone(), note(&doc, 1));
        async move { bus.publish(draft).await }
    });
    settle().await;
    assert!(!bus.shutdown(Duration::from_secs(1)).await.complete);
    assert!(events.next().await.is_none());
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_holds_with_many_publishers_and_readers_on_several_threads() {
    for bus in [in_memory(BusConfig::default()), over(MemoryLog::new(), config(|c| c.cache_events = 50))] {
        let doc = document("doc");
        let publishers = (0..4).map(|publisher| {
            let (bus, doc) = (bus.clone(), doc.clone());
            tokio::spawn(async move {
                for number in 0..500 {
                    bus.publish(note(&doc, publisher * 1000 + number)).await.unwrap();
                }
            })
        });
        let readers = (0..8).map(|reader| {
            let (bus, doc) = (bus.clone(), doc.clone());
            tokio::spawn(async move {
                let mut epoch = None;
                let mut position = 0;
                let mut from_each = [0; 4];
                while position < 2000 {
                    let start = StartPosition::After { epoch, seq: Seq::new(position) };
                    let (opening, mut events) =
                        bus.subscribe(&doc, start, Filter::all(), LagPolicy::Refill).await.unwrap();
                    epoch = Some(opening.head.epoch);
                    // Comes and goes, each reader at its own pace.
                    for _ in 0..100 + reader * 50 {
                        if position == 2000 {
                            break;
                        }
                        let event = events.next().await.unwrap().unwrap();
                        position += 1;
                        assert_eq!(crate::support::seq(&event), position);
                        let publisher = (number(&event) / 1000) as usize;
                        assert_eq!(
                            number(&event) % 1000,
                            from_each[publisher],
                            "each publisher's order is kept"
                        );
                        from_each[publisher] += 1;
                    }
                }
            })
        });
        let tasks: Vec<_> = publishers.chain(readers).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(bus.shutdown(Duration::from_secs(10)).await.complete);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_document_is_never_open_twice_however_often_it_is_evicted() {
    let log = MemoryLog::new();
    let bus = over(log.clone(), config(|c| c.idle_after = Duration::ZERO));
    // Dropped at the end of the test, however it ends.
    let running = Arc::new(());
    let sweeping = std::thread::spawn({
        let (bus, running) = (bus.clone(), Arc::downgrade(&running));
        move || {
            while running.strong_count() > 0 {
                bus.sweep();
            }
        }
    });
    let publishing = async {
        for _ in 0..20 {
            let publishers = [(); 4].map(|()| {
                let bus = bus.clone();
                tokio::spawn(async move {
                    for number in 0..100 {
                        // Two writers of one document would be refused by the log.
                        bus.publish(note(&document("doc"), number)).await.unwrap();
                    }
                })
            });
            for publisher in publishers {
                publisher.await.unwrap();
            }
            // Unused, the document is evicted.
            while bus.stats().open_channels > 0 {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, publishing).await.expect("a publisher, or an eviction, never ends");
    drop(running);
    sweeping.join().unwrap();
    assert!(bus.stats().channels_evicted > 0);
}

#[tokio::test]
async fn an_event_that_closes_something_finds_a_place_beyond_the_limit_of_documents() {
    let bus = over(MemoryLog::new(), config(|c| c.max_channels = 2));
    let held = [subscribe(&bus, "one", EVERYTHING).await, subscribe(&bus, "two", EVERYTHING).await];
    for name in ["one", "two"] {
        bus.publish(note(&document(name), 1)).await.unwrap();
    }
    let refused = bus.publish(note(&document("three"), 1)).await;
    assert!(matches!(refused, Err(PublishError::TooManyDocuments { open: 2 })), "{refused:?}");
    for name in ["three", "four", "five"] {
        bus.publish(note(&document(name), 1).closing()).await.unwrap();
    }
    assert!(bus.stats().channel_places <= 3);
    // The limit holds for everything else, and what is idle makes way.
    assert!(bus.publish(note(&document("six"), 1)).await.is_err());
    drop(held);
    bus.publish(note(&document("six"), 1)).await.unwrap();
    assert_eq!(bus.stats().open_channels, 2);
}

#[tokio::test]
async fn a_document_with_damaged_events_is_read_and_goes_on() {
    for small in [false, true] {
        let log = MemoryLog::new();
        let doc = document("doc");
        let bus = over(log.clone(), BusConfig::default());
        for n in 1..=6 {
            bus.publish(note(&doc, n)).await.unwrap();
        }
        for seq in [1, 3, 6] {
            log.damage(&doc, Seq::new(seq));
        }
        let config = config(|c| {
            if small {
                (c.cache_events, c.preload_events) = (2, 2);
            }
        });
        let bus = over(log.clone(), config);
        let mut events = subscribe(&bus, "doc", EVERYTHING).await;
        let mut read = Vec::new();
        while read.len() < 6 {
            let event = events.next().await.unwrap().unwrap();
            read.push((event.seq.unwrap().get(), event.is_lost()));
        }
        assert_eq!(read, [(1, true), (2, false), (3, true), (4, false), (5, false), (6, true)]);
        assert_eq!(bus.publish(note(&doc, 7)).await.unwrap().seq, Some(Seq::new(7)));
        assert_eq!(number(&events.next().await.unwrap().unwrap()), 7);
    }
}
