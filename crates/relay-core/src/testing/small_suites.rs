//! The suites for traits whose contracts are short: [`Clock`], [`TokenSource`], [`Sequencer`], [`Target`] and
//! [`HealthProbe`].

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::checked;
use crate::checked::CheckedDraft;
use crate::event::{Draft, Event};
use crate::id::{DocumentId, EventId};
use crate::kind::{DeliveryClass, Kind};
use crate::log::Head;
use crate::payload::Payload;
use crate::position::{Epoch, Seq};
use crate::sequencer::{Place, Sequencer};
use crate::target::{Delivery, HealthProbe, Target};
use crate::time::{Clock, Timestamp};
use crate::tokens::TokenSource;

fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap_or_else(|error| panic!("{error}"))
}

fn draft(name: &str, number: u64) -> Draft {
    let kind = Kind::from_static("x-suite", DeliveryClass::Sequenced);
    let payload = Payload::json(&number).unwrap_or_else(|error| panic!("{error}"));
    Draft::new(document(name), kind, payload)
}

/// Checks that monotonic time never goes backwards, also from one thread to another, and that both clocks give moments
/// that can be named.
///
/// # Panics
/// When the clock breaks its contract.
pub fn clock_suite(clock: &dyn Clock) {
    // The latest moment that any thread has seen.
    let latest = Mutex::new(clock.monotonic());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let mut latest = latest.lock();
                    let (first, now, last) = (clock.monotonic(), clock.now(), clock.monotonic());
                    let moments = [*latest, first, now.monotonic, last];
                    assert!(moments.is_sorted(), "monotonic time goes backwards: {moments:?}");
                    for wall in [now.wall, clock.wall()] {
                        assert!(wall >= Timestamp::UNIX_EPOCH && wall <= Timestamp::MAX, "{wall}");
                    }
                    *latest = last;
                }
            });
        }
    });
}

/// Checks that tokens only grow, however reservations and issues alternate, and over a source that replaces the first:
/// `reopen` makes one when the first is dropped.
///
/// # Panics
/// When a token source breaks its contract.
pub async fn token_suite<S: TokenSource>(source: S, reopen: impl FnOnce() -> S) {
    let mut last = None;
    let mut grow = |source: &S| {
        let token = source.issue();
        assert!(last.is_none_or(|last| token > last), "token {token} after {last:?}");
        last = Some(token);
    };
    let reserve = async |source: &S| source.reserve().await.unwrap_or_else(|error| panic!("{error}"));
    // Beyond any block that is reserved at once.
    for _ in 0..2_500 {
        reserve(&source).await;
        grow(&source);
    }
    for _ in 0..10 {
        reserve(&source).await;
    }
    for _ in 0..9 {
        grow(&source);
    }
    drop(source);
    let next = reopen();
    reserve(&next).await;
    grow(&next);
}

/// Checks that a stage decides the same about the same drafts, and rewrites them alike, whatever it was asked, whatever it
/// was told of other documents, and after each place that it noted was dropped. `admitted` must be drafts that the stage
/// lets pass, and `refused` drafts that it refuses, as it stands; the suite opens and closes their documents.
///
/// # Panics
/// When the stage breaks its contract.
pub async fn sequencer_suite(stage: &dyn Sequencer, admitted: &[CheckedDraft], refused: &[CheckedDraft]) {
    let place = |seq: u64| Place::new(Epoch::from_u64(1), Seq::new(seq));
    let open = async |document: &DocumentId| {
        let opened = stage.open(document, Head::empty(Epoch::from_u64(1))).await;
        opened.unwrap_or_else(|error| panic!("`{document}` cannot be opened: {error}"));
    };
    let documents: HashSet<DocumentId> =
        admitted.iter().chain(refused).map(|draft| draft.document.clone()).collect();
    for document in &documents {
        open(document).await;
    }
    let decide = |draft: &CheckedDraft, seq: u64| {
        let mut decided = draft.clone();
        stage.check(&mut decided, place(seq)).map(|()| decided)
    };
    let decide_all = |seq: u64| -> Vec<String> {
        let all = admitted.iter().chain(refused);
        all.map(|draft| format!("{:?}", decide(draft, seq))).collect()
    };
    for draft in admitted {
        let decided = decide(draft, 1).unwrap_or_else(|error| panic!("{draft:?} is refused: {error}"));
        let is_rewritten = format!("{decided:?}") != format!("{draft:?}");
        assert!(stage.rewrites() || !is_rewritten, "a stage that says it never rewrites made {decided:?}");
    }
    for draft in refused {
        assert!(decide(draft, 1).is_err(), "{draft:?} passes");
    }

    let at_first = decide_all(1);
    assert_eq!(decide_all(1), at_first, "asked again");
    let elsewhere = checked(draft("suite/elsewhere", 1));
    open(&elsewhere.document).await;
    decide(&elsewhere, 1).unwrap_or_else(|error| panic!("another document: {error}"));
    stage.placed(&elsewhere, place(1));
    assert_eq!(decide_all(1), at_first, "after an event of another document");
    stage.dropped(&elsewhere.document, place(1));
    stage.closed(&elsewhere.document);
    stage.closed(&document("suite/never-opened"));
    assert_eq!(decide_all(1), at_first, "after the closing of another document");
    for document in &documents {
        stage.dropped(document, place(1));
    }
    assert_eq!(decide_all(1), at_first, "after dropping what was never noted");

    // The first place stays noted when the second is dropped.
    for (first, second) in admitted.iter().zip(admitted.iter().skip(1)) {
        let Ok(noted) = decide(first, 1) else { panic!("{first:?} is refused after its place was dropped") };
        stage.placed(&noted, place(1));
        let after_first = decide_all(2);
        if let Ok(noted) = decide(second, 2) {
            stage.placed(&noted, place(2));
            stage.dropped(&second.document, place(2));
        }
        assert_eq!(decide_all(2), after_first, "after dropping {second:?}, placed behind {first:?}");
        stage.dropped(&first.document, place(1));
        assert_eq!(decide_all(1), at_first, "after dropping {first:?}");
    }
    for document in &documents {
        stage.closed(document);
        open(document).await;
    }
    assert_eq!(decide_all(1), at_first, "opened again over the same history");
    for document in &documents {
        stage.closed(document);
    }
}

/// Checks that a target takes what it is given: one event, several of one document in their order, several documents at
/// once, and the same event again. `taken` returns the ids of all events that have arrived, in the order of arrival.
///
/// # Panics
/// When the target breaks its contract.
pub async fn target_suite(target: &dyn Target, taken: impl Fn() -> Vec<EventId>) {
    let event = |name: &str, seq: u64| {
        let time = Timestamp::from_micros(1_800_000_000_000_000);
        Arc::new(draft(name, seq).into_event(Epoch::from_u64(1), Some(Seq::new(seq)), time))
    };
    let deliver = async |delivery: Delivery| {
        target.deliver(delivery).await.unwrap_or_else(|error| panic!("a delivery failed: {error}"));
    };
    let ids = |events: &[Arc<Event>]| events.iter().map(|event| event.id).collect::<Vec<_>>();
    let before = taken().len();
    let one = vec![event("suite/one", 1)];
    deliver(Delivery::new(one.clone())).await;
    assert_eq!(taken()[before..], ids(&one), "a delivery that succeeded has arrived");
    let several = vec![event("suite/one", 2), event("suite/one", 3), event("suite/one", 4)];
    deliver(Delivery::new(several.clone())).await;
    assert_eq!(taken()[before + 1..], ids(&several), "events arrive in their order");
    let other = vec![event("suite/other", 1)];
    deliver(Delivery::new(other.clone())).await;
    deliver(Delivery::new(one.clone()).attempt(2).replay()).await;
    assert_eq!(taken()[before + 4..], [ids(&other), ids(&one)].concat(), "the same event may come again");
}

/// Checks that a probe of a service that works succeeds, that one of a service that is down fails with a reason, and that
/// both can be asked again.
///
/// # Panics
/// When a probe breaks its contract.
pub async fn probe_suite(working: &dyn HealthProbe, down: &dyn HealthProbe) {
    for _ in 0..3 {
        let found = working.check().await;
        assert!(found.is_ok(), "a service that works fails: {found:?}");
        let failure = down.check().await.err().unwrap_or_else(|| panic!("a service that is down works"));
        assert!(!failure.detail.is_empty(), "a failure says what was found");
    }
}
