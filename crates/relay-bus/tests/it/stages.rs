//! The stages that a draft passes when it gets its place.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use relay_bus::{Bus, BusConfig, BusParts, Filter, LagPolicy};
use relay_core::testing::{AppendFault, ManualClock, ManualOwnership, MemoryLog};
use relay_core::{
    Actor, CheckedDraft, DocumentId, Draft, Epoch, EventId, EventLog, EventSource, FencingToken, Head,
    LogError, NotOwner, OwnershipError, Payload, Place, PublishError, ReadLimit, Seq, Sequencer,
    StartPosition, UserId, Vocabulary,
};

use crate::support::{
    available, config, document, draft_number, held_log, laser, note, number, settle, soon,
};

const EVERYTHING: StartPosition = StartPosition::After { epoch: None, seq: Seq::ZERO };

/// A call of a stage, with the stage's name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    /// The draft's number, and the seq that it would get.
    Check(&'static str, u64, u64),
    /// The draft's number, and its seq.
    Placed(&'static str, u64, u64),
    /// The first seq that is dropped.
    Dropped(&'static str, u64),
    /// The last seq of the history that the channel goes on from.
    Open(&'static str, u64),
    Closed(&'static str),
}

use Call::{Check, Closed, Dropped, Open, Placed};

/// The calls of all stages of a bus, in their order.
#[derive(Debug, Clone, Default)]
struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock())
    }

    /// The calls without those of `check`.
    fn take_outcomes(&self) -> Vec<Call> {
        self.take().into_iter().filter(|call| !matches!(call, Check(..))).collect()
    }

    /// The calls about drafts: those without the opening and the closing of channels.
    fn take_about_drafts(&self) -> Vec<Call> {
        self.take().into_iter().filter(|call| !matches!(call, Open(..) | Closed(_))).collect()
    }

    /// A stage that records its calls and lets every draft pass.
    fn stage(&self, name: &'static str) -> Stage {
        Stage {
            name,
            calls: self.clone(),
            refused: None,
            factor: 1,
            opening: Opening::Succeeds,
            epochs: Mutex::default(),
        }
    }
}

/// The outcome of a stage's first opening. The later ones succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Succeeds,
    Fails,
    NeverEnds,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    calls: Calls,
    opening: Opening,
    /// The number of the draft that it refuses.
    refused: Option<u64>,
    /// The factor by which it multiplies each number.
    factor: u64,
    /// The epochs of the places that it saw.
    epochs: Mutex<Vec<Epoch>>,
}

impl Stage {
    fn refusing(mut self, number: u64) -> Self {
        self.refused = Some(number);
        self
    }

    fn multiplying_by(mut self, factor: u64) -> Self {
        self.factor = factor;
        self
    }

    fn opening(mut self, opening: Opening) -> Self {
        self.opening = opening;
        self
    }
}

fn refusal() -> PublishError {
    PublishError::StaleLock { token: FencingToken::new(7), holder: None }
}

/// Accepts every draft, so that a stage can rewrite one.
struct Anything;

impl Vocabulary for Anything {
    type Error = PublishError;

    fn check(&self, _draft: &Draft) -> Result<Option<relay_core::LockClaim>, PublishError> {
        Ok(None)
    }
}

#[async_trait]
impl Sequencer for Stage {
    async fn open(&self, document: &DocumentId, head: Head) -> Result<(), LogError> {
        assert_eq!(document.as_str(), "doc");
        let call = Open(self.name, head.last.get());
        let is_first = {
            let mut calls = self.calls.0.lock();
            calls.push(call);
            calls.iter().filter(|call| matches!(call, Open(name, _) if *name == self.name)).count() == 1
        };
        match self.opening {
            Opening::Fails if is_first => Err(LogError::Overloaded { waited: Duration::ZERO }),
            Opening::NeverEnds if is_first => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn check(&self, draft: &mut CheckedDraft, place: Place) -> Result<(), PublishError> {
        let number = draft_number(draft);
        self.calls.0.lock().push(Check(self.name, number, place.seq.get()));
        self.epochs.lock().push(place.epoch);
        if self.refused == Some(number) {
            return Err(refusal());
        }
        if self.factor != 1 {
            draft.rewrite(Payload::json(&(number * self.factor)).unwrap(), &Anything)?;
        }
        Ok(())
    }

    fn rewrites(&self) -> bool {
        self.factor != 1
    }

    fn placed(&self, draft: &CheckedDraft, place: Place) {
        self.calls.0.lock().push(Placed(self.name, draft_number(draft), place.seq.get()));
    }

    fn dropped(&self, document: &DocumentId, from: Place) {
        assert_eq!(document.as_str(), "doc");
        self.calls.0.lock().push(Dropped(self.name, from.seq.get()));
        self.epochs.lock().push(from.epoch);
    }

    fn closed(&self, document: &DocumentId) {
        assert_eq!(document.as_str(), "doc");
        self.calls.0.lock().push(Closed(self.name));
    }
}

fn staged(log: Option<Arc<dyn EventLog>>, stages: impl IntoIterator<Item = Stage>) -> Bus {
    staged_and_owned(&ManualOwnership::default(), log, stages)
}

fn staged_and_owned(
    authority: &ManualOwnership,
    log: Option<Arc<dyn EventLog>>,
    stages: impl IntoIterator<Item = Stage>,
) -> Bus {
    let mut parts = BusParts::new(Arc::new(ManualClock::new()));
    parts.ownership = Arc::new(authority.clone());
    parts.log = log;
    parts.sequencers = stages.into_iter().map(|stage| Arc::new(stage) as Arc<dyn Sequencer>).collect();
    Bus::with_parts(BusConfig::default(), parts).unwrap()
}

/// No log, and a log in memory.
fn logs() -> [Option<Arc<dyn EventLog>>; 2] {
    [None, Some(Arc::new(MemoryLog::new()))]
}

async fn subscribe(bus: &Bus, document: &DocumentId) -> relay_bus::Subscription {
    bus.subscribe(document, EVERYTHING, Filter::all(), LagPolicy::Refill).await.unwrap().1
}

async fn delivered(bus: &Bus, document: &DocumentId) -> Vec<u64> {
    let mut events = subscribe(bus, document).await;
    available(&mut events).into_iter().map(|event| number(&event.unwrap())).collect()
}

#[tokio::test]
async fn a_draft_passes_all_stages_in_their_order_before_the_next_draft_is_checked() {
    for log in logs() {
        let calls = Calls::default();
        let bus = staged(log, [calls.stage("first"), calls.stage("second")]);
        let doc = document("doc");
        let _keeps_it_open = subscribe(&bus, &doc).await;
        let acks = join_all((11..=13).map(|number| bus.publish(note(&doc, number)))).await;
        for (ack, seq) in acks.into_iter().zip(1..) {
            assert_eq!(ack.unwrap().seq, Some(Seq::new(seq)));
        }
        let expected: Vec<Call> = [(11, 1), (12, 2), (13, 3)]
            .into_iter()
            .flat_map(|(number, seq)| {
                [
                    Check("first", number, seq),
                    Check("second", number, seq),
                    Placed("first", number, seq),
                    Placed("second", number, seq),
                ]
            })
            .collect();
        assert_eq!(calls.take_about_drafts(), expected);
    }
}

#[tokio::test]
async fn a_stage_sees_the_epoch_that_the_event_gets() {
    for log in logs() {
        let calls = Calls::default();
        let stage = Arc::new(calls.stage("only"));
        let mut parts = BusParts::new(Arc::new(ManualClock::new()));
        parts.log = log;
        parts.sequencers = vec![stage.clone()];
        let bus = Bus::with_parts(BusConfig::default(), parts).unwrap();
        let ack = bus.publish(note(&document("doc"), 1)).await.unwrap();
        assert_eq!(*stage.epochs.lock(), [ack.epoch]);
    }
}

#[tokio::test]
async fn a_refused_draft_leaves_its_place_to_the_next_and_later_stages_do_not_see_it() {
    for log in logs() {
        let calls = Calls::default();
        let stages = [calls.stage("first"), calls.stage("second").refusing(12), calls.stage("third")];
        let bus = staged(log, stages);
        let doc = document("doc");
        let _keeps_it_open = subscribe(&bus, &doc).await;
        let acks = join_all((11..=13).map(|number| bus.publish(note(&doc, number)))).await;
        assert_eq!(acks[0].as_ref().unwrap().seq, Some(Seq::new(1)));
        let refused = acks[1].as_ref().unwrap_err();
        assert!(matches!(refused, PublishError::StaleLock { .. }), "{refused}");
        assert_eq!(acks[2].as_ref().unwrap().seq, Some(Seq::new(2)));
        let all = calls.take();
        let about_12: Vec<Call> =
            all.iter().filter(|call| matches!(call, Check(_, 12, _) | Placed(_, 12, _))).cloned().collect();
        assert_eq!(about_12, [Check("first", 12, 2), Check("second", 12, 2)]);
        assert!(all.contains(&Check("third", 13, 2)), "the next draft is offered the same place: {all:?}");
        assert!(!all.iter().any(|call| matches!(call, Dropped(..))), "no place is dropped: {all:?}");
        assert_eq!(delivered(&bus, &doc).await, [11, 13]);
        assert_eq!(bus.stats().refused_by_guard, 1);
    }
}

#[tokio::test]
async fn a_stage_rewrites_the_payload_for_the_stages_after_it_and_for_readers() {
    let log = MemoryLog::new();
    for log in [None, Some(Arc::new(log.clone()) as Arc<dyn EventLog>)] {
        let calls = Calls::default();
        let stages = [calls.stage("first").multiplying_by(10), calls.stage("second").multiplying_by(10)];
        let bus = staged(log, stages);
        let doc = document("doc");
        bus.publish(note(&doc, 3)).await.unwrap();
        let expected =
            [Check("first", 3, 1), Check("second", 30, 1), Placed("first", 300, 1), Placed("second", 300, 1)];
        assert_eq!(calls.take_about_drafts(), expected);
        assert_eq!(delivered(&bus, &doc).await, [300]);
    }
    let kept = log.read_document(&document("doc"), Seq::ZERO, ReadLimit::default()).await.unwrap();
    assert_eq!(kept.iter().map(number).collect::<Vec<_>>(), [300]);
}

#[tokio::test]
async fn a_draft_that_is_sent_again_passes_no_stage() {
    for log in logs() {
        let calls = Calls::default();
        let bus = staged(log, [calls.stage("only")]);
        let doc = document("doc");
        let id = EventId::new();
        let _keeps_it_open = subscribe(&bus, &doc).await;
        let twice = join_all([bus.publish(note(&doc, 1).id(id)), bus.publish(note(&doc, 1).id(id))]).await;
        assert_eq!(twice.iter().filter(|ack| ack.as_ref().unwrap().duplicate).count(), 1);
        assert!(bus.publish(note(&doc, 1).id(id)).await.unwrap().duplicate);
        let conflict = bus.publish(note(&doc, 2).id(id)).await;
        assert!(matches!(conflict, Err(PublishError::IdConflict { .. })), "{conflict:?}");
        assert_eq!(calls.take_about_drafts(), [Check("only", 1, 1), Placed("only", 1, 1)]);
    }
}

#[tokio::test]
async fn a_draft_that_a_stage_rewrites_is_recognised_by_what_its_publisher_sent() {
    for log in logs() {
        let calls = Calls::default();
        let stages = [calls.stage("first").multiplying_by(10), calls.stage("second").multiplying_by(10)];
        let bus = staged(log, stages);
        let doc = document("doc");
        let id = EventId::new();
        let _keeps_it_open = subscribe(&bus, &doc).await;
        let at_once = join_all([3, 3, 300, 30].map(|number| bus.publish(note(&doc, number).id(id)))).await;
        assert!(!at_once[0].as_ref().unwrap().duplicate && at_once[1].as_ref().unwrap().duplicate);
        assert!(bus.publish(note(&doc, 3).id(id)).await.unwrap().duplicate);
        let others = join_all([3_000, 300, 30].map(|number| bus.publish(note(&doc, number).id(id)))).await;
        for other in at_once[2..].iter().chain(&others) {
            assert!(matches!(other, Err(PublishError::IdConflict { seq: Seq::FIRST, .. })), "{other:?}");
        }
        assert_eq!(delivered(&bus, &doc).await, [300]);
    }
}

#[tokio::test]
async fn a_rewritten_draft_is_recognised_without_its_payload_once_the_document_was_opened_again() {
    let log = Arc::new(MemoryLog::new()) as Arc<dyn EventLog>;
    let doc = document("doc");
    let id = EventId::new();
    let rewriting = || [Calls::default().stage("only").multiplying_by(10)];
    let first = staged(Some(Arc::clone(&log)), rewriting()).publish(note(&doc, 3).id(id)).await.unwrap();

    let bus = staged(Some(Arc::clone(&log)), rewriting());
    for number in [3, 30, 4] {
        assert_eq!(bus.publish(note(&doc, number).id(id)).await.unwrap(), first.as_duplicate());
    }
    let ada = Actor::User(UserId::new("ada").unwrap());
    let conflict = bus.publish(note(&doc, 3).id(id).actor(ada)).await;
    assert!(matches!(conflict, Err(PublishError::IdConflict { .. })), "{conflict:?}");

    // Where no stage rewrites, the stored payload is the one that was sent.
    let bus = staged(Some(log), [Calls::default().stage("only")]);
    assert_eq!(bus.publish(note(&doc, 30).id(id)).await.unwrap(), first.as_duplicate());
    let conflict = bus.publish(note(&doc, 4).id(id)).await;
    assert!(matches!(conflict, Err(PublishError::IdConflict { .. })), "{conflict:?}");
}

#[tokio::test]
async fn an_ephemeral_draft_passes_no_stage() {
    for log in logs() {
        let calls = Calls::default();
        let bus = staged(log, [calls.stage("only").refusing(1)]);
        bus.publish(laser(&document("doc"), "ada", 1)).await.unwrap();
        assert_eq!(calls.take_about_drafts(), []);
    }
}

#[tokio::test]
async fn places_that_the_log_does_not_take_are_dropped_before_they_are_given_out_again() {
    let errors: [(fn() -> LogError, bool); 3] = [
        (|| LogError::Failed { source: Arc::new(std::io::Error::other("told to fail")) }, true),
        (|| LogError::Overloaded { waited: Duration::ZERO }, false),
        (|| LogError::TooLarge { bytes: 2, max: 1 }, false),
    ];
    for (error, ends_the_channel) in errors {
        let calls = Calls::default();
        let log = MemoryLog::new();
        let bus = staged(Some(Arc::new(log.clone())), [calls.stage("first"), calls.stage("second")]);
        let doc = document("doc");
        bus.publish(note(&doc, 11)).await.unwrap();
        calls.take();
        log.fail_next_append(AppendFault::Error(error()));
        let refused = bus.publish(note(&doc, 12)).await;
        assert!(matches!(refused, Err(PublishError::Log(_))), "{refused:?}");
        let mut outcomes =
            vec![Placed("first", 12, 2), Placed("second", 12, 2), Dropped("first", 2), Dropped("second", 2)];
        if ends_the_channel {
            outcomes.extend([Closed("first"), Closed("second")]);
        }
        assert_eq!(calls.take_outcomes(), outcomes);
        assert_eq!(bus.publish(note(&doc, 13)).await.unwrap().seq, Some(Seq::new(2)));
        let mut outcomes = vec![Placed("first", 13, 2), Placed("second", 13, 2)];
        if ends_the_channel {
            outcomes.splice(0..0, [Open("first", 1), Open("second", 1)]);
        }
        assert_eq!(calls.take_outcomes(), outcomes);
        assert_eq!(delivered(&bus, &doc).await, [11, 13]);
        assert_eq!(bus.stats().channels_opened, if ends_the_channel { 2 } else { 1 });
    }
}

#[tokio::test]
async fn places_are_dropped_when_the_log_of_the_double_fails() {
    let calls = Calls::default();
    let log = MemoryLog::new();
    let bus = staged(Some(Arc::new(log.clone())), [calls.stage("only")]);
    let doc = document("doc");
    log.fail_after(0);
    let refused = bus.publish(note(&doc, 1)).await;
    assert!(matches!(refused, Err(PublishError::Log(LogError::Failed { .. }))), "{refused:?}");
    let expected =
        [Open("only", 0), Check("only", 1, 1), Placed("only", 1, 1), Dropped("only", 1), Closed("only")];
    assert_eq!(calls.take(), expected);
}

#[tokio::test]
async fn places_are_dropped_when_the_log_panics() {
    let calls = Calls::default();
    let log = MemoryLog::new();
    let bus = staged(Some(Arc::new(log.clone())), [calls.stage("only")]);
    let doc = document("doc");
    log.fail_next_append(AppendFault::Panic);
    let refused = bus.publish(note(&doc, 1)).await;
    assert!(matches!(refused, Err(PublishError::Log(LogError::Failed { .. }))), "{refused:?}");
    let expected = [Open("only", 0), Placed("only", 1, 1), Dropped("only", 1), Closed("only")];
    assert_eq!(calls.take_outcomes(), expected);
    assert_eq!(bus.publish(note(&doc, 2)).await.unwrap().seq, Some(Seq::FIRST));
}

#[tokio::test]
async fn places_are_dropped_when_the_document_is_lost_and_before_it_is_acquired_again() {
    type Notice = fn(&Bus, DocumentId) -> BoxFuture<'_, ()>;
    let notices: [Notice; 4] = [
        |bus, doc| async move { drop(bus.publish(note(&doc, 12)).await.unwrap_err()) }.boxed(),
        |bus, doc| async move { drop(subscribe(bus, &doc).await) }.boxed(),
        |bus, doc| {
            async move {
                EventSource::history(bus, &doc, Seq::ZERO, ReadLimit::default()).await.unwrap();
            }
            .boxed()
        },
        |bus, _| {
            bus.sweep();
            ready(()).boxed()
        },
    ];
    for notice in notices {
        for log in logs() {
            let next = Seq::new(if log.is_some() { 2 } else { 1 });
            let calls = Calls::default();
            let authority = ManualOwnership::default();
            let bus = staged_and_owned(&authority, log, [calls.stage("first"), calls.stage("second")]);
            let doc = document("doc");
            bus.publish(note(&doc, 11)).await.unwrap();
            calls.take();
            authority.take_away(OwnershipError::NotOwner(NotOwner::new(doc.clone(), None)));
            authority.grant();
            notice(&bus, doc.clone()).await;
            let lost = calls.take();
            let (endings, openings) = lost.split_at(4);
            assert_eq!(
                endings,
                [Dropped("first", 2), Dropped("second", 2), Closed("first"), Closed("second")]
            );
            // Some notices open the document again at once.
            assert!(openings.iter().all(|call| matches!(call, Open(..))), "{openings:?}");
            assert_eq!(bus.publish(note(&doc, 13)).await.unwrap().seq, Some(next));
            let placed: Vec<Call> =
                calls.take_outcomes().into_iter().filter(|call| matches!(call, Placed(..))).collect();
            assert_eq!(placed, [Placed("first", 13, next.get()), Placed("second", 13, next.get())]);
        }
    }
}

#[tokio::test]
async fn a_batch_that_fails_after_the_loss_drops_no_places_of_the_documents_next_channel() {
    let calls = Calls::default();
    let authority = ManualOwnership::default();
    let log = held_log();
    let bus = staged_and_owned(&authority, Some(Arc::new(log.clone())), [calls.stage("only")]);
    let doc = document("doc");
    let publish = |number| {
        let (bus, draft) = (bus.clone(), note(&doc, number));
        tokio::spawn(async move { bus.publish(draft).await })
    };
    let old = publish(11);
    settle().await;
    authority.take_away(OwnershipError::NotOwner(NotOwner::new(doc.clone(), None)));
    bus.sweep();
    authority.grant();
    let new = publish(12);
    settle().await;
    log.fail_after(0);
    log.let_through(1);
    let refused = soon(old).await.unwrap();
    assert!(matches!(refused, Err(PublishError::Log(LogError::Failed { .. }))), "{refused:?}");
    log.fail_after(usize::MAX);
    log.let_through(1);
    assert_eq!(soon(new).await.unwrap().unwrap().seq, Some(Seq::FIRST));
    let (open, closed) = (Open("only", 0), Closed("only"));
    let expected =
        [open.clone(), Placed("only", 11, 1), Dropped("only", 1), closed, open, Placed("only", 12, 1)];
    assert_eq!(calls.take_outcomes(), expected);
}

#[tokio::test]
async fn no_place_is_dropped_when_a_document_is_evicted_or_the_bus_stops() {
    let calls = Calls::default();
    let mut parts = BusParts::new(Arc::new(ManualClock::new()));
    parts.log = Some(Arc::new(MemoryLog::new()));
    parts.sequencers = vec![Arc::new(calls.stage("only"))];
    let bus = Bus::with_parts(config(|c| c.idle_after = Duration::ZERO), parts).unwrap();
    let doc = document("doc");
    bus.publish(note(&doc, 11)).await.unwrap();
    settle().await;
    assert_eq!(bus.sweep(), 1);
    bus.publish(note(&doc, 12)).await.unwrap();
    assert!(bus.shutdown(Duration::from_secs(10)).await.complete);
    let expected = [
        Open("only", 0),
        Placed("only", 11, 1),
        Closed("only"),
        Open("only", 1),
        Placed("only", 12, 2),
        Closed("only"),
    ];
    assert_eq!(calls.take_outcomes(), expected);
}

#[tokio::test]
async fn the_places_of_the_batches_before_a_failure_stay() {
    let calls = Calls::default();
    let log = MemoryLog::new();
    let bus = staged(Some(Arc::new(log.clone())), [calls.stage("only")]);
    let doc = document("doc");
    for number in 11..=13 {
        bus.publish(note(&doc, number)).await.unwrap();
    }
    log.hold();
    let publish = |number| {
        let (bus, draft) = (bus.clone(), note(&doc, number));
        tokio::spawn(async move { bus.publish(draft).await })
    };
    let first = publish(14);
    settle().await;
    let batch = [publish(15), publish(16)];
    settle().await;
    log.let_through(1);
    soon(first).await.unwrap().unwrap();
    settle().await;
    calls.take();
    log.fail_next_append(AppendFault::Error(LogError::Overloaded { waited: Duration::ZERO }));
    log.let_through(1);
    for refused in batch {
        assert!(matches!(soon(refused).await.unwrap(), Err(PublishError::Log(LogError::Overloaded { .. }))));
    }
    assert_eq!(calls.take(), [Dropped("only", 5)]);
}

#[tokio::test]
async fn stages_that_were_opened_are_closed_when_a_later_stage_fails_to_open() {
    for log in logs() {
        let calls = Calls::default();
        let bus = staged(log, [calls.stage("first"), calls.stage("second").opening(Opening::Fails)]);
        let doc = document("doc");
        let refused = bus.publish(note(&doc, 11)).await;
        assert!(matches!(refused, Err(PublishError::Log(LogError::Overloaded { .. }))), "{refused:?}");
        assert_eq!(*calls.0.lock(), [Open("first", 0), Open("second", 0), Closed("first"), Closed("second")]);
        assert_eq!(bus.publish(note(&doc, 12)).await.unwrap().seq, Some(Seq::FIRST));
    }
}

#[tokio::test]
async fn stages_are_closed_when_nobody_waits_for_the_opening_any_more() {
    for log in logs() {
        let calls = Calls::default();
        let authority = ManualOwnership::default();
        let stage = calls.stage("only").opening(Opening::NeverEnds);
        let bus = staged_and_owned(&authority, log, [stage]);
        let doc = document("doc");
        let mut asking = Box::pin(bus.publish(note(&doc, 11)));
        assert!(asking.as_mut().now_or_never().is_none());
        settle().await;
        drop(asking);
        assert_eq!(*calls.0.lock(), [Open("only", 0), Closed("only")]);
        assert_eq!(authority.undropped(), 0, "the document is given up");
        assert_eq!(bus.publish(note(&doc, 12)).await.unwrap().seq, Some(Seq::FIRST));
    }
}

#[tokio::test]
async fn drafts_that_wait_while_a_batch_is_appended_are_checked_after_it() {
    let calls = Calls::default();
    let log = held_log();
    let bus = staged(Some(Arc::new(log.clone())), [calls.stage("only")]);
    let doc = document("doc");
    let _keeps_it_open = subscribe(&bus, &doc).await;
    let mut first = Box::pin(bus.publish(note(&doc, 11)));
    assert!(first.as_mut().now_or_never().is_none());
    settle().await;
    let mut second = Box::pin(bus.publish(note(&doc, 12)));
    assert!(second.as_mut().now_or_never().is_none());
    settle().await;
    assert_eq!(calls.take_about_drafts(), [Check("only", 11, 1), Placed("only", 11, 1)]);
    log.let_through(2);
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!(calls.take(), [Check("only", 12, 2), Placed("only", 12, 2)]);
}
