//! The suite for [`EventLog`]: the contract as one list of checks.

use std::pin::pin;
use std::task::{Context, Waker};

use crate::event::{Draft, Event};
use crate::id::DocumentId;
use crate::kind::{Durability, Kind};
use crate::log::{EventLog, Head, LogError, ReadLimit};
use crate::payload::Payload;
use crate::position::{Epoch, Offset, Seq};
use crate::time::Timestamp;

/// Runs the whole suite against `log`, which must be empty and keep at least 100 events per document. Closes it.
///
/// # Panics
/// When the log breaks its contract; the message says how.
pub async fn log_suite(log: &dyn EventLog) {
    an_unknown_document_is_empty_and_keeps_its_epoch(log).await;
    appended_events_are_read_back_in_order(log).await;
    offsets_grow_over_all_documents(log).await;
    an_append_that_does_not_follow_is_refused_whole(log).await;
    a_trimmed_history_says_so_and_goes_on_counting(log).await;
    pages_end_where_the_limit_says(log).await;
    each_event_of_a_batch_has_its_offset(log).await;
    a_waiter_is_told_of_the_next_event(log).await;
    a_closed_log_says_so(log).await;
}

fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap_or_else(|e| panic!("{e}"))
}

fn event(document: &DocumentId, epoch: Epoch, seq: u64, text: &str) -> Event {
    let kind = Kind::from_static("x-suite", Durability::Durable);
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

async fn read(log: &dyn EventLog, document: &DocumentId, after: u64) -> Result<Vec<u64>, LogError> {
    let limit = ReadLimit { events: 1000, bytes: usize::MAX };
    let events = log.read_document(document, Seq::new(after), limit).await?;
    Ok(events.iter().map(|e| e.seq.unwrap_or_default().get()).collect())
}

async fn an_unknown_document_is_empty_and_keeps_its_epoch(log: &dyn EventLog) {
    let unknown = document("suite/unknown");
    let first = head(log, &unknown).await;
    assert_eq!((first.first, first.last), (Seq::FIRST, Seq::ZERO));
    assert_eq!(head(log, &unknown).await, first, "asking twice gives the same epoch");
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
            last = got;
        }
    }
    let mut after = Offset::ZERO;
    let mut seen = Vec::new();
    loop {
        let page = log.read(after, ReadLimit { events: 3, bytes: usize::MAX }).await.unwrap_or_default();
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
    assert_eq!(read(log, &doc, 0).await.ok(), Some(vec![1, 2]), "nothing of a refused batch is kept");
    append(log, &doc, epoch, 3..=3).await;
}

async fn a_trimmed_history_says_so_and_goes_on_counting(log: &dyn EventLog) {
    let doc = document("suite/trim");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=10).await;
    let trimmed = log.trim(&doc, Seq::new(4)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(trimmed, Head { epoch, first: Seq::new(5), last: Seq::new(10) });
    assert_eq!(head(log, &doc).await, trimmed);
    assert!(matches!(read(log, &doc, 3).await, Err(LogError::Trimmed { first, .. }) if first == Seq::new(5)));
    assert_eq!(read(log, &doc, 4).await.ok(), Some((5..=10).collect()));
    // Trimming less than before, or more than there is, does no harm.
    log.trim(&doc, Seq::new(2)).await.unwrap_or_else(|e| panic!("{e}"));
    log.trim(&doc, Seq::new(99)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(head(log, &doc).await, Head { epoch, first: Seq::new(11), last: Seq::new(10) });
    append(log, &doc, epoch, 11..=11).await;
    assert_eq!(read(log, &doc, 10).await.ok(), Some(vec![11]));
}

async fn pages_end_where_the_limit_says(log: &dyn EventLog) {
    let doc = document("suite/pages");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=20).await;
    let read = |after, events, bytes| async move {
        let page =
            log.read_document(&document("suite/pages"), Seq::new(after), ReadLimit { events, bytes }).await;
        page.unwrap_or_else(|e| panic!("{e}")).len()
    };
    assert_eq!(read(0, 7, usize::MAX).await, 7);
    assert_eq!(read(18, 7, usize::MAX).await, 2);
    assert_eq!(read(0, 7, 1).await, 1, "one event comes however small the limit");
}

async fn each_event_of_a_batch_has_its_offset(log: &dyn EventLog) {
    let doc = document("suite/offsets");
    let epoch = head(log, &doc).await.epoch;
    let batch: Vec<Event> = (1..=3).map(|seq| event(&doc, epoch, seq, "x")).collect();
    let offsets = log.append(&doc, &batch).await.unwrap_or_else(|e| panic!("append refused: {e}"));
    let read = log.read_document(&doc, Seq::ZERO, ReadLimit::default()).await.unwrap_or_default();
    let kept: Vec<Option<Offset>> = read.iter().map(|event| event.offset).collect();
    assert_eq!(kept, offsets.iter().copied().map(Some).collect::<Vec<_>>());
    assert!(offsets.is_sorted_by(|one, next| one < next), "offsets grow within a batch: {offsets:?}");
    assert_eq!(log.append(&doc, &[]).await.ok(), Some(Vec::new()), "an empty batch has no offset");
}

async fn a_waiter_is_told_of_the_next_event(log: &dyn EventLog) {
    let doc = document("suite/wait");
    let epoch = head(log, &doc).await.epoch;
    let before = log.last_offset().await.unwrap_or_else(|e| panic!("{e}"));
    append(log, &doc, epoch, 1..=1).await;
    let last = log.last_offset().await.unwrap_or_else(|e| panic!("{e}"));
    assert!(last > before);
    assert_eq!(log.wait_past(before).await.ok(), Some(last), "an event that is there is not waited for");
    let mut waiting = pin!(log.wait_past(last));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut cx).is_pending(), "there is no event past the last");
    append(log, &doc, epoch, 2..=2).await;
    let told = waiting.await.unwrap_or_else(|e| panic!("{e}"));
    assert!(told > last, "the waiter is told of an event past {last}, not {told}");
}

async fn a_closed_log_says_so(log: &dyn EventLog) {
    let doc = document("suite/close");
    let epoch = head(log, &doc).await.epoch;
    append(log, &doc, epoch, 1..=1).await;
    assert!(log.stats().appended_events > 0);
    let last = log.last_offset().await.unwrap_or_else(|e| panic!("{e}"));
    let mut waiting = pin!(log.wait_past(last));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    log.close().await.unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(waiting.await, Err(LogError::Closed)), "a waiter is told");
    assert!(matches!(log.append(&doc, &[event(&doc, epoch, 2, "late")]).await, Err(LogError::Closed)));
    assert!(matches!(log.last_offset().await, Err(LogError::Closed)));
    assert!(log.close().await.is_ok(), "closing again does nothing");
}
