//! Documents that this server owns, loses, and owns again.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use relay_bus::{Bus, BusConfig, BusParts, Filter, LagPolicy, MailboxConfig, Received, Subscription};
use relay_core::testing::{ManualClock, ManualOwnership, MemoryLog};
use relay_core::{
    CheckedDraft, EventLog, EventSource, LogError, NodeId, NotOwner, OwnershipError, PublishError, ReadLimit,
    Seq, StartPosition, StreamError, SubscribeError,
};

use crate::support::{
    available, available_seqs, config, document, held_log, laser, note, number, settle, soon,
};

/// The server that owns a document which this one has lost.
const ELSEWHERE: NodeId = NodeId::from_u64(7);

fn not_owner(owner: Option<NodeId>) -> OwnershipError {
    NotOwner::new(document("doc"), owner).into()
}

/// Takes all documents away, and gives them to another server.
fn take_away(authority: &ManualOwnership) {
    authority.take_away(not_owner(Some(ELSEWHERE)));
}

fn owned(authority: &ManualOwnership, log: Option<Arc<dyn EventLog>>, config: BusConfig) -> Bus {
    let mut parts = BusParts::new(Arc::new(ManualClock::new()));
    parts.log = log;
    parts.ownership = Arc::new(authority.clone());
    Bus::with_parts(config, parts).unwrap()
}

/// No log, and a log in memory.
fn logs() -> [Option<Arc<dyn EventLog>>; 2] {
    [None, Some(Arc::new(MemoryLog::new()))]
}

fn everything() -> StartPosition {
    StartPosition::After { epoch: None, seq: Seq::ZERO }
}

async fn subscribe(bus: &Bus) -> Result<Subscription, SubscribeError> {
    let subscribed = bus.subscribe(&document("doc"), everything(), Filter::all(), LagPolicy::Refill).await;
    subscribed.map(|(_, events)| events)
}

async fn refused_owner(bus: &Bus, draft: CheckedDraft) -> Option<NodeId> {
    match soon(bus.publish(draft)).await {
        Err(PublishError::Ownership(OwnershipError::NotOwner(NotOwner { owner, .. }))) => owner,
        other => panic!("the draft was not refused for want of ownership: {other:?}"),
    }
}

#[tokio::test]
async fn a_publisher_is_told_when_the_document_was_lost_and_then_which_server_owns_it() {
    let doc = document("doc");
    for log in logs() {
        for draft in [note(&doc, 2), laser(&doc, "ada", 2)] {
            let authority = ManualOwnership::default();
            let bus = owned(&authority, log.clone(), BusConfig::default());
            bus.publish(note(&doc, 1)).await.unwrap();
            take_away(&authority);
            assert_eq!(refused_owner(&bus, draft.clone()).await, None, "the channel knows no other owner");
            let owner = refused_owner(&bus, draft).await;
            assert_eq!(owner, Some(ELSEWHERE), "the authority knows it");
            assert_eq!(bus.stats().refused_not_owner, 2);
        }
    }
}

#[tokio::test]
async fn a_subscription_ends_with_an_error_after_the_events_that_were_shown() {
    for log in logs() {
        let authority = ManualOwnership::default();
        let bus = owned(&authority, log, BusConfig::default());
        let mut events = subscribe(&bus).await.unwrap();
        bus.publish(note(&document("doc"), 1)).await.unwrap();
        take_away(&authority);
        bus.sweep();
        assert!(matches!(soon(events.next()).await, Some(Ok(_))));
        let told = soon(events.next()).await;
        assert!(matches!(told, Some(Err(StreamError::Ownership(OwnershipError::NotOwner(_))))), "{told:?}");
        assert!(soon(events.next()).await.is_none(), "an error is the last item");
    }
}

#[tokio::test]
async fn a_subscription_that_waits_is_woken_when_the_document_is_lost() {
    let authority = ManualOwnership::default();
    let bus = owned(&authority, None, BusConfig::default());
    let mut events = subscribe(&bus).await.unwrap();
    let waiting = tokio::spawn(async move { events.next().await });
    settle().await;
    assert!(!waiting.is_finished());
    take_away(&authority);
    bus.sweep();
    assert!(matches!(soon(waiting).await.unwrap(), Some(Err(StreamError::Ownership(_)))));
}

#[tokio::test]
async fn drafts_that_wait_get_no_seq_once_the_document_is_lost() {
    let authority = ManualOwnership::default();
    let log = held_log();
    let bus = owned(&authority, Some(Arc::new(log.clone())), BusConfig::default());
    let doc = document("doc");
    let _keeps_it_open = subscribe(&bus).await.unwrap();
    let mut first = Box::pin(bus.publish(note(&doc, 1)));
    assert!(first.as_mut().now_or_never().is_none());
    settle().await;
    let mut second = Box::pin(bus.publish(note(&doc, 2)));
    assert!(second.as_mut().now_or_never().is_none());
    take_away(&authority);
    log.let_through(9);
    assert_eq!(soon(first).await.unwrap().seq, Some(Seq::FIRST), "the log took it");
    let refused = soon(second).await;
    assert!(matches!(refused, Err(PublishError::Ownership(_))), "{refused:?}");
    settle().await;
    assert_eq!(log.head(&doc).await.unwrap().last, Seq::FIRST);
}

#[tokio::test]
async fn a_publisher_that_waits_for_space_is_told_of_the_loss() {
    let authority = ManualOwnership::default();
    let config = config(|c| {
        c.max_pending_bytes = 1;
        c.max_payload_bytes = 1;
    });
    let bus = owned(&authority, Some(Arc::new(held_log())), config);
    let doc = document("doc");
    let _keeps_it_open = subscribe(&bus).await.unwrap();
    let mut first = Box::pin(bus.publish(note(&doc, 1)));
    assert!(first.as_mut().now_or_never().is_none());
    settle().await;
    let mut second = Box::pin(bus.publish(note(&doc, 2)));
    assert!(second.as_mut().now_or_never().is_none());
    take_away(&authority);
    bus.sweep();
    let refused = soon(second).await;
    assert!(matches!(refused, Err(PublishError::Ownership(_))), "{refused:?}");
}

#[tokio::test]
async fn a_document_that_is_owned_again_is_opened_again_and_goes_on() {
    let authority = ManualOwnership::default();
    let bus = owned(&authority, Some(Arc::new(MemoryLog::new())), BusConfig::default());
    let doc = document("doc");
    let before = bus.publish(note(&doc, 1)).await.unwrap();
    let mut stale = subscribe(&bus).await.unwrap();
    take_away(&authority);
    refused_owner(&bus, note(&doc, 2)).await;
    assert!(matches!(subscribe(&bus).await, Err(SubscribeError::Ownership(_))));
    authority.grant();
    let after = bus.publish(note(&doc, 3)).await.unwrap();
    assert_eq!((after.epoch, after.seq), (before.epoch, Some(Seq::new(2))));
    assert_eq!(authority.undropped(), 1, "the channel that ended has given the document up");
    assert!(matches!(soon(stale.next()).await, Some(Ok(_))));
    assert!(matches!(soon(stale.next()).await, Some(Err(StreamError::Ownership(_)))));
    let mut fresh = subscribe(&bus).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(soon(fresh.next()).await, Some(Ok(_))));
    }
}

#[tokio::test]
async fn readers_are_not_served_from_the_memory_of_a_server_that_lost_the_document() {
    let doc = document("doc");
    for log in logs() {
        for reads_history in [false, true] {
            let authority = ManualOwnership::default();
            let bus = owned(&authority, log.clone(), BusConfig::default());
            bus.publish(note(&doc, 1)).await.unwrap();
            let mut earlier = subscribe(&bus).await.unwrap();
            take_away(&authority);
            let refused = if reads_history {
                EventSource::history(&bus, &doc, Seq::ZERO, ReadLimit::default()).await.unwrap_err()
            } else {
                subscribe(&bus).await.unwrap_err()
            };
            let SubscribeError::Ownership(OwnershipError::NotOwner(NotOwner { owner, .. })) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!((owner, authority.undropped()), (Some(ELSEWHERE), 0));
            let told = available(&mut earlier).pop();
            assert!(matches!(told, Some(Err(StreamError::Ownership(_)))), "{told:?}");
        }
    }
}

#[tokio::test]
async fn readers_of_a_document_that_is_owned_again_get_the_events_of_its_other_owner() {
    let doc = document("doc");
    let log: Arc<dyn EventLog> = Arc::new(MemoryLog::new());
    let authority = ManualOwnership::default();
    let bus = owned(&authority, Some(Arc::clone(&log)), BusConfig::default());
    let there = ManualOwnership::default();
    let elsewhere = owned(&there, Some(log), BusConfig::default());
    for own in [1, 3] {
        bus.publish(note(&doc, own)).await.unwrap();
        take_away(&authority);
        elsewhere.publish(note(&doc, own + 1)).await.unwrap();
        take_away(&there);
        elsewhere.sweep();
        there.grant();
        authority.grant();
        let expected: Vec<u64> = (1..=own + 1).collect();
        let (head, page) = EventSource::history(&bus, &doc, Seq::ZERO, ReadLimit::default()).await.unwrap();
        assert_eq!(head.last, Seq::new(own + 1));
        assert_eq!(page.iter().map(|event| number(event)).collect::<Vec<_>>(), expected);
        let mut events = subscribe(&bus).await.unwrap();
        assert_eq!(available_seqs(&mut events), expected);
    }
}

#[tokio::test]
async fn a_reader_is_refused_when_the_document_is_lost_while_the_log_answers() {
    let authority = ManualOwnership::default();
    let log = held_log();
    log.let_through(1);
    let bus = owned(&authority, Some(Arc::new(log)), BusConfig::default());
    bus.publish(note(&document("doc"), 1)).await.unwrap();
    let mut subscribing = Box::pin(subscribe(&bus));
    assert!(subscribing.as_mut().now_or_never().is_none());
    take_away(&authority);
    let refused = soon(subscribing).await;
    assert!(matches!(refused, Err(SubscribeError::Ownership(_))), "{refused:?}");
    assert_eq!(bus.stats().subscribed, 0);
}

#[tokio::test]
async fn a_listener_to_many_documents_is_told_what_it_misses_of_one_that_was_lost() {
    let authority = ManualOwnership::default();
    let bus = owned(&authority, Some(Arc::new(MemoryLog::new())), BusConfig::default());
    let mut mailbox = MailboxConfig::default();
    mailbox.capacity = NonZeroUsize::MIN;
    let mut events = bus.subscribe_all(Filter::all(), mailbox);
    for number in 1..=3 {
        bus.publish(note(&document("doc"), number)).await.unwrap();
    }
    take_away(&authority);
    assert!(matches!(soon(events.next()).await, Some(Ok(Received::Event(_)))));
    let missed = soon(events.next()).await;
    let Some(Ok(Received::Missed { after, through, .. })) = missed else { panic!("{missed:?}") };
    assert_eq!((after, through), (Seq::new(1), Seq::new(3)));
    authority.grant();
    bus.publish(note(&document("other"), 4)).await.unwrap();
    assert!(matches!(soon(events.next()).await, Some(Ok(Received::Event(_)))));
}

#[tokio::test]
async fn a_document_whose_log_failed_is_given_up_before_it_is_acquired_again() {
    let authority = ManualOwnership::default();
    let log = MemoryLog::new();
    let bus = owned(&authority, Some(Arc::new(log.clone())), BusConfig::default());
    let doc = document("doc");
    let _held = subscribe(&bus).await.unwrap();
    log.fail_after(0);
    bus.publish(note(&doc, 1)).await.unwrap_err();
    assert_eq!(authority.undropped(), 0);
    log.fail_after(usize::MAX);
    bus.publish(note(&doc, 2)).await.unwrap();
    assert_eq!(authority.undropped(), 1);
}

#[tokio::test]
async fn a_refused_document_leaves_nothing_behind() {
    let unknown = OwnershipError::Unknown { document: document("doc"), detail: "no quorum".to_owned() };
    for refusal in [not_owner(None), unknown] {
        let authority = ManualOwnership::default();
        let bus = owned(&authority, None, config(|c| c.max_channels = 1));
        authority.refuse(refusal.clone());
        let doc = document("doc");
        let told = bus.publish(note(&doc, 1)).await;
        assert!(matches!(&told, Err(PublishError::Ownership(error)) if *error == refusal), "{told:?}");
        let told = subscribe(&bus).await;
        assert!(matches!(&told, Err(SubscribeError::Ownership(error)) if *error == refusal), "{told:?}");
        let told = EventSource::history(&bus, &doc, Seq::ZERO, ReadLimit::default()).await;
        assert!(matches!(&told, Err(SubscribeError::Ownership(error)) if *error == refusal), "{told:?}");
        let stats = bus.stats();
        assert_eq!((stats.open_channels, stats.channels_opened, stats.subscribed), (0, 0, 0));
        authority.grant();
        bus.publish(note(&document("other"), 1)).await.unwrap();
    }
}

#[tokio::test]
async fn an_opening_that_is_cancelled_leaves_nothing_behind() {
    let authority = ManualOwnership::default();
    authority.hold_back();
    let bus = owned(&authority, None, config(|c| c.max_channels = 1));
    let mut openings = [Box::pin(subscribe(&bus)), Box::pin(subscribe(&bus))];
    for opening in &mut openings {
        assert!(opening.as_mut().now_or_never().is_none());
    }
    assert_eq!(bus.stats().open_channels, 1);
    drop(openings);
    assert_eq!((bus.stats().open_channels, authority.undropped()), (0, 0));
    authority.release();
    bus.publish(note(&document("other"), 1)).await.unwrap();
}

#[tokio::test]
async fn a_document_whose_history_cannot_be_read_is_given_up() {
    let authority = ManualOwnership::default();
    let log = MemoryLog::new();
    log.fail_next_head(LogError::Closed);
    let bus = owned(&authority, Some(Arc::new(log)), BusConfig::default());
    let refused = subscribe(&bus).await;
    assert!(matches!(refused, Err(SubscribeError::Log(LogError::Closed))), "{refused:?}");
    assert_eq!((bus.stats().open_channels, authority.undropped()), (0, 0));
}

#[tokio::test]
async fn an_evicted_document_is_given_up() {
    let authority = ManualOwnership::default();
    let config = config(|c| c.idle_after = Duration::ZERO);
    let bus = owned(&authority, Some(Arc::new(MemoryLog::new())), config);
    bus.publish(note(&document("doc"), 1)).await.unwrap();
    assert_eq!(authority.undropped(), 1);
    settle().await;
    bus.sweep();
    assert_eq!(authority.undropped(), 0);
}

#[tokio::test]
async fn a_bus_that_stops_gives_its_documents_up_though_readers_hold_them() {
    let authority = ManualOwnership::default();
    let bus = owned(&authority, Some(Arc::new(MemoryLog::new())), BusConfig::default());
    let mut events = subscribe(&bus).await.unwrap();
    bus.publish(note(&document("doc"), 1)).await.unwrap();
    assert!(bus.shutdown(Duration::from_secs(10)).await.complete);
    assert_eq!(authority.undropped(), 0);
    assert!(matches!(soon(events.next()).await, Some(Ok(_))));
    assert!(soon(events.next()).await.is_none());
}
