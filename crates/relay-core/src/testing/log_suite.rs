//! The suite for [`EventLog`]: the contract as one list of checks.

use std::task::Poll;

use super::waiting::{WakeSignal, bounded};
use crate::event::{Draft, Event};
use crate::id::DocumentId;
use crate::kind::{DeliveryClass, Kind};
use crate::log::{EventLog, Head, LogError, ReadLimit};
use crate::payload::{Absence, Payload};
use crate::position::{Epoch, Offset, Seq};
use crate::time::Timestamp;

const EVERYTHING: ReadLimit = ReadLimit { events: usize::MAX, bytes: usize::MAX };

/// Runs the whole suite against `log`, which must be empty, keep at least 100 events per document, and take events of
/// 10 KB. Closes it.
///
/// `spoil` gets a batch that fits. It returns one that the log refuses for another reason than its place, or makes the log
/// refuse the next batch.
///
/// # Panics
/// When the log breaks its contract; the message says how.
pub async fn log_suite(log: &dyn EventLog, spoil: impl FnOnce(Vec<Event>) -> Vec<Event>) {
    bounded("the suite of logs", async {
        an_unknown_document_is_empty_and_keeps_its_epoch(log).await;
        appended_events_are_read_back_in_order(log).await;
        offsets_grow_over_all_documents(log).await;
        an_append_that_does_not_follow_is_refused_whole(log).await;
        a_refused_append_leaves_nothing_behind(log, spoil).await;
        one_of_two_appends_at_the_same_head_is_refused(log).await;
        a_dropped_append_is_kept_whole_or_not_at_all(log).await;
        a_trimmed_history_says_so_and_goes_on_counting(log).await;
        pages_end_where_the_limit_says(log).await;
        each_event_of_a_batch_has_its_offset(log).await;
        logged_events_are_read_by_offset_and_leave_the_head_alone(log).await;
        a_logged_event_that_does_not_fit_is_refused(log).await;
        a_waiter_is_woken_by_the_next_event(log).await;
        a_closed_log_says_so(log).await;
    })
    .await;
}

/// Runs the part of the suite about holds against `log`, which must be empty and keep 10 events per document.
/// `apply_retention` returns when retention has dropped what it may drop.
///
/// # Panics
/// When the log breaks its contract; the message says how.
pub async fn hold_suite(log: &dyn EventLog, apply_retention: impl AsyncFn()) {
    bounded("the suite of holds", async {
        let (held, other) = (document("suite/held"), document("suite/other"));
        let epoch = head(log, &held).await.epoch;
        append(log, &held, epoch, 1..=5).await;
        let through = last_offset(log).await;
        log.hold(Some(through));
        append(log, &held, epoch, 6..=30).await;
        append(log, &other, epoch, 1..=30).await;
        apply_retention().await;
        let first = async |document| head(log, document).await.first.get();
        assert_eq!(first(&held).await, 6, "what is not held goes, and what is held stays");
        assert_eq!(first(&other).await, 1, "a hold covers all documents");
        let after = read_past(log, through, ReadLimit { events: 1, ..EVERYTHING }).await;
        log.hold(after.first().and_then(|event| event.offset));
        apply_retention().await;
        assert_eq!(first(&held).await, 7, "the hold moves on");
        log.trim(&held, Seq::new(9)).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(first(&held).await, 10, "a hold does not bind a caller's trim");
        assert_eq!(log.stats().dropped_held_events, 0, "nor is that trim retention's");
        log.hold(None);
        apply_retention().await;
        assert_eq!((first(&held).await, first(&other).await), (21, 21), "without a hold the limits apply");
    })
    .await;
}

/// The seqs of the events that [`damaged_log_suite`] wants damaged.
pub const DAMAGED: [u64; 3] = [1, 3, 6];

/// Fills `log`, which is empty, for [`damaged_log_suite`]. Returns the document whose events with the seqs [`DAMAGED`] the caller
/// damages then.
///
/// # Panics
/// When the log refuses the events.
pub async fn fill_to_be_damaged(log: &dyn EventLog) -> DocumentId {
    let doc = document("suite/damaged");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=3).await;
    append(log, &document("suite/whole"), epoch, 1..=2).await;
    append(log, &doc, epoch, 4..=6).await;
    doc
}

/// Checks that a log which was [filled](fill_to_be_damaged) and damaged passes the damaged events, and goes on.
///
/// # Panics
/// When the log breaks its contract; the message says how.
pub async fn damaged_log_suite(log: &dyn EventLog) {
    let (doc, whole) = (document("suite/damaged"), document("suite/whole"));
    let found = head(log, &doc).await;
    assert_eq!((found.first, found.last), (Seq::FIRST, Seq::new(6)));
    let is_damaged = |event: &Event| DAMAGED.contains(&event.seq.unwrap_or_default().get());
    for limit in [EVERYTHING, ReadLimit { events: 1, bytes: usize::MAX }] {
        for start in 0..=6 {
            let mut after = Seq::new(start);
            let mut read = Vec::new();
            while after < found.last {
                let page = log.read_document(&doc, after, limit).await.unwrap_or_else(|e| panic!("{e}"));
                after =
                    page.last().and_then(|event| event.seq).unwrap_or_else(|| panic!("{page:?} is no page"));
                read.extend(page);
            }
            assert_eq!(seqs(&read), (start + 1..=6).collect::<Vec<_>>());
            for event in &read {
                assert_eq!(event.is_lost(), is_damaged(event), "{event:?}");
                assert_eq!((&event.document, event.epoch), (&doc, found.epoch));
            }
        }
        let (mut after, mut read) = (Offset::ZERO, Vec::new());
        loop {
            let page = read_past(log, after, limit).await;
            let Some(last) = page.last() else { break };
            after = last.offset.unwrap_or_else(|| panic!("{last:?} has no offset"));
            read.extend(page);
        }
        let places: Vec<_> =
            read.iter().map(|event| (&event.document, event.seq.unwrap_or_default().get())).collect();
        let of = |doc, seqs: [u64; 3]| seqs.map(|seq| (doc, seq));
        let expected = [&of(&doc, [1, 2, 3])[..], &[(&whole, 1), (&whole, 2)], &of(&doc, [4, 5, 6])].concat();
        assert_eq!(places, expected);
        for event in &read {
            assert_eq!(event.is_lost(), event.document == doc && is_damaged(event), "{event:?}");
        }
    }
    append(log, &doc, found.epoch, 7..=7).await;
    let trimmed = log.trim(&doc, Seq::new(3)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((trimmed.first, trimmed.last), (Seq::new(4), Seq::new(7)));
    assert_eq!(read(log, &doc, 3).await.ok(), Some(vec![4, 5, 6, 7]));
    let left = read_past(log, Offset::ZERO, EVERYTHING).await;
    assert_eq!(seqs(&left), [1, 2, 4, 5, 6, 7], "dropped events are passed over, damaged ones too");
}

fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap_or_else(|e| panic!("{e}"))
}

/// Returns a logged event.
fn logged(document: &DocumentId, epoch: Epoch, text: &str) -> Event {
    let kind = Kind::from_static("x-logged", DeliveryClass::Logged);
    Event { seq: None, kind, ..event(document, epoch, 0, text) }
}

fn event(document: &DocumentId, epoch: Epoch, seq: u64, text: &str) -> Event {
    let kind = Kind::from_static("x-suite", DeliveryClass::Sequenced);
    let payload = Payload::json(&text).unwrap_or_else(|e| panic!("{e}"));
    Draft::new(document.clone(), kind, payload).into_event(
        epoch,
        Some(Seq::new(seq)),
        Timestamp::from_micros(1_800_000_000_000_000),
    )
}

async fn append(
    log: &dyn EventLog,
    document: &DocumentId,
    epoch: Epoch,
    seqs: std::ops::RangeInclusive<u64>,
) {
    let events: Vec<Event> = seqs.map(|seq| event(document, epoch, seq, &format!("event {seq}"))).collect();
    log.append(document, &events).await.unwrap_or_else(|e| panic!("append refused: {e}"));
}

async fn head(log: &dyn EventLog, document: &DocumentId) -> Head {
    log.head(document).await.unwrap_or_else(|e| panic!("head refused: {e}"))
}

async fn last_offset(log: &dyn EventLog) -> Offset {
    log.last_offset().await.unwrap_or_else(|e| panic!("last offset refused: {e}"))
}

async fn read(log: &dyn EventLog, document: &DocumentId, after: u64) -> Result<Vec<u64>, LogError> {
    Ok(seqs(&log.read_document(document, Seq::new(after), EVERYTHING).await?))
}

async fn read_past(log: &dyn EventLog, after: Offset, limit: ReadLimit) -> Vec<Event> {
    log.read(after, limit).await.unwrap_or_else(|e| panic!("read refused: {e}"))
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.seq.unwrap_or_default().get()).collect()
}

async fn an_unknown_document_is_empty_and_keeps_its_epoch(log: &dyn EventLog) {
    let unknown = document("suite/unknown");
    let first = head(log, &unknown).await;
    assert_eq!((first.first, first.last), (Seq::FIRST, Seq::ZERO));
    assert_eq!(head(log, &unknown).await, first, "asking twice gives the same epoch");
    assert_eq!(read(log, &unknown, 0).await.ok(), Some(vec![]));
    assert_eq!(read(log, &unknown, 9).await.ok(), Some(vec![]));
    assert_eq!(last_offset(log).await, Offset::ZERO, "there never was an event");
    assert_eq!(read_past(log, Offset::ZERO, EVERYTHING).await, []);
    append(log, &unknown, first.epoch, 1..=1).await;
    assert_eq!(
        head(log, &unknown).await.epoch,
        first.epoch,
        "the first append keeps the epoch that was shown"
    );
}

async fn appended_events_are_read_back_in_order(log: &dyn EventLog) {
    let doc = document("suite/order");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=3).await;
    append(log, &doc, epoch, 4..=4).await;
    assert_eq!(read(log, &doc, 0).await.ok(), Some(vec![1, 2, 3, 4]));
    assert_eq!(read(log, &doc, 2).await.ok(), Some(vec![3, 4]));
    assert_eq!(read(log, &doc, 4).await.ok(), Some(vec![]));
    assert_eq!(read(log, &doc, 99).await.ok(), Some(vec![]));
    let events = log.read_document(&doc, Seq::new(3), ReadLimit::default()).await.unwrap_or_default();
    let mut expected = event(&doc, epoch, 4, "event 4");
    expected.id = events[0].id;
    expected.offset = events[0].offset;
    assert_eq!(events, [expected], "an event comes back as it was");
    assert!(events[0].offset.is_some(), "with its offset");
    // A name that begins like another document's is another document.
    assert_eq!(read(log, &document("suite/orde"), 0).await.ok(), Some(vec![]));
    assert_eq!(read(log, &document("suite/order/2"), 0).await.ok(), Some(vec![]));
}

async fn offsets_grow_over_all_documents(log: &dyn EventLog) {
    let (a, b) = (document("suite/a"), document("suite/b"));
    let epoch = head(log, &a).await.epoch;
    let mut last = Offset::ZERO;
    for seq in 1..=5 {
        for doc in [&a, &b] {
            let got = log.append(doc, &[event(doc, epoch, seq, "x")]).await.unwrap_or_else(|e| panic!("{e}"));
            let [got] = got[..] else { panic!("one event has one offset, not {got:?}") };
            assert!(got > last, "offset {got} follows {last}");
            assert_eq!(last_offset(log).await, got, "the event is visible when its append returns");
            last = got;
        }
    }
    let mut after = Offset::ZERO;
    let mut seen = Vec::new();
    loop {
        let page = read_past(log, after, ReadLimit { events: 3, bytes: usize::MAX }).await;
        assert!(page.iter().all(|event| event.offset.is_some()), "each event has its offset");
        let Some(end) = page.last().and_then(|e| e.offset) else { break };
        assert!(end > after, "reading makes progress");
        after = end;
        seen.extend(page.into_iter().filter(|e| e.document == a || e.document == b));
    }
    let seen: Vec<_> = seen.iter().map(|e| (e.document.as_str(), e.seq.unwrap_or_default().get())).collect();
    let expected: Vec<_> = (1..=5).flat_map(|seq| [("suite/a", seq), ("suite/b", seq)]).collect();
    assert_eq!(seen, expected);
}

async fn an_append_that_does_not_follow_is_refused_whole(log: &dyn EventLog) {
    let doc = document("suite/conflict");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=2).await;
    let gap = [event(&doc, epoch, 3, "fits"), event(&doc, epoch, 5, "leaves a gap")];
    assert!(matches!(log.append(&doc, &gap).await, Err(LogError::Conflict { .. })));
    let again = [event(&doc, epoch, 2, "was there")];
    assert!(matches!(log.append(&doc, &again).await, Err(LogError::Conflict { .. })));
    let other = [event(&doc, Epoch::from_u64(epoch.as_u64() ^ 1), 3, "of another epoch")];
    assert!(matches!(log.append(&doc, &other).await, Err(LogError::Conflict { .. })));
    let elsewhere = [event(&document("suite/conflict/2"), epoch, 3, "of another document")];
    assert!(matches!(log.append(&doc, &elsewhere).await, Err(LogError::Conflict { .. })));
    let nowhere = [Event { seq: None, ..event(&doc, epoch, 3, "without a seq") }];
    assert!(matches!(log.append(&doc, &nowhere).await, Err(LogError::Conflict { .. })));
    assert_eq!(read(log, &doc, 0).await.ok(), Some(vec![1, 2]), "nothing of a refused batch is kept");
    append(log, &doc, epoch, 3..=3).await;
}

async fn a_refused_append_leaves_nothing_behind(
    log: &dyn EventLog,
    spoil: impl FnOnce(Vec<Event>) -> Vec<Event>,
) {
    let doc = document("suite/refused");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=2).await;
    let (before, last) = (head(log, &doc).await, last_offset(log).await);
    let task = WakeSignal::new();
    let mut waiting = log.wait_past(last);
    assert!(task.poll(&mut waiting).is_pending());
    let gap = vec![event(&doc, epoch, 3, "fits"), event(&doc, epoch, 5, "leaves a gap")];
    let spoilt = spoil(vec![event(&doc, epoch, 3, "fits"), event(&doc, epoch, 4, "fits")]);
    let mut absent = vec![event(&doc, epoch, 3, "fits"), event(&doc, epoch, 4, "has no content")];
    absent[1].payload = Payload::Absent(Absence::Expired);
    for batch in [spoilt, gap, absent] {
        let refused = log.append(&doc, &batch).await;
        let error = refused.err().unwrap_or_else(|| panic!("{batch:?} is taken"));
        if let LogError::Conflict { head, .. } = error {
            assert_eq!(head, before, "a conflict names the head");
        }
        assert_eq!(head(log, &doc).await, before, "after {error}");
        assert_eq!(last_offset(log).await, last, "after {error}");
        assert_eq!(read(log, &doc, 0).await.ok(), Some(vec![1, 2]), "after {error}");
        assert_eq!(read_past(log, last, EVERYTHING).await, [], "after {error}");
        assert!(task.poll(&mut waiting).is_pending(), "after {error}");
    }
    append(log, &doc, epoch, 3..=3).await;
    assert_eq!(read(log, &doc, 0).await.ok(), Some(vec![1, 2, 3]));
}

async fn one_of_two_appends_at_the_same_head_is_refused(log: &dyn EventLog) {
    let doc = document("suite/owners");
    let epoch = head(log, &doc).await.epoch;
    let (mine, theirs) = ([event(&doc, epoch, 1, "mine")], [event(&doc, epoch, 1, "theirs")]);
    let task = WakeSignal::new();
    let mut appending = [(log.append(&doc, &mine), None), (log.append(&doc, &theirs), None)];
    for (future, outcome) in &mut appending {
        if let Poll::Ready(ready) = task.poll(future) {
            *outcome = Some(ready);
        }
    }
    let mut kept = 0;
    for (future, outcome) in appending {
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => future.await,
        };
        match outcome {
            Ok(_) => kept += 1,
            Err(error) => assert!(matches!(error, LogError::Conflict { .. }), "{error}"),
        }
    }
    assert_eq!((kept, read(log, &doc, 0).await.ok()), (1, Some(vec![1])));
}

async fn a_dropped_append_is_kept_whole_or_not_at_all(log: &dyn EventLog) {
    let doc = document("suite/dropped");
    let epoch = head(log, &doc).await.epoch;
    let batch: Vec<Event> = (1..=3).map(|seq| event(&doc, epoch, seq, "dropped")).collect();
    let mut appending = log.append(&doc, &batch);
    let _ = WakeSignal::new().poll(&mut appending);
    drop(appending);
    let last = loop {
        let next = head(log, &doc).await.last.next();
        match log.append(&doc, &[event(&doc, epoch, next.get(), "after it")]).await {
            Ok(_) => break next,
            // The dropped append came between.
            Err(LogError::Conflict { .. }) => {}
            Err(error) => panic!("append refused: {error}"),
        }
    };
    assert!([1, 4].contains(&last.get()), "{last} follows a part of the batch");
    assert_eq!(read(log, &doc, 0).await.ok(), Some((1..=last.get()).collect()));
}

async fn a_trimmed_history_says_so_and_goes_on_counting(log: &dyn EventLog) {
    let doc = document("suite/trim");
    let epoch = head(log, &doc).await.epoch;
    let before = last_offset(log).await;
    append(log, &doc, epoch, 1..=10).await;
    let last = last_offset(log).await;
    let trimmed = log.trim(&doc, Seq::new(4)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(trimmed, Head { epoch, first: Seq::new(5), last: Seq::new(10) });
    assert_eq!(head(log, &doc).await, trimmed);
    assert!(matches!(read(log, &doc, 3).await, Err(LogError::Trimmed { first, .. }) if first == Seq::new(5)));
    assert_eq!(read(log, &doc, 4).await.ok(), Some((5..=10).collect()));
    let kept = read_past(log, before, EVERYTHING).await;
    assert_eq!(seqs(&kept), (5..=10).collect::<Vec<_>>(), "dropped events are passed over");
    // Trimming less than before, or more than there is, does no harm.
    log.trim(&doc, Seq::new(2)).await.unwrap_or_else(|e| panic!("{e}"));
    log.trim(&doc, Seq::new(99)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(head(log, &doc).await, Head { epoch, first: Seq::new(11), last: Seq::new(10) });
    assert_eq!(last_offset(log).await, last, "trimming takes no offset back");
    append(log, &doc, epoch, 11..=11).await;
    assert_eq!(read(log, &doc, 10).await.ok(), Some(vec![11]));
    assert!(last_offset(log).await > last, "no offset is used twice");
    let unknown = document("suite/trim/unknown");
    let empty = head(log, &unknown).await;
    assert_eq!(log.trim(&unknown, Seq::new(9)).await.ok(), Some(empty));
}

async fn pages_end_where_the_limit_says(log: &dyn EventLog) {
    let doc = document("suite/pages");
    let epoch = head(log, &doc).await.epoch;
    let small = last_offset(log).await;
    append(log, &doc, epoch, 1..=20).await;
    let large = last_offset(log).await;
    // The encoded size is that of the text and some bytes more.
    let text = "x".repeat(10_000);
    let batch: Vec<Event> = (21..=28).map(|seq| event(&doc, epoch, seq, &text)).collect();
    log.append(&doc, &batch).await.unwrap_or_else(|e| panic!("append refused: {e}"));
    let cases = [
        (0, small, 7, usize::MAX, 7),
        (20, large, 3, usize::MAX, 3),
        (20, large, usize::MAX, usize::MAX, 8),
        (20, large, usize::MAX, 35_000, 3),
        (20, large, 2, 35_000, 2),
        (0, small, 7, 1, 1),
        (20, large, 7, 0, 1),
        (20, large, 0, usize::MAX, 1),
    ];
    for (after, offset, events, bytes, expected) in cases {
        let limit = ReadLimit { events, bytes };
        let expected: Vec<u64> = (after + 1..=after + expected).collect();
        let page = log.read_document(&doc, Seq::new(after), limit).await;
        assert_eq!(page.map(|page| seqs(&page)).ok(), Some(expected.clone()), "of the document, {limit:?}");
        assert_eq!(seqs(&read_past(log, offset, limit).await), expected, "of the log, {limit:?}");
    }
    assert_eq!(read(log, &doc, 26).await.ok(), Some(vec![27, 28]), "the last page is shorter");
}

async fn each_event_of_a_batch_has_its_offset(log: &dyn EventLog) {
    let doc = document("suite/offsets");
    let epoch = head(log, &doc).await.epoch;
    let batch: Vec<Event> = (1..=3).map(|seq| event(&doc, epoch, seq, "x")).collect();
    let before = last_offset(log).await;
    let offsets = log.append(&doc, &batch).await.unwrap_or_else(|e| panic!("append refused: {e}"));
    if log.offsets_are_contiguous() {
        let all: Vec<_> = std::iter::once(before).chain(offsets.iter().copied()).collect();
        assert!(all.is_sorted_by(|one, next| one.next() == *next), "the offsets have no hole: {all:?}");
    }
    let read = log.read_document(&doc, Seq::ZERO, ReadLimit::default()).await.unwrap_or_default();
    let kept: Vec<Option<Offset>> = read.iter().map(|event| event.offset).collect();
    assert_eq!(kept, offsets.iter().copied().map(Some).collect::<Vec<_>>());
    assert!(offsets.is_sorted_by(|one, next| one < next), "offsets grow within a batch: {offsets:?}");
    assert_eq!(log.append(&doc, &[]).await.ok(), Some(Vec::new()), "an empty batch has no offset");
}

async fn logged_events_are_read_by_offset_and_leave_the_head_alone(log: &dyn EventLog) {
    let doc = document("suite/logged");
    let empty = head(log, &doc).await;
    let (epoch, before) = (empty.epoch, last_offset(log).await);
    let alone = log.append(&doc, &[logged(&doc, epoch, "alone")]).await;
    assert!(matches!(alone.as_deref(), Ok([_])), "one event has one offset, not {alone:?}");
    assert_eq!(head(log, &doc).await, empty, "a logged event has no place in the history");
    let mixed = [
        logged(&doc, epoch, "before"),
        event(&doc, epoch, 1, "x"),
        logged(&doc, epoch, "between"),
        event(&doc, epoch, 2, "x"),
        logged(&doc, epoch, "after"),
    ];
    let offsets = log.append(&doc, &mixed).await.unwrap_or_else(|e| panic!("append refused: {e}"));
    assert!(offsets.len() == 5 && offsets.is_sorted_by(|one, next| one < next), "{offsets:?}");
    assert_eq!(read(log, &doc, 0).await.ok(), Some(vec![1, 2]), "the document's history has no logged event");
    append(log, &doc, epoch, 3..=3).await;
    log.trim(&doc, Seq::new(2)).await.unwrap_or_else(|e| panic!("{e}"));
    let kept = read_past(log, before, EVERYTHING).await;
    assert!(kept.is_sorted_by(|one, next| one.offset < next.offset), "{kept:?}");
    let kept: Vec<_> = kept.iter().map(|one| (one.seq.map(Seq::get), one.kind.class())).collect();
    let without_seq = (None, DeliveryClass::Logged);
    let expected = [&[without_seq; 4][..], &[(Some(3), DeliveryClass::Sequenced)]].concat();
    assert_eq!(kept, expected, "a trim drops sequenced events alone");
}

async fn a_logged_event_that_does_not_fit_is_refused(log: &dyn EventLog) {
    let doc = document("suite/logged/refused");
    let before = head(log, &doc).await;
    let (epoch, last) = (before.epoch, last_offset(log).await);
    let ephemeral = Kind::from_static("x-ephemeral-suite", DeliveryClass::Ephemeral);
    let misfits = [
        logged(&document("suite/logged/other"), epoch, "of another document"),
        logged(&doc, Epoch::from_u64(epoch.as_u64() ^ 1), "of another epoch"),
        Event { seq: Some(Seq::FIRST), ..logged(&doc, epoch, "with a seq") },
        Event { kind: ephemeral, ..logged(&doc, epoch, "ephemeral") },
    ];
    for misfit in misfits {
        let batch = [event(&doc, epoch, 1, "fits"), misfit];
        assert!(matches!(log.append(&doc, &batch).await, Err(LogError::Conflict { .. })), "{batch:?}");
    }
    let batch = [logged(&doc, epoch, "fits"), event(&doc, epoch, 2, "leaves a gap")];
    assert!(matches!(log.append(&doc, &batch).await, Err(LogError::Conflict { .. })));
    assert_eq!((head(log, &doc).await, last_offset(log).await), (before, last), "nothing is kept");
}

async fn a_waiter_is_woken_by_the_next_event(log: &dyn EventLog) {
    let doc = document("suite/wait");
    let epoch = head(log, &doc).await.epoch;
    let before = last_offset(log).await;
    append(log, &doc, epoch, 1..=1).await;
    let last = last_offset(log).await;
    assert!(last > before);
    assert_eq!(log.wait_past(before).await.ok(), Some(last), "an event that is there is not waited for");
    let tasks = [WakeSignal::new(), WakeSignal::new()];
    let mut waiting = [log.wait_past(last), log.wait_past(last)];
    for (task, future) in tasks.iter().zip(&mut waiting) {
        assert!(WakeSignal::new().poll(future).is_pending(), "there is no event past the last");
        assert!(task.poll(future).is_pending(), "nor when another task asks");
    }
    let dropped = WakeSignal::new();
    let mut given_up = log.wait_past(last);
    assert!(dropped.poll(&mut given_up).is_pending());
    drop(given_up);
    assert!(!dropped.is_held(), "a wait that is dropped leaves its waker behind");
    append(log, &doc, epoch, 2..=2).await;
    let now = last_offset(log).await;
    for (task, mut future) in tasks.iter().zip(waiting) {
        task.woken().await;
        let told = task.poll(&mut future);
        assert!(matches!(told, Poll::Ready(Ok(told)) if told == now), "woken past {last}, told {told:?}");
    }
}

async fn a_closed_log_says_so(log: &dyn EventLog) {
    let doc = document("suite/close");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=1).await;
    assert!(log.stats().appended_events > 0);
    let last = last_offset(log).await;
    let task = WakeSignal::new();
    let mut waiting = log.wait_past(last);
    assert!(task.poll(&mut waiting).is_pending());
    log.close().await.unwrap_or_else(|e| panic!("{e}"));
    task.woken().await;
    assert!(matches!(waiting.await, Err(LogError::Closed)), "a waiter is told");
    let limit = ReadLimit::default();
    for _ in 0..2 {
        assert!(matches!(log.append(&doc, &[event(&doc, epoch, 2, "late")]).await, Err(LogError::Closed)));
        assert!(matches!(log.append(&doc, &[]).await, Err(LogError::Closed)));
        assert!(matches!(log.head(&doc).await, Err(LogError::Closed)));
        assert!(matches!(log.read_document(&doc, Seq::ZERO, limit).await, Err(LogError::Closed)));
        assert!(matches!(log.read(Offset::ZERO, limit).await, Err(LogError::Closed)));
        assert!(matches!(log.last_offset().await, Err(LogError::Closed)));
        assert!(matches!(log.wait_past(Offset::ZERO).await, Err(LogError::Closed)));
        assert!(matches!(log.wait_past(last).await, Err(LogError::Closed)));
        assert!(matches!(log.trim(&doc, Seq::FIRST).await, Err(LogError::Closed)));
        assert!(log.close().await.is_ok(), "closing again does nothing");
    }
    assert!(log.stats().appended_events > 0, "the counters stay");
}
