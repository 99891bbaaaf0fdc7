//! Locks beside a plain model, under a manual clock. In any order of steps, scopes of two users never overlap, each request is
//! answered, tokens grow, and exactly the edits that the locks allow are let through.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use relay_core::testing::ManualClock;
use relay_core::{
    Actor, CheckedDraft, Clock, DocumentId, Draft, Epoch, FencingToken, Lease, LockScope, MemoryBudget,
    MemoryLimits, MemoryPurpose, Metadata, Monotonic, Payload, Place, PublishError, Region, Seq, Sequencer,
    TokenSource, UserId,
};
use relay_events::{DOCUMENT_EDITED, DOCUMENT_LOCKED, DOCUMENT_UNLOCKED, LOCK_RENEWED, PayloadError};
use relay_presence::{
    AcquireRequest, FileTokens, LockConfig, LockError, Locks, MemoryTokens, TokenFileError,
};

type Asking = Pin<Box<dyn Future<Output = Result<Lease, LockError>>>>;

struct Scene {
    locks: Locks,
    memory: MemoryBudget,
    clock: Arc<ManualClock>,
    document: DocumentId,
    /// The published drafts, in order.
    published: Vec<CheckedDraft>,
    /// The error of publishing; `None` while it works.
    trouble: Option<PublishError>,
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn place() -> Place {
    Place::new(Epoch::from_u64(1), Seq::FIRST)
}

/// Gives a draft its place in the document's order.
fn give_place(locks: &Locks, draft: &CheckedDraft) {
    locks.check(&mut draft.clone(), place()).unwrap();
    locks.placed(draft, place());
}

impl Scene {
    fn new() -> Self {
        Self::with(LockConfig::default())
    }

    fn with(config: LockConfig) -> Self {
        Self::within(config, MemoryBudget::default())
    }

    fn within(config: LockConfig, memory: MemoryBudget) -> Self {
        let clock = Arc::new(ManualClock::new());
        let tokens = Arc::new(MemoryTokens::new(&*clock));
        let locks = Locks::with_memory(config, Arc::clone(&clock) as _, tokens, &memory).unwrap();
        let document = DocumentId::new("notes").unwrap();
        Self { locks, memory, clock, document, published: Vec::new(), trouble: None }
    }

    fn ask(&self, user: &str, scope: LockScope, ttl: Duration, wait: Duration) -> Asking {
        let (locks, document, user) = (self.locks.clone(), self.document.clone(), user_id(user));
        let request = AcquireRequest::new(scope).ttl(ttl).wait(wait);
        Box::pin(async move { locks.acquire(&document, &user, request).await })
    }

    /// Asks for a lock on all of `document`, as the client at `address`.
    fn ask_from(&mut self, address: [u8; 4], document: &str) -> Result<Lease, LockError> {
        let (locks, document) = (self.locks.clone(), DocumentId::new(document).unwrap());
        let memory = self.memory.connection(Some(address.into()));
        let request = AcquireRequest::new(LockScope::Document).memory(Some(memory));
        self.run(async move { locks.acquire(&document, &user_id("ada"), request).await })
    }

    /// Publishes all changes.
    fn publish(&mut self) {
        loop {
            let next = self.locks.next_change();
            let Poll::Ready(Some(change)) = poll(&mut Box::pin(next)) else { return };
            let outcome = self.trouble.clone().map_or(Ok(()), Err);
            if outcome.is_ok() {
                give_place(&self.locks, &change.draft);
                self.published.push(change.draft);
            }
            change.publication.report(outcome);
        }
    }

    /// Polls a request until it has to wait.
    fn go_on(&mut self, asking: &mut Asking) -> Option<Result<Lease, LockError>> {
        for _ in 0..3 {
            if let Poll::Ready(answer) = poll(asking) {
                return Some(answer);
            }
            self.publish();
        }
        None
    }

    #[track_caller]
    fn acquire(&mut self, user: &str, scope: LockScope) -> Result<Lease, LockError> {
        let mut asking = self.ask(user, scope, Duration::from_secs(30), Duration::ZERO);
        self.go_on(&mut asking).expect("an answer, since the request does not wait")
    }

    fn run(
        &mut self,
        asking: impl Future<Output = Result<Lease, LockError>> + 'static,
    ) -> Result<Lease, LockError> {
        let mut asking: Asking = Box::pin(asking);
        self.go_on(&mut asking).expect("an answer")
    }

    fn release(&mut self, user: &str, token: FencingToken) -> Result<Lease, LockError> {
        let (locks, document, user) = (self.locks.clone(), self.document.clone(), user_id(user));
        self.run(async move { locks.release(&document, &user, token).await })
    }

    fn renew(&mut self, user: &str, token: FencingToken, ttl: Duration) -> Result<Lease, LockError> {
        let (locks, document, user) = (self.locks.clone(), self.document.clone(), user_id(user));
        self.run(async move { locks.renew(&document, &user, token, Some(ttl)).await })
    }

    fn force(&mut self, token: FencingToken) -> Result<Lease, LockError> {
        let (locks, document) = (self.locks.clone(), self.document.clone());
        self.run(async move { locks.force_release(&document, token).await })
    }

    fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
        self.locks.sweep();
        self.publish();
    }

    /// Checks an edit as the document's order does. Returns the error's code when it is refused.
    fn edit(
        &self,
        user: &str,
        region: Option<&str>,
        token: Option<FencingToken>,
    ) -> Result<(), &'static str> {
        let mut metadata = Metadata::default();
        if let Some(region) = region {
            metadata.insert(LockScope::REGION_KEY, region).unwrap();
        }
        if let Some(token) = token {
            metadata.insert(LockScope::TOKEN_KEY, token.to_string()).unwrap();
        }
        let payload = Payload::json(&serde_json::json!({"patches": []})).unwrap();
        let draft = Draft::new(self.document.clone(), DOCUMENT_EDITED, payload)
            .actor(Actor::User(user_id(user)))
            .metadata(metadata);
        let mut draft = relay_events::check(draft).unwrap();
        self.locks.check(&mut draft, place()).map_err(|error| error.code().as_str())
    }
}

fn user_id(user: &str) -> UserId {
    UserId::new(user).unwrap()
}

fn region(name: &str) -> LockScope {
    LockScope::Region(Region::new(name).unwrap())
}

/// A lock in the model.
#[derive(Debug, Clone)]
struct Held {
    token: FencingToken,
    user: &'static str,
    scope: LockScope,
    until: Monotonic,
}

/// A request that waits in the model.
#[derive(Debug, Clone)]
struct Waiting {
    id: usize,
    user: &'static str,
    scope: LockScope,
    ttl: Duration,
    until: Monotonic,
    /// True when the user has left.
    is_gone: bool,
}

/// Locks and requests in plain lists.
#[derive(Debug, Default)]
struct Model {
    held: Vec<Held>,
    waiting: Vec<Waiting>,
}

#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    New,
    Renewed(FencingToken),
    Refused,
    Gone,
}

impl Model {
    /// The outcomes of the requests that wait, in their order. New locks have no token yet.
    fn settle(&mut self, now: Monotonic) -> Vec<(usize, Outcome)> {
        self.held.retain(|held| now < held.until);
        let mut outcomes = Vec::new();
        let mut still: Vec<Waiting> = Vec::new();
        for waiter in std::mem::take(&mut self.waiting) {
            if waiter.is_gone {
                outcomes.push((waiter.id, Outcome::Gone));
                continue;
            }
            let own = |held: &&mut Held| held.user == waiter.user && held.scope == waiter.scope;
            if let Some(held) = self.held.iter_mut().find(own) {
                held.until = held.until.max(now + waiter.ttl);
                outcomes.push((waiter.id, Outcome::Renewed(held.token)));
                continue;
            }
            let overlaps =
                |user: &str, scope: &LockScope| user != waiter.user && scope.overlaps(&waiter.scope);
            let blocked = self.held.iter().any(|held| overlaps(held.user, &held.scope))
                || still.iter().any(|other| overlaps(other.user, &other.scope));
            if !blocked {
                let (user, scope, until) = (waiter.user, waiter.scope, now + waiter.ttl);
                self.held.push(Held { token: FencingToken::new(0), user, scope, until });
                outcomes.push((waiter.id, Outcome::New));
            } else if now >= waiter.until {
                outcomes.push((waiter.id, Outcome::Refused));
            } else {
                still.push(waiter);
            }
        }
        self.waiting = still;
        outcomes
    }

    fn edit(&self, user: &str, scope: &LockScope, token: Option<FencingToken>) -> Result<(), &'static str> {
        let covers = |held: &Held| held.scope == LockScope::Document || held.scope == *scope;
        let own = self.held.iter().filter(|held| held.user == user).find(|held| Some(held.token) == token);
        if token.is_some() && !own.is_some_and(covers) {
            return Err("stale_lock");
        }
        let in_the_way = self.held.iter().any(|held| held.user != user && held.scope.overlaps(scope));
        if in_the_way { Err("locked") } else { Ok(()) }
    }
}

const USERS: [&str; 3] = ["ada", "bob", "cleo"];

#[derive(Debug, Clone, Copy)]
enum Step {
    Acquire(usize, usize, u64, u64),
    Renew(usize, prop::sample::Index, u64),
    Release(usize, prop::sample::Index),
    Force(prop::sample::Index),
    Gone(usize),
    Advance(u64),
    /// The caller of this request stops waiting.
    Drop(prop::sample::Index),
    Edit(usize, usize, Option<prop::sample::Index>),
}

fn scope(number: usize) -> LockScope {
    [LockScope::Document, region("intro"), region("end")][number].clone()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (user, scope) = (0..USERS.len(), 0_usize..3);
    let any = any::<prop::sample::Index>;
    let step = prop_oneof![
        5 => (user.clone(), scope.clone(), 1_u64..30, 0_u64..30).prop_map(|(u, s, t, w)| Step::Acquire(u, s, t, w)),
        1 => (user.clone(), any(), 1_u64..30).prop_map(|(u, l, t)| Step::Renew(u, l, t)),
        2 => (user.clone(), any()).prop_map(|(u, l)| Step::Release(u, l)),
        1 => any().prop_map(Step::Force),
        1 => user.clone().prop_map(Step::Gone),
        3 => (0_u64..12).prop_map(Step::Advance),
        1 => any().prop_map(Step::Drop),
        4 => (user, scope, proptest::option::of(any())).prop_map(|(u, s, l)| Step::Edit(u, s, l)),
    ];
    prop::collection::vec(step, 1..120)
}

/// The real locks and the model, side by side.
struct Pair {
    scene: Scene,
    model: Model,
    asking: Vec<(usize, Asking)>,
    /// All tokens that were ever issued.
    tokens: Vec<FencingToken>,
    asked: usize,
}

impl Pair {
    fn now(&self) -> Monotonic {
        self.scene.clock.monotonic()
    }

    /// The token of a present or former lock.
    fn token(&self, index: prop::sample::Index) -> FencingToken {
        if self.tokens.is_empty() { FencingToken::new(1) } else { *index.get(&self.tokens) }
    }

    /// Advances both to the present, and compares the outcomes.
    fn settle(&mut self) {
        // Each lock that ends makes way for requests that wait.
        self.scene.publish();
        let expected = self.model.settle(self.now());
        let mut answered = Vec::new();
        let mut asking = std::mem::take(&mut self.asking);
        // In the order of the requests, which is that of the tokens.
        asking.retain_mut(|(id, future)| match self.scene.go_on(future) {
            Some(answer) => {
                answered.push((*id, answer));
                false
            }
            None => true,
        });
        self.asking = asking;
        let ids: Vec<usize> = answered.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, expected.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "who is answered");
        let newest = self.tokens.iter().max().copied();
        for ((_, answer), (_, outcome)) in answered.into_iter().zip(expected) {
            match (answer, outcome) {
                (Ok(lease), Outcome::New) => {
                    // Locks that end together make way one after the other, so within one step the order may differ.
                    assert!(newest < Some(lease.token) && !self.tokens.contains(&lease.token), "tokens grow");
                    self.tokens.push(lease.token);
                    let new = |held: &&mut Held| held.token.get() == 0 && held.user == lease.holder.as_str();
                    let new = self.model.held.iter_mut().filter(new).find(|held| held.scope == lease.scope);
                    new.unwrap().token = lease.token;
                }
                (Ok(lease), Outcome::Renewed(token)) => {
                    // Granted to another request in the same pass, it had no token in the model yet.
                    assert!(token.get() == 0 || lease.token == token, "{lease:?}");
                }
                (Err(error), Outcome::Refused) => {
                    assert!(["locked", "wait_timeout"].contains(&error.code().as_str()), "{error}");
                    assert!(error.holder().is_some());
                }
                (Err(error), Outcome::Gone) => assert_eq!(error.code().as_str(), "not_joined"),
                (answer, outcome) => panic!("{answer:?} is not {outcome:?}"),
            }
        }
        self.compare();
    }

    fn compare(&self) {
        let held = self.scene.locks.held(&self.scene.document);
        for (index, one) in held.iter().enumerate() {
            let overlapping = held[index + 1..]
                .iter()
                .find(|other| other.scope.overlaps(&one.scope) && other.holder != one.holder);
            assert!(overlapping.is_none(), "{one:?} and {overlapping:?}");
        }
        let mut shown: Vec<_> = held.iter().map(|lease| (lease.token, lease.holder.as_str())).collect();
        let mut expected: Vec<_> = self.model.held.iter().map(|held| (held.token, held.user)).collect();
        shown.sort_unstable();
        expected.sort_unstable();
        assert_eq!(shown, expected);
    }

    fn take(&mut self, step: Step) {
        let seconds = Duration::from_secs;
        match step {
            Step::Acquire(user, number, ttl, wait) => {
                let (user, ttl, wait) = (USERS[user], seconds(ttl), seconds(wait));
                self.asked += 1;
                let mut asking = self.scene.ask(user, scope(number), ttl, wait);
                // The request enters the queue now, or is refused.
                if let Poll::Ready(answer) = poll(&mut asking) {
                    asking = Box::pin(std::future::ready(answer));
                }
                self.asking.push((self.asked, asking));
                let until = self.now() + wait;
                self.model.waiting.push(Waiting {
                    id: self.asked,
                    user,
                    scope: scope(number),
                    ttl,
                    until,
                    is_gone: false,
                });
            }
            Step::Renew(user, token, ttl) => {
                let (user, token, ttl, now) = (USERS[user], self.token(token), seconds(ttl), self.now());
                let renewed = self.scene.renew(user, token, ttl);
                let held = self.model.held.iter_mut().find(|held| held.token == token && held.user == user);
                assert_eq!(renewed.is_ok(), held.is_some());
                if let Some(held) = held {
                    held.until = held.until.max(now + ttl);
                }
            }
            Step::Release(user, token) => {
                let (user, token) = (USERS[user], self.token(token));
                let released = self.scene.release(user, token);
                let before = self.model.held.len();
                self.model.held.retain(|held| held.token != token || held.user != user);
                assert_eq!(released.is_ok(), self.model.held.len() < before);
            }
            Step::Force(token) => {
                let token = self.token(token);
                let released = self.scene.force(token);
                let before = self.model.held.len();
                self.model.held.retain(|held| held.token != token);
                assert_eq!(released.is_ok(), self.model.held.len() < before);
            }
            Step::Gone(user) => {
                self.scene.locks.user_gone(&self.scene.document, &user_id(USERS[user]));
                self.model.held.retain(|held| held.user != USERS[user]);
                let waiting = self.model.waiting.iter_mut().filter(|waiting| waiting.user == USERS[user]);
                waiting.for_each(|waiting| waiting.is_gone = true);
            }
            Step::Advance(by) => {
                self.scene.clock.advance(seconds(by));
                self.scene.locks.sweep();
            }
            Step::Drop(index) => {
                if !self.asking.is_empty() {
                    let at = index.index(self.asking.len());
                    let (id, _) = self.asking.remove(at);
                    self.model.waiting.retain(|waiting| waiting.id != id);
                }
            }
            Step::Edit(user, number, token) => {
                let (user, scope) = (USERS[user], scope(number));
                let token = token.map(|token| self.token(token));
                let expected = self.model.edit(user, &scope, token);
                assert_eq!(self.scene.edit(user, scope.region().map(Region::as_str), token), expected);
            }
        }
        self.settle();
    }
}

proptest! {
    #[test]
    fn locks_are_those_of_the_plain_model(steps in steps()) {
        let (scene, model) = (Scene::new(), Model::default());
        let mut pair = Pair { scene, model, asking: Vec::new(), tokens: Vec::new(), asked: 0 };
        for step in steps {
            pair.take(step);
        }
        // In the end every request is answered, and no locks are left.
        pair.scene.clock.advance(Duration::from_secs(60));
        pair.scene.locks.sweep();
        pair.settle();
        pair.scene.clock.advance(Duration::from_secs(60));
        pair.scene.locks.sweep();
        pair.settle();
        prop_assert!(pair.asking.is_empty());
        prop_assert_eq!(pair.scene.locks.stats().documents, 0);
        prop_assert_eq!(pair.scene.memory.total().used(), 0);
        // By the events, too, each lock begins once and ends once, and locks that overlap are never held at the same time.
        let mut open: Vec<(u64, String, Option<String>)> = Vec::new();
        for draft in &pair.scene.published {
            let Payload::Json(payload) = &draft.payload else { panic!("{draft:?}") };
            let event: serde_json::Value = serde_json::from_str(payload.as_str()).unwrap();
            let (token, holder) = (event["token"].as_u64().unwrap(), event["holder"].as_str().unwrap().to_owned());
            let region = event["region"].as_str().map(str::to_owned);
            if draft.kind == DOCUMENT_LOCKED {
                prop_assert!(open.iter().all(|(known, ..)| *known != token), "{} begins once", token);
                let clash = open.iter().find(|(_, other, held)| {
                    *other != holder && (held.is_none() || region.is_none() || *held == region)
                });
                prop_assert!(clash.is_none(), "{token} of {holder} and {clash:?}");
                open.push((token, holder, region));
            } else if draft.kind == LOCK_RENEWED {
                prop_assert!(draft.kind.is_ephemeral() && open.iter().any(|(known, ..)| *known == token));
            } else {
                prop_assert_eq!(&draft.kind, &DOCUMENT_UNLOCKED);
                let before = open.len();
                open.retain(|(known, ..)| *known != token);
                prop_assert_eq!(open.len() + 1, before);
            }
        }
        prop_assert!(open.is_empty());
    }
}

#[test]
fn one_address_has_locks_in_a_quarter_of_the_documents_that_may_have_some() {
    let mut config = LockConfig::default();
    config.max_documents = 8;
    let mut scene = Scene::with(config);
    let (ada, ben) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let first = scene.ask_from(ada, "one").unwrap();
    scene.ask_from(ada, "two").unwrap();
    let refused = scene.ask_from(ada, "three").unwrap_err();
    assert_eq!(refused.code().as_str(), "too_many_documents");
    assert!(refused.to_string().contains("10.0.0.1 have joined or locked 2 documents"), "{refused}");
    assert_eq!(scene.locks.stats().refused, 1);
    // Further locks of the same documents take no further place, and other addresses have their own.
    scene.ask_from(ada, "two").unwrap();
    scene.ask_from(ben, "three").unwrap();
    // A place is free again when the lock has ended.
    scene.document = DocumentId::new("one").unwrap();
    scene.release("ada", first.token).unwrap();
    scene.ask_from(ada, "four").unwrap();
}

#[test]
fn a_request_beyond_the_limit_of_documents_counts_as_refused() {
    let mut config = LockConfig::default();
    config.max_documents = 1;
    let mut scene = Scene::with(config);
    scene.ask_from([10, 0, 0, 1], "one").unwrap();
    let refused = scene.ask_from([10, 0, 0, 2], "two").unwrap_err();
    assert!(matches!(refused, LockError::TooManyDocuments { max: 1 }), "{refused}");
    assert_eq!(scene.locks.stats().refused, 1);
}

#[test]
fn locks_and_renewals_count_to_the_memory_of_their_client_until_their_last_event() {
    let mut limits = MemoryLimits::default();
    (limits.max_address_bytes, limits.max_connection_bytes) = (8 * 1024, 8 * 1024);
    let mut scene = Scene::within(LockConfig::default(), MemoryBudget::new(limits));
    let (ada, ben) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let mut tokens = Vec::new();
    let refused = loop {
        match scene.ask_from(ada, &format!("doc-{}", tokens.len())) {
            Ok(lease) => tokens.push(lease.token),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code().as_str(), "overloaded");
    assert!(refused.to_string().contains("your address"), "{refused}");
    assert_eq!(tokens.len(), 7);
    scene.ask_from(ben, "other").unwrap();
    let held = scene.memory.held(MemoryPurpose::Locks);
    assert!((8 * 1024..9 * 1024).contains(&held), "{held}");

    // A renewal takes memory until its event is published.
    scene.document = DocumentId::new("doc-1").unwrap();
    let renew = |scene: &Scene| -> Asking {
        let (locks, document, token) = (scene.locks.clone(), scene.document.clone(), tokens[1]);
        Box::pin(async move { locks.renew(&document, &user_id("ada"), token, None).await })
    };
    let mut first = renew(&scene);
    assert!(poll(&mut first).is_pending());
    let Poll::Ready(Err(refused)) = poll(&mut renew(&scene)) else { panic!("the second has memory") };
    assert_eq!(refused.code().as_str(), "overloaded");
    assert!(scene.go_on(&mut first).unwrap().is_ok());
    let mut third = renew(&scene);
    assert!(scene.go_on(&mut third).unwrap().is_ok());
    assert_eq!(scene.memory.held(MemoryPurpose::Locks), held);

    // Locks that have expired take memory until their end is published.
    scene.clock.advance(Duration::from_secs(60));
    scene.locks.sweep();
    assert_eq!(scene.memory.held(MemoryPurpose::Locks), held);
    scene.publish();
    assert_eq!(scene.memory.total().used(), 0);
}

#[test]
fn a_lock_whose_event_is_not_kept_is_no_lock() {
    let mut scene = Scene::new();
    scene.trouble = Some(PublishError::Closed);
    let refused = scene.acquire("ada", LockScope::Document).unwrap_err();
    assert_eq!(refused.code().as_str(), "closed");
    assert_eq!(scene.edit("bob", None, None), Ok(()));
    scene.trouble = None;
    assert!(scene.acquire("bob", LockScope::Document).is_ok());
}

#[test]
fn an_edit_is_kept_out_from_the_moment_of_the_grant_until_the_end_has_its_place() {
    let mut scene = Scene::new();
    let mut asking = scene.ask("ada", LockScope::Document, Duration::from_secs(30), Duration::ZERO);
    assert!(poll(&mut asking).is_pending());
    // Granted, and not published yet.
    assert_eq!(scene.edit("bob", None, None), Err("locked"));
    let lease = scene.go_on(&mut asking).unwrap().unwrap();
    assert_eq!(scene.edit("ada", None, Some(lease.token)), Ok(()));
    // Expired, though no sweep has come by.
    scene.clock.advance(Duration::from_secs(30));
    assert_eq!(scene.edit("bob", None, None), Ok(()));
    assert_eq!(scene.edit("ada", None, Some(lease.token)), Err("stale_lock"));
}

#[test]
fn an_invalid_claim_is_refused() {
    let scene = Scene::new();
    let payload = Payload::json(&serde_json::json!({"patches": []})).unwrap();
    for (key, value) in [(LockScope::TOKEN_KEY, "seven"), (LockScope::REGION_KEY, "")] {
        let mut metadata = Metadata::default();
        metadata.insert(key, value).unwrap();
        let draft = Draft::new(scene.document.clone(), DOCUMENT_EDITED, payload.clone()).metadata(metadata);
        assert!(matches!(relay_events::check(draft), Err(PayloadError::InvalidClaim { .. })), "{key}");
    }
}

#[test]
fn limits_are_kept() {
    let mut config = LockConfig::default();
    (config.max_locks, config.max_waiters) = (1, 1);
    let mut scene = Scene::with(config);
    let first = scene.acquire("ada", region("intro")).unwrap();
    assert_eq!(scene.acquire("ada", region("end")).unwrap_err().code().as_str(), "too_many_locks");
    let wait = Duration::from_secs(10);
    let mut bob = scene.ask("bob", region("intro"), wait, wait);
    assert!(scene.go_on(&mut bob).is_none());
    let mut cleo = scene.ask("cleo", region("intro"), wait, wait);
    assert_eq!(scene.go_on(&mut cleo).unwrap().unwrap_err().code().as_str(), "too_many_waiters");
    scene.release("ada", first.token).unwrap();
    assert!(scene.go_on(&mut bob).unwrap().is_ok());
    scene.advance(Duration::from_secs(10));
    assert_eq!(scene.locks.stats().documents, 0);
}

#[tokio::test]
async fn tokens_in_a_file_grow_over_restarts_and_a_damaged_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, clock) = (directory.path().join("tokens"), ManualClock::new());
    let mut last = FencingToken::new(0);
    for restart in 0..4 {
        // The clock goes backwards, as clocks do.
        clock.set_wall(relay_core::Timestamp::from_micros(1_000_000 - restart));
        let tokens = FileTokens::open(&path, &clock).unwrap();
        for _ in 0..2_500 {
            tokens.reserve().await.unwrap();
            let token = tokens.issue();
            assert!(token > last);
            last = token;
        }
        // Reserved, and lost with the process.
        tokens.reserve().await.unwrap();
    }
    std::fs::write(&path, "relay fencing tokens: reserved below 7 (0x8)\n").unwrap();
    assert!(matches!(FileTokens::open(&path, &clock), Err(TokenFileError::Damaged { .. })));
    assert!(clock.wall().as_micros() < 1_000_001);
}
