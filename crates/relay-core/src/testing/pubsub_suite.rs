//! The suite for [`EventSink`], [`EventSource`] and [`EventStream`]: the two ends of one ordered stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::checked;
use super::waiting::{WakeSignal, bounded};
use crate::actor::Actor;
use crate::checked::CheckedDraft;
use crate::event::{Draft, Event};
use crate::id::{DocumentId, EventId, UserId};
use crate::kind::{DeliveryClass, Kind};
use crate::log::ReadLimit;
use crate::payload::{JsonText, Payload};
use crate::position::{Epoch, Seq};
use crate::pubsub::{EventSink, EventSource, EventStream, PublishAck, PublishError};
use crate::subscribe_ack::{Recovery, ResetReason, StartPosition};

const NOTE: Kind = Kind::from_static("x-suite", DeliveryClass::Sequenced);
const VISIT: Kind = Kind::from_static("x-logged-suite", DeliveryClass::Logged);
const CURSOR: Kind = Kind::from_static("x-ephemeral-suite", DeliveryClass::Ephemeral);
const EVERYTHING: StartPosition = StartPosition::After { epoch: None, seq: Seq::ZERO };

/// Runs the whole suite against a sink and the source that gives back what it takes. Both must keep at least 100 events of
/// a document, and must not know any document whose id begins with `suite/`. With a limit of 30 documents in use, the suite
/// finds documents that a dropped subscription leaves in use.
///
/// # Panics
/// When a contract is broken; the message says how.
pub async fn pubsub_suite(sink: &dyn EventSink, source: &dyn EventSource) {
    bounded("the suite of sinks and sources", async {
        acknowledged_events_are_delivered_in_order(sink, source).await;
        drafts_take_their_places_in_the_order_of_first_polls(sink, source).await;
        a_draft_that_is_sent_again_becomes_no_second_event(sink, source).await;
        a_subscriber_continues_where_it_was(sink, source).await;
        a_position_that_cannot_be_continued_is_reset(sink, source).await;
        history_comes_in_pages(sink, source).await;
        a_logged_event_takes_its_place_and_reaches_no_reader(sink, source).await;
        only_the_newest_ephemeral_event_of_a_key_is_left(sink, source).await;
        a_forked_stream_delivers_the_same(sink, source).await;
        a_reader_that_waits_is_woken(sink, source).await;
        a_dropped_publish_leaves_the_order_whole(sink, source).await;
        a_dropped_subscribe_leaves_nothing_behind(sink, source).await;
    })
    .await;
}

fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap_or_else(|error| panic!("{error}"))
}

fn draft(document: &DocumentId, kind: Kind, number: u64) -> CheckedDraft {
    let payload = Payload::json(&number).unwrap_or_else(|error| panic!("{error}"));
    checked(Draft::new(document.clone(), kind, payload))
}

fn number(event: &Event) -> u64 {
    let Payload::Json(text) = &event.payload else { panic!("{event:?} carries no number") };
    text.as_str().parse().unwrap_or_else(|_| panic!("{event:?} carries no number"))
}

async fn publish(sink: &dyn EventSink, draft: CheckedDraft) -> PublishAck {
    sink.publish(draft).await.unwrap_or_else(|error| panic!("a draft was refused: {error}"))
}

/// Publishes all drafts at once: their futures are polled one after the other, and only then awaited.
async fn publish_in_order_of_polls(sink: &dyn EventSink, drafts: Vec<CheckedDraft>) -> Vec<PublishAck> {
    let mut publishing: Vec<Pin<Box<_>>> =
        drafts.into_iter().map(|draft| Box::pin(sink.publish(draft))).collect();
    let mut acks = vec![None; publishing.len()];
    for (future, ack) in publishing.iter_mut().zip(&mut acks) {
        if let std::task::Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            *ack = Some(outcome);
        }
    }
    let mut all = Vec::new();
    for (future, ack) in publishing.into_iter().zip(acks) {
        let outcome = match ack {
            Some(outcome) => outcome,
            None => future.await,
        };
        all.push(outcome.unwrap_or_else(|error| panic!("a draft was refused: {error}")));
    }
    all
}

async fn subscribe(
    source: &dyn EventSource,
    document: &DocumentId,
    start: StartPosition,
) -> (Recovery, Epoch, Box<dyn EventStream>) {
    let (ack, stream) = source
        .subscribe(document, start)
        .await
        .unwrap_or_else(|error| panic!("a subscription was refused: {error}"));
    (ack.recovery, ack.head.epoch, stream)
}

/// The next event, which must come.
async fn next(stream: &mut dyn EventStream) -> Arc<Event> {
    match poll_fn(|cx| stream.poll_next(cx)).await {
        Some(Ok(event)) => event,
        Some(Err(error)) => panic!("the stream failed: {error}"),
        None => panic!("the stream is over"),
    }
}

async fn next_numbers(stream: &mut dyn EventStream, count: usize) -> Vec<u64> {
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        numbers.push(number(&*next(stream).await));
    }
    numbers
}

async fn acknowledged_events_are_delivered_in_order(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/order");
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    for n in 1..=5 {
        let ack = publish(sink, draft(&doc, NOTE, n)).await;
        assert_eq!(ack.seq, Some(Seq::new(n)), "seqs go on from 1 without a gap");
        assert!(!ack.duplicate);
        let event = next(&mut *stream).await;
        assert_eq!((event.id, event.seq, event.epoch), (ack.id, ack.seq, ack.epoch));
        assert_eq!((event.offset, event.time, number(&event)), (ack.offset, ack.time, n));
    }
}

async fn drafts_take_their_places_in_the_order_of_first_polls(
    sink: &dyn EventSink,
    source: &dyn EventSource,
) {
    let doc = document("suite/polls");
    // The order of polls is promised while the document has a subscriber.
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    let acks = publish_in_order_of_polls(sink, (1..=20).map(|n| draft(&doc, NOTE, n)).collect()).await;
    for (n, ack) in (1..).zip(acks) {
        assert_eq!(ack.seq, Some(Seq::new(n)), "the draft polled first gets the earlier seq");
    }
    assert_eq!(next_numbers(&mut *stream, 20).await, (1..=20).collect::<Vec<_>>());
}

async fn a_draft_that_is_sent_again_becomes_no_second_event(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/again");
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    let id = EventId::new();
    let first = publish(sink, draft(&doc, NOTE, 1).id(id)).await;
    let again = publish(sink, draft(&doc, NOTE, 1).id(id)).await;
    assert_eq!(again, first.as_duplicate());
    let other = sink.publish(draft(&doc, NOTE, 2).id(id)).await;
    assert!(matches!(other, Err(PublishError::IdConflict { .. })), "another event has the id: {other:?}");
    let text = JsonText::parse(" 1\n".into()).unwrap_or_else(|error| panic!("{error}"));
    let spaced = checked(Draft::new(doc.clone(), NOTE, Payload::Json(text)).id(id));
    assert_eq!(publish(sink, spaced).await, first.as_duplicate(), "white space has no meaning");
    let third = publish(sink, draft(&doc, NOTE, 3)).await;
    let again = publish(sink, draft(&doc, NOTE, 3).id(third.id)).await;
    assert_eq!(again, third.as_duplicate(), "the sink's own id is an id, too");
    publish(sink, draft(&doc, NOTE, 4)).await;
    assert_eq!(next_numbers(&mut *stream, 3).await, [1, 3, 4]);
}

async fn a_subscriber_continues_where_it_was(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/continue");
    let (_, epoch, held) = subscribe(source, &doc, StartPosition::Live).await;
    for n in 1..=6 {
        publish(sink, draft(&doc, NOTE, n)).await;
    }
    let from = |seq| StartPosition::After { epoch: Some(epoch), seq: Seq::new(seq) };
    let (recovery, _, mut stream) = subscribe(source, &doc, from(2)).await;
    assert_eq!(recovery, Recovery::Recovered);
    publish(sink, draft(&doc, NOTE, 7)).await;
    assert_eq!(next_numbers(&mut *stream, 5).await, [3, 4, 5, 6, 7]);
    let (recovery, _, mut level) = subscribe(source, &doc, from(7)).await;
    assert_eq!(recovery, Recovery::Recovered);
    publish(sink, draft(&doc, NOTE, 8)).await;
    assert_eq!(next_numbers(&mut *level, 1).await, [8], "a reader at the head gets what follows alone");
    drop(held);
}

async fn a_position_that_cannot_be_continued_is_reset(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/reset");
    let (_, epoch, held) = subscribe(source, &doc, StartPosition::Live).await;
    publish(sink, draft(&doc, NOTE, 1)).await;
    let other = Epoch::from_u64(epoch.as_u64() ^ 1);
    let cases = [
        (StartPosition::After { epoch: Some(other), seq: Seq::FIRST }, ResetReason::EpochChanged),
        (StartPosition::After { epoch: Some(epoch), seq: Seq::new(99) }, ResetReason::Ahead),
    ];
    for (start, reason) in cases {
        let (recovery, _, mut stream) = subscribe(source, &doc, start).await;
        assert_eq!(recovery, Recovery::Reset(reason), "{start:?}");
        assert_eq!(next_numbers(&mut *stream, 1).await, [1], "after a reset all that is kept follows");
    }
    drop(held);
}

async fn history_comes_in_pages(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/pages");
    let (_, _, held) = subscribe(source, &doc, StartPosition::Live).await;
    for n in 1..=10 {
        publish(sink, draft(&doc, NOTE, n)).await;
    }
    let limit = ReadLimit { events: 4, bytes: usize::MAX };
    let mut seen = Vec::new();
    loop {
        let (kept, page) = source
            .history(&doc, Seq::new(seen.len() as u64), limit)
            .await
            .unwrap_or_else(|error| panic!("history was refused: {error}"));
        assert_eq!((kept.first, kept.last), (Seq::FIRST, Seq::new(10)));
        assert!(page.len() <= limit.events, "a page of {} events", page.len());
        if page.is_empty() {
            break;
        }
        seen.extend(page.iter().map(|event| number(event)));
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    drop(held);
}

async fn a_logged_event_takes_its_place_and_reaches_no_reader(
    sink: &dyn EventSink,
    source: &dyn EventSource,
) {
    let doc = document("suite/logged");
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    let kinds = [VISIT, NOTE, VISIT, NOTE].into_iter().zip(1..);
    let drafts = kinds.map(|(kind, n)| draft(&doc, kind, n)).collect();
    let kept = publish_in_order_of_polls(sink, drafts).await;
    let seqs: Vec<_> = kept.iter().map(|ack| ack.seq.map(Seq::get)).collect();
    assert_eq!(seqs, [None, Some(1), None, Some(2)], "a logged event has no seq");
    let offsets: Vec<_> = kept.iter().filter_map(|ack| ack.offset).collect();
    assert!(offsets.is_empty() || offsets.len() == 4, "where there is a log, each has an offset: {kept:?}");
    assert!(offsets.is_sorted_by(|one, next| one < next), "the draft polled first comes first: {offsets:?}");
    assert_eq!(next_numbers(&mut *stream, 2).await, [2, 4], "no subscriber gets a logged event");
    let waits = stream.poll_next(&mut Context::from_waker(Waker::noop())).is_pending();
    assert!(waits, "no subscriber gets a logged event");
    let limit = ReadLimit::default();
    let history = source.history(&doc, Seq::ZERO, limit).await;
    let (_, events) = history.unwrap_or_else(|error| panic!("the history was refused: {error}"));
    let numbers: Vec<u64> = events.iter().map(|event| number(event)).collect();
    assert_eq!(numbers, [2, 4], "no logged event is replayed");
}

async fn only_the_newest_ephemeral_event_of_a_key_is_left(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/ephemeral");
    let user = |name: &str| Actor::User(UserId::new(name).unwrap_or_else(|error| panic!("{error}")));
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    for n in 1..=9 {
        let ack = publish(sink, draft(&doc, CURSOR, n).actor(user("ada")).key("tab")).await;
        assert_eq!((ack.seq, ack.offset), (None, None), "an ephemeral event has no place");
    }
    publish(sink, draft(&doc, CURSOR, 100).actor(user("bob")).key("tab")).await;
    let mut numbers = next_numbers(&mut *stream, 2).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [9, 100], "a slow reader gets the newest of each actor and key");
    let (_, _, mut late) = subscribe(source, &doc, EVERYTHING).await;
    publish(sink, draft(&doc, NOTE, 7)).await;
    assert_eq!(next(&mut *late).await.seq, Some(Seq::FIRST), "ephemeral events are not replayed");
}

async fn a_forked_stream_delivers_the_same(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/fork");
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    for n in 1..=3 {
        publish(sink, draft(&doc, NOTE, n)).await;
    }
    assert_eq!(next_numbers(&mut *stream, 1).await, [1]);
    let mut fork = stream.fork();
    publish(sink, draft(&doc, NOTE, 4)).await;
    assert_eq!(next_numbers(&mut *fork, 3).await, [2, 3, 4]);
    assert_eq!(next_numbers(&mut *stream, 3).await, [2, 3, 4]);
    // Polled until nothing is left, both have a position, and it is the same one.
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(stream.poll_next(cx).is_pending() && fork.poll_next(cx).is_pending());
    assert!(stream.position().is_some());
    assert_eq!(stream.position(), fork.position());
}

async fn a_reader_that_waits_is_woken(sink: &dyn EventSink, source: &dyn EventSource) {
    let doc = document("suite/waiting");
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    let (_, _, mut other) = subscribe(source, &doc, StartPosition::Live).await;
    for (n, kind) in [(1, NOTE), (2, CURSOR), (3, NOTE)] {
        let (former, last, of_other) = (WakeSignal::new(), WakeSignal::new(), WakeSignal::new());
        let poll = |task: &Arc<WakeSignal>, stream: &mut Box<dyn EventStream>| {
            task.poll(&mut poll_fn(|cx| stream.poll_next(cx)))
        };
        assert!(poll(&former, &mut stream).is_pending(), "there is no event");
        assert!(poll(&last, &mut stream).is_pending(), "nor when another task asks");
        assert!(!former.is_held(), "the last task alone is kept");
        assert!(poll(&of_other, &mut other).is_pending());
        publish(sink, draft(&doc, kind, n)).await;
        last.woken().await;
        of_other.woken().await;
        assert_eq!(next_numbers(&mut *stream, 1).await, [n], "a wait that was dropped loses no event");
        assert_eq!(next_numbers(&mut *other, 1).await, [n]);
    }
    let (task, of_other) = (WakeSignal::new(), WakeSignal::new());
    assert!(task.poll(&mut poll_fn(|cx| stream.poll_next(cx))).is_pending());
    assert!(of_other.poll(&mut poll_fn(|cx| other.poll_next(cx))).is_pending());
    drop(stream);
    assert!(!task.is_held(), "a dropped stream leaves its waker behind");
    publish(sink, draft(&doc, NOTE, 4)).await;
    of_other.woken().await;
    assert_eq!(next_numbers(&mut *other, 1).await, [4], "the other streams go on");
}

async fn a_dropped_publish_leaves_the_order_whole(sink: &dyn EventSink, source: &dyn EventSource) {
    const DROPPED: u64 = 100;
    let doc = document("suite/dropped");
    let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
    drop(sink.publish(draft(&doc, NOTE, DROPPED)));
    for n in 1..=10 {
        let mut publishing = sink.publish(draft(&doc, NOTE, DROPPED + n));
        let _ = WakeSignal::new().poll(&mut publishing);
        drop(publishing);
        publish(sink, draft(&doc, NOTE, n)).await;
    }
    let mut numbers = Vec::new();
    while numbers.last() != Some(&10) {
        let event = next(&mut *stream).await;
        numbers.push(number(&event));
        assert_eq!(event.seq, Some(Seq::new(numbers.len() as u64)), "seqs have no gap");
    }
    // A dropped draft happened, before the one that was published after it, or not at all.
    let happened = |n| numbers.contains(&(DROPPED + n));
    let expected = (1..=10).flat_map(|n| [happened(n).then_some(DROPPED + n), Some(n)]);
    assert_eq!(numbers, expected.flatten().collect::<Vec<_>>());
}

async fn a_dropped_subscribe_leaves_nothing_behind(sink: &dyn EventSink, source: &dyn EventSource) {
    for n in 0..100 {
        let doc = document(&format!("suite/abandoned/{n}"));
        let mut subscribing = source.subscribe(&doc, EVERYTHING);
        let _ = WakeSignal::new().poll(&mut subscribing);
    }
    let doc = document("suite/abandoned");
    for start in [StartPosition::Live, EVERYTHING] {
        let mut subscribing = source.subscribe(&doc, start);
        let _ = WakeSignal::new().poll(&mut subscribing);
        drop(subscribing);
        let (_, _, mut stream) = subscribe(source, &doc, StartPosition::Live).await;
        publish(sink, draft(&doc, NOTE, 1)).await;
        assert_eq!(next_numbers(&mut *stream, 1).await, [1]);
    }
}
