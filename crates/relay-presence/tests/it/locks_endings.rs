//! The ends of locks: their places in the document's order, requests whose caller is gone, events that the log does not take,
//! and the server's shutdown.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use relay_core::testing::ManualClock;
use relay_core::{
    Actor, CheckedDraft, Clock, DocumentId, Draft, Epoch, EventSink, FencingToken, Lease, LockScope,
    Metadata, Payload, Place, PublishAck, PublishError, Seq, Sequencer, ServiceName, Timestamp, UserId,
};
use relay_events::{DOCUMENT_EDITED, DOCUMENT_LOCKED, DOCUMENT_UNLOCKED, DocumentUnlocked};
use relay_presence::{
    AcquireRequest, LocalPresence, LockChange, LockConfig, LockError, Locks, MemoryTokens, PresenceConfig,
};

use crate::support::PATIENCE;

type Asking = Pin<Box<dyn Future<Output = Result<Lease, LockError>>>>;

fn poll<T>(future: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn answer(asking: &mut Asking) -> Result<Lease, LockError> {
    let Poll::Ready(answer) = poll(asking) else { panic!("there is no answer") };
    answer
}

fn locks() -> Locks {
    let clock = Arc::new(ManualClock::new());
    let tokens = Arc::new(MemoryTokens::new(&*clock));
    Locks::new(LockConfig::default(), clock, tokens).unwrap()
}

fn document() -> DocumentId {
    DocumentId::new("notes").unwrap()
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Asks for the whole document, and enters the queue.
fn ask(locks: &Locks, name: &str, wait: Duration) -> Asking {
    let (locks, holder) = (locks.clone(), user(name));
    let request = AcquireRequest::new(LockScope::Document).wait(wait);
    let mut asking: Asking = Box::pin(async move { locks.acquire(&document(), &holder, request).await });
    assert!(poll(&mut asking).is_pending());
    asking
}

fn release(locks: &Locks, name: &str, token: FencingToken) -> Asking {
    let (locks, holder) = (locks.clone(), user(name));
    let mut asking: Asking = Box::pin(async move { locks.release(&document(), &holder, token).await });
    assert!(poll(&mut asking).is_pending());
    asking
}

fn try_next(locks: &Locks) -> Poll<Option<LockChange>> {
    let mut next: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(locks.next_change());
    poll(&mut next)
}

fn next(locks: &Locks) -> LockChange {
    let Poll::Ready(Some(change)) = try_next(locks) else { panic!("there is no change") };
    change
}

fn place() -> Place {
    Place::new(Epoch::from_u64(1), Seq::FIRST)
}

/// Gives a draft its place in the document's order.
fn give_place(locks: &Locks, draft: &CheckedDraft) {
    locks.check(&mut draft.clone(), place()).unwrap();
    locks.placed(draft, place());
}

/// Gives the change its place and reports it as durable.
fn publish(locks: &Locks, change: LockChange) {
    give_place(locks, &change.draft);
    change.publication.report(Ok(()));
}

fn acquire(locks: &Locks, name: &str) -> Lease {
    let mut asking = ask(locks, name, Duration::ZERO);
    publish(locks, next(locks));
    answer(&mut asking).unwrap()
}

fn reason(change: &LockChange) -> String {
    assert_eq!(change.draft.kind, DOCUMENT_UNLOCKED);
    let Payload::Json(payload) = &change.draft.payload else { panic!("{change:?}") };
    let event: serde_json::Value = serde_json::from_str(payload.as_str()).unwrap();
    event["reason"].as_str().unwrap().to_owned()
}

/// The code of an edit's refusal.
fn edit(locks: &Locks, actor: Actor, token: Option<FencingToken>) -> Option<&'static str> {
    let mut metadata = Metadata::default();
    if let Some(token) = token {
        metadata.insert(LockScope::TOKEN_KEY, token.to_string()).unwrap();
    }
    let payload = Payload::json(&serde_json::json!({"patches": []})).unwrap();
    let draft = Draft::new(document(), DOCUMENT_EDITED, payload).actor(actor).metadata(metadata);
    let mut draft = relay_events::check(draft).unwrap();
    locks.check(&mut draft, place()).err().map(|error| error.code().as_str())
}

#[test]
fn a_lock_that_is_given_back_counts_until_its_end_has_its_place_and_no_longer() {
    let locks = locks();
    let (ada, bob) = (Actor::User(user("ada")), Actor::User(user("bob")));
    let token = acquire(&locks, "ada").token;
    let mut releasing = release(&locks, "ada", token);
    let change = next(&locks);
    // The end is being published. The holder's edits are still under the lock, and others are kept out.
    assert_eq!(edit(&locks, ada.clone(), Some(token)), None);
    assert_eq!(edit(&locks, bob.clone(), None), Some("locked"));
    give_place(&locks, &change.draft);
    // The end has its place. The token is stale, and others are not kept out.
    assert_eq!(edit(&locks, ada, Some(token)), Some("stale_lock"));
    assert_eq!(edit(&locks, bob, None), None);
    assert_eq!(locks.held(&document()), []);
    assert!(poll(&mut releasing).is_pending(), "answered before the end is kept");
    change.publication.report(Ok(()));
    assert_eq!(answer(&mut releasing).unwrap().token, token);
}

#[test]
fn a_lock_whose_end_the_log_drops_keeps_others_out_until_the_outcome_is_reported() {
    let locks = locks();
    let (ada, bob) = (Actor::User(user("ada")), Actor::User(user("bob")));
    let lease = acquire(&locks, "ada");
    let mut releasing = release(&locks, "ada", lease.token);
    let change = next(&locks);
    give_place(&locks, &change.draft);
    assert_eq!(edit(&locks, bob.clone(), None), None);
    // The events of another document change no lock of this document.
    locks.dropped(&DocumentId::new("drafts").unwrap(), place());
    assert_eq!(edit(&locks, bob.clone(), None), None);
    // Nor does the loss of later places, or of an earlier history's, or the end of the document's channel.
    locks.dropped(&document(), Place::new(place().epoch, place().seq.next()));
    locks.dropped(&document(), Place::new(Epoch::from_u64(2), Seq::FIRST));
    locks.closed(&document());
    assert_eq!(edit(&locks, bob.clone(), None), None);
    // The place is lost: the lock counts as it did before.
    locks.dropped(&document(), place());
    assert_eq!(edit(&locks, bob.clone(), None), Some("locked"));
    assert_eq!(edit(&locks, ada.clone(), Some(lease.token)), None);
    assert_eq!(locks.held(&document()), std::slice::from_ref(&lease));
    // A second attempt with the same draft gets another place, and the lock ends there.
    give_place(&locks, &change.draft);
    assert_eq!(edit(&locks, bob.clone(), None), None);
    locks.dropped(&document(), place());
    assert!(poll(&mut releasing).is_pending(), "answered before the outcome is reported");
    change.publication.report(Err(PublishError::Closed));
    assert_eq!(answer(&mut releasing).unwrap_err().code().as_str(), "closed");
    assert_eq!(edit(&locks, bob, None), None);
    assert_eq!(edit(&locks, ada, Some(lease.token)), Some("stale_lock"));
    assert_eq!(locks.stats().documents, 0);
}

#[test]
fn events_that_the_log_drops_end_no_lock_and_begin_none_again() {
    let locks = locks();
    let bob = Actor::User(user("bob"));
    // The event of a grant is dropped: the lock counts from the grant on, whatever becomes of the event.
    let mut asking = ask(&locks, "ada", Duration::ZERO);
    let granted = next(&locks);
    give_place(&locks, &granted.draft);
    locks.dropped(&document(), place());
    assert_eq!(edit(&locks, bob.clone(), None), Some("locked"));
    publish(&locks, granted);
    let token = answer(&mut asking).unwrap().token;
    // Events are dropped while nothing is published about the lock, and after its end was reported.
    locks.dropped(&document(), place());
    assert_eq!(edit(&locks, bob.clone(), None), Some("locked"));
    let mut releasing = release(&locks, "ada", token);
    publish(&locks, next(&locks));
    assert_eq!(answer(&mut releasing).unwrap().token, token);
    locks.dropped(&document(), place());
    assert_eq!(edit(&locks, bob, None), None);
}

#[test]
fn an_event_that_only_looks_like_the_end_of_a_lock_ends_nothing() {
    let locks = locks();
    let token = acquire(&locks, "ada").token;
    let _releasing = release(&locks, "ada", token);
    let change = next(&locks);
    let Payload::Json(payload) = &change.draft.payload else { panic!("{change:?}") };
    let payload: DocumentUnlocked = serde_json::from_str(payload.as_str()).unwrap();
    let forged = relay_events::server_draft(document(), &payload).unwrap();
    give_place(&locks, &forged);
    give_place(&locks, &forged.id(relay_core::EventId::new()));
    assert_eq!(edit(&locks, Actor::User(user("bob")), None), Some("locked"));
}

#[test]
fn a_waiter_gets_the_lock_when_the_end_of_the_previous_one_is_kept() {
    let locks = locks();
    let first = acquire(&locks, "ada");
    let mut waiting = ask(&locks, "bob", Duration::from_secs(10));
    let _releasing = release(&locks, "ada", first.token);
    publish(&locks, next(&locks));
    publish(&locks, next(&locks));
    let second = answer(&mut waiting).unwrap();
    assert!(second.token > first.token);
}

#[test]
fn a_lock_whose_asker_is_gone_before_the_answer_is_given_back() {
    // The caller is gone while the event waits, while it is published, and before the answer is read.
    for published in 0..3 {
        let locks = locks();
        let asking = ask(&locks, "ada", Duration::ZERO);
        let mut under_way = (published > 0).then(|| next(&locks));
        if published == 2 {
            publish(&locks, under_way.take().unwrap());
        }
        drop(asking);
        let granted = under_way.or_else(|| (published == 0).then(|| next(&locks)));
        if let Some(change) = granted {
            publish(&locks, change);
        }
        let ended = next(&locks);
        assert_eq!(reason(&ended), "released");
        publish(&locks, ended);
        assert_eq!(locks.stats().documents, 0, "gone at step {published}");
    }
}

#[test]
fn a_lock_that_a_second_tab_counts_on_outlives_the_request_of_the_first() {
    let locks = locks();
    let first = ask(&locks, "ada", Duration::ZERO);
    let mut second = ask(&locks, "ada", Duration::ZERO);
    drop(first);
    publish(&locks, next(&locks));
    publish(&locks, next(&locks));
    let lease = answer(&mut second).unwrap();
    assert!(try_next(&locks).is_pending());
    assert_eq!(locks.held(&document()), [lease]);
}

#[test]
fn of_a_lock_whose_beginning_is_not_kept_nothing_more_is_told() {
    let locks = locks();
    let mut first = ask(&locks, "ada", Duration::ZERO);
    let mut second = ask(&locks, "ada", Duration::ZERO);
    let overloaded = PublishError::Overloaded { document: document(), waited: Duration::from_secs(5) };
    next(&locks).publication.report(Err(overloaded));
    assert_eq!(answer(&mut first).unwrap_err().code().as_str(), "overloaded");
    assert_eq!(answer(&mut second).unwrap_err().code().as_str(), "overloaded");
    assert!(try_next(&locks).is_pending());
    assert_eq!(locks.stats().documents, 0);
}

#[test]
fn a_change_that_nobody_reports_on_is_not_kept() {
    let locks = locks();
    let mut asking = ask(&locks, "ada", Duration::ZERO);
    drop(next(&locks));
    assert_eq!(answer(&mut asking).unwrap_err().code().as_str(), "closed");
    assert_eq!(locks.held(&document()), []);
    assert_eq!(locks.stats().failed_changes, 1);
}

#[test]
fn a_lock_whose_end_is_not_kept_has_ended_nevertheless() {
    let locks = locks();
    let token = acquire(&locks, "ada").token;
    let mut waiting = ask(&locks, "bob", Duration::from_secs(10));
    let mut releasing = release(&locks, "ada", token);
    next(&locks).publication.report(Err(PublishError::Closed));
    assert_eq!(answer(&mut releasing).unwrap_err().code().as_str(), "closed");
    publish(&locks, next(&locks));
    assert_eq!(answer(&mut waiting).unwrap().holder, user("bob"));
}

#[test]
fn a_shutdown_ends_every_lock_sends_away_who_waits_and_gives_out_no_more() {
    let locks = locks();
    acquire(&locks, "ada");
    let mut waiting = ask(&locks, "bob", Duration::from_secs(10));
    locks.shutdown();
    assert_eq!(answer(&mut waiting).unwrap_err().code().as_str(), "closed");
    let ended = next(&locks);
    assert_eq!(reason(&ended), "shutdown");
    assert!(try_next(&locks).is_pending(), "not over before the last change is reported");
    publish(&locks, ended);
    assert!(matches!(try_next(&locks), Poll::Ready(None)));
    let request = AcquireRequest::new(LockScope::Document);
    let (notes, cleo) = (document(), user("cleo"));
    let mut late: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(locks.acquire(&notes, &cleo, request));
    assert!(matches!(poll(&mut late), Poll::Ready(Err(LockError::Closed))));
}

#[test]
fn services_and_the_system_are_kept_out_like_anybody_else() {
    let locks = locks();
    let token = acquire(&locks, "ada").token;
    let service = Actor::Service(ServiceName::new("ada").unwrap());
    for actor in [service, Actor::System] {
        assert_eq!(edit(&locks, actor.clone(), None), Some("locked"));
        assert_eq!(edit(&locks, actor, Some(token)), Some("stale_lock"));
    }
}

#[test]
fn a_document_tells_its_changes_one_after_the_other() {
    let locks = locks();
    let first = acquire(&locks, "ada");
    let _releasing = release(&locks, "ada", first.token);
    let ending = next(&locks);
    let _second = ask(&locks, "ada", Duration::ZERO);
    assert!(try_next(&locks).is_pending(), "told before the one before was kept");
    publish(&locks, ending);
    assert_eq!(next(&locks).draft.kind, DOCUMENT_LOCKED);
}

/// A sink that answers for one document alone.
struct OneDocumentSink(DocumentId);

#[async_trait]
impl EventSink for OneDocumentSink {
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        if draft.document != self.0 {
            std::future::pending::<()>().await;
        }
        let event = draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
        Ok(PublishAck::of(&event, false))
    }
}

#[tokio::test]
async fn documents_whose_events_are_not_answered_hold_up_the_locks_of_no_other() {
    let document = |name: &str| DocumentId::new(name).unwrap();
    let (clock, user): (Arc<dyn Clock>, _) = (Arc::new(ManualClock::new()), UserId::new("ada").unwrap());
    let tokens = Arc::new(MemoryTokens::new(&relay_core::SystemClock::new()));
    let locks = Locks::new(LockConfig::default(), Arc::clone(&clock), tokens).unwrap();
    let sink = Arc::new(OneDocumentSink(document("quick")));
    let presence = LocalPresence::new(PresenceConfig::default(), sink, locks, clock).unwrap();
    let lock = |name: &str| {
        let (presence, document, user) = (presence.clone(), document(name), user.clone());
        async move { presence.locks().acquire(&document, &user, AcquireRequest::new(LockScope::Document)).await }
    };
    let hung = futures_util::future::join_all((0..1_000).map(|n| lock(&format!("hung-{n}"))));
    let quick = async {
        while presence.locks().stats().pending_changes < 1_000 {
            tokio::task::yield_now().await;
        }
        tokio::time::timeout(PATIENCE, lock("quick")).await.unwrap().unwrap();
    };
    tokio::select! {
        _ = hung => panic!("their events are not answered"),
        () = quick => {}
    }
}
