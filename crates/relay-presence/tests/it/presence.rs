//! The events and changes that follow when participants join and leave.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use relay_core::{
    Activity, ErrorCode, JoinOptions, LeaveReason, LockScope, LogError, Membership, MemoryBudget,
    MemoryLimits, MemoryPurpose, Presence, PublishError, UserId,
};
use relay_presence::{AcquireRequest, PresenceConfig, SessionQuery, SessionState};
use serde_json::json;

use crate::support::{PATIENCE, Reader, Scene, object, sorted, users, without_refs};

#[tokio::test]
async fn a_session_and_a_user_begin_once_and_end_once_however_many_tabs_there_are() {
    let scene = Scene::new();
    let (first, joined) = scene.join("ada").await;
    let (second, _) = scene.join("ada").await;
    let (bob, _) = scene.join("bob").await;
    scene.sink.until(3).await;
    scene.presence.leave(&first, LeaveReason::Left);
    scene.presence.leave(&bob, LeaveReason::Left);
    scene.presence.leave(&second, LeaveReason::Left);
    let told = scene.sink.until(6).await;
    assert_eq!(
        told,
        [
            "session.started",
            "user.joined ada",
            "user.joined bob",
            "user.left bob left",
            "user.left ada left",
            "session.ended left"
        ]
    );
    assert!(scene.sink.events().iter().all(|event| event.session == Some(joined.session)));
    let (_, again) = scene.join("ada").await;
    assert_ne!(again.session, joined.session);
}

#[tokio::test]
async fn a_lost_connection_that_is_back_in_time_is_not_noticed_by_anybody() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    scene.request(&ada, "presence:update", json!({"name": "Ada"})).await.unwrap();
    let (_bob, joined) = scene.join("bob").await;
    let mut reader = Reader::new(joined.presence);
    scene.clock.advance(Duration::from_secs(1));
    scene.presence.sweep();
    reader.read();
    let before = (reader.known(), reader.diffs.len());
    scene.presence.leave(&ada, LeaveReason::Lost);
    scene.advance(Duration::from_millis(4_999));
    scene.join("ada").await;
    scene.advance(Duration::from_secs(50));
    reader.read();
    assert_eq!((reader.known(), reader.diffs.len()), before);
    assert_eq!(scene.participants()["ada"], json!({"metas": [{"name": "Ada"}]}));
    assert_eq!(scene.sink.until(3).await.len(), 3);
    assert_eq!(scene.presence.stats().returns, 1);
}

#[tokio::test]
async fn a_lost_connection_that_is_not_back_in_time_is_gone_for_everybody() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    let (_bob, joined) = scene.join("bob").await;
    let mut reader = Reader::new(joined.presence);
    reader.read();
    scene.presence.leave(&ada, LeaveReason::Lost);
    scene.advance(Duration::from_millis(4_999));
    assert_eq!(scene.participants()["ada"], json!({"metas": [{}]}));
    scene.advance(Duration::from_millis(1));
    // A change soon after another becomes visible a little later.
    scene.advance(Duration::from_secs(1));
    reader.read();
    assert_eq!(scene.participants(), json!({"bob": {"metas": [{}]}}));
    assert_eq!(reader.known().as_object().unwrap().keys().collect::<Vec<_>>(), ["bob"]);
    assert_eq!(scene.sink.until(4).await[3], "user.left ada stale");
}

#[tokio::test]
async fn a_new_connection_takes_over_the_one_that_it_names_even_if_that_seems_alive() {
    let scene = Scene::new();
    let (half_open, _) = scene.join("ada").await;
    let (tab, _) = scene.join("ada").await;
    scene.request(&half_open, "presence:update", json!({"tab": 1})).await.unwrap();
    scene.request(&tab, "presence:update", json!({"tab": 2})).await.unwrap();
    let membership = scene.membership("ada");
    let state = object(&json!({"tab": 3}));
    let options = JoinOptions::default().resume(half_open.connection).state(state);
    scene.join_as(&membership, options).await.unwrap();
    assert_eq!(scene.participants(), json!({"ada": {"metas": [{"tab": 2}, {"tab": 3}]}}));
    // Calls of the old connection have no effect.
    scene.presence.leave(&half_open, LeaveReason::Lost);
    scene.presence.touch(&membership, Activity::Alive);
    scene.advance(Duration::from_secs(30));
    assert_eq!(scene.participants(), json!({"ada": {"metas": [{"tab": 2}, {"tab": 3}]}}));
    // A user cannot take over another user's connection.
    let mallory = scene.membership("mallory");
    scene.join_as(&mallory, JoinOptions::default().resume(membership.connection)).await.unwrap();
    assert_eq!(scene.participants()["ada"]["metas"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_member_that_resumes_another_connection_leaves_no_entry_behind() {
    let scene = Scene::new();
    let (one, _) = scene.join("ada").await;
    let (other, _) = scene.join("ada").await;
    let options = JoinOptions::default().resume(other.connection);
    scene.join_as(&one, options).await.unwrap();
    scene.presence.leave(&one, LeaveReason::Left);
    assert_eq!(scene.participants(), json!({"ada": {"metas": [{}]}}));
    scene.presence.leave(&other, LeaveReason::Left);
    assert_eq!(scene.sink.until(4).await[2..], ["user.left ada left", "session.ended left"]);
    let stats = scene.presence.stats();
    assert_eq!((scene.participants(), stats.users, stats.connections), (json!({}), 0, 0));
}

#[tokio::test]
async fn a_connection_belongs_to_one_user() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    let mallory = Membership { user: scene.membership("mallory").user, ..ada.clone() };
    assert_eq!(
        scene.join_as(&mallory, JoinOptions::default()).await.unwrap_err().code().as_str(),
        "invalid_request"
    );
    scene.presence.leave(&mallory, LeaveReason::Left);
    assert_eq!(scene.participants(), json!({"ada": {"metas": [{}]}}));
    scene.advance(Duration::from_secs(59));
    scene.presence.touch(&mallory, Activity::Alive);
    scene.advance(Duration::from_secs(1));
    assert_eq!(scene.participants(), json!({}));
}

#[tokio::test]
async fn locks_end_when_their_holder_has_been_gone_for_the_grace_time_whatever_others_do() {
    let scene = Scene::new();
    let (bob, _) = scene.join("bob").await;
    let (_tab, _) = scene.join("ada").await;
    let (lost, _) = scene.join("ada").await;
    let ask = AcquireRequest::new(LockScope::Document);
    scene.presence.locks().acquire(&scene.document, &bob.user, ask).await.unwrap();
    scene.presence.leave(&lost, LeaveReason::Lost);
    scene.advance(Duration::from_secs(4));
    scene.presence.leave(&bob, LeaveReason::Left);
    // Ada's lost tab is removed now; bob has been gone for a second.
    scene.advance(Duration::from_secs(1));
    assert_eq!((scene.presence.stats().connections, scene.presence.locks().stats().ended), (1, 0));
    scene.advance(Duration::from_secs(4));
    assert_eq!(scene.sink.until(6).await[5], "document.unlocked bob holder_gone");
    assert_eq!(scene.presence.locks().stats().ended, 1);
}

#[tokio::test]
async fn a_user_who_is_gone_is_granted_no_lock_and_one_who_never_joined_goes_on_waiting() {
    let scene = Scene::new();
    let (bob, _) = scene.join("bob").await;
    let (ada, _) = scene.join("ada").await;
    let locks = scene.presence.locks();
    let waiting = || AcquireRequest::new(LockScope::Document).wait(Duration::from_secs(60));
    let held = locks.acquire(&scene.document, &bob.user, waiting()).await.unwrap();
    let visitor = UserId::new("visitor").unwrap();
    let left = locks.acquire(&scene.document, &ada.user, waiting());
    let never_joined = locks.acquire(&scene.document, &visitor, waiting());
    let story = async {
        scene.presence.leave(&ada, LeaveReason::Left);
        scene.advance(Duration::from_secs(5));
        locks.release(&scene.document, &bob.user, held.token).await.unwrap();
    };
    let all = async { tokio::join!(left, never_joined, story) };
    let answered = tokio::time::timeout(Duration::from_secs(60), all).await;
    let (left, granted, ()) = answered.expect("both requests are answered");
    assert_eq!(left.unwrap_err().code().as_str(), "not_joined");
    assert_eq!(granted.unwrap().holder, visitor);
}

#[tokio::test]
async fn the_end_of_a_lock_is_published_once_the_log_takes_it() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    let locks = scene.presence.locks();
    let ask = AcquireRequest::new(LockScope::Document);
    let lease = locks.acquire(&scene.document, &ada.user, ask.clone()).await.unwrap();
    let overloaded = PublishError::Overloaded { document: scene.document.clone(), waited: Duration::ZERO };
    scene.sink.refuse(Some(overloaded.clone()));
    let released = locks.release(&scene.document, &ada.user, lease.token);
    let story = async {
        while locks.stats().retries == 0 {
            tokio::task::yield_now().await;
        }
        scene.sink.refuse(None);
    };
    let (released, ()) = tokio::join!(released, story);
    assert_eq!(released.unwrap().token, lease.token);
    assert_eq!(scene.sink.told().last().map(String::as_str), Some("document.unlocked ada released"));
    // A grant is refused at once: nobody needs to know of it.
    scene.sink.refuse(Some(overloaded));
    let refused = locks.acquire(&scene.document, &ada.user, ask).await.unwrap_err();
    assert_eq!(refused.code().as_str(), "overloaded");
}

#[tokio::test]
async fn users_that_leave_together_are_told_together_and_the_session_ends_after_them() {
    const USERS: usize = 200;
    let scene = Scene::new();
    for user in 0..USERS {
        scene.join(&format!("user-{user}")).await;
    }
    scene.sink.until(USERS + 1).await;
    // A publisher that told of one after the other would wait for ever.
    scene.sink.hold_leaving(USERS);
    assert!(scene.presence.shutdown(Duration::from_secs(20)).await);
    let told = scene.sink.told();
    assert!(told[USERS + 1..=2 * USERS].iter().all(|event| event.starts_with("user.left ")), "{told:?}");
    assert_eq!(told[2 * USERS + 1..], ["session.ended shutdown"]);
}

#[tokio::test]
async fn whom_the_server_closes_leaves_by_its_shutdown() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    let (bob, _) = scene.join("bob").await;
    scene.sink.until(3).await;
    scene.presence.leave(&ada, LeaveReason::Shutdown);
    scene.presence.leave(&bob, LeaveReason::Lost);
    scene.advance(Duration::from_secs(60));
    let told = scene.sink.until(6).await;
    assert!(told.contains(&"user.left ada shutdown".to_owned()), "{told:?}");
    assert!(told.contains(&"user.left bob stale".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_sink_that_panics_once_costs_one_event() {
    let scene = Scene::new();
    scene.sink.panic_once();
    let (ada, _) = scene.join("ada").await;
    assert_eq!(scene.sink.until(1).await, ["user.joined ada"]);
    let (locks, ask) = (scene.presence.locks(), AcquireRequest::new(LockScope::Document));
    scene.sink.panic_once();
    let failed = locks.acquire(&scene.document, &ada.user, ask.clone()).await.unwrap_err();
    assert_eq!(failed.code().as_str(), "log_failed");
    locks.acquire(&scene.document, &ada.user, ask).await.unwrap();
}

#[tokio::test]
async fn a_publisher_that_panics_hands_no_event_over_twice() {
    let scene = Scene::new();
    scene.sink.fall_silent();
    scene.join("ada").await;
    scene.kill("presence.publisher").await;
    scene.join("bob").await;
    // The publisher is at work again.
    let told = ["session.started", "user.joined ada", "user.joined bob"];
    assert_eq!(scene.sink.told(), told);
    scene.sink.speak();
    while scene.presence.stats().waiting_events > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.sink.told(), told);
    assert_eq!(scene.presence.stats().published, 3, "the outcomes are known");
}

#[tokio::test]
async fn a_lock_is_granted_although_the_publisher_of_locks_panics_meanwhile() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    scene.sink.fall_silent();
    let (locks, ask) = (scene.presence.locks(), AcquireRequest::new(LockScope::Document));
    let story = async {
        scene.sink.until(3).await;
        scene.kill("presence.locks").await;
        scene.sink.speak();
    };
    let (granted, ()) = tokio::join!(locks.acquire(&scene.document, &ada.user, ask), story);
    assert_eq!(granted.unwrap().holder, ada.user);
    assert_eq!(scene.sink.told()[2..], ["document.locked ada"]);
}

#[tokio::test]
async fn a_stop_that_gives_an_event_up_is_not_complete() {
    let scene = Scene::new();
    scene.join("ada").await;
    scene.sink.until(2).await;
    scene.sink.refuse(Some(PublishError::Log(LogError::Corrupt { detail: "on fire".to_owned() })));
    assert!(!scene.presence.shutdown(PATIENCE).await);
    assert_eq!(scene.presence.stats().failed, 2);
}

#[tokio::test]
async fn a_stop_is_not_complete_after_the_panic_of_a_publisher() {
    for task in ["presence.publisher", "presence.locks"] {
        let scene = Scene::new();
        let (ada, _) = scene.join("ada").await;
        let ask = AcquireRequest::new(LockScope::Document);
        scene.presence.locks().acquire(&scene.document, &ada.user, ask).await.unwrap();
        scene.sink.fall_silent();
        let story = async {
            scene.sink.until(6).await;
            scene.kill(task).await;
            scene.sink.speak();
        };
        let (is_complete, ()) = tokio::join!(scene.presence.shutdown(PATIENCE), story);
        assert!(!is_complete, "after the panic of {task}");
    }
}

#[tokio::test]
async fn the_events_that_close_what_others_opened_say_so() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    let ask = AcquireRequest::new(LockScope::Document);
    scene.presence.locks().acquire(&scene.document, &ada.user, ask).await.unwrap();
    assert!(scene.presence.shutdown(Duration::from_secs(20)).await);
    let closing = scene.sink.closing();
    assert_eq!(closing, ["document.unlocked", "session.ended", "user.left"]);
}

#[tokio::test]
async fn while_many_join_at_once_texts_are_made_once_for_all_of_them() {
    let scene = Scene::new();
    let (_first, joined) = scene.join("first").await;
    let mut readers = vec![Reader::new(joined.presence)];
    for n in 0..100 {
        readers.push(Reader::new(scene.join(&format!("user-{n}")).await.1.presence));
        // All read at each join. The clock stands still, so changes wait for the flush.
        readers.iter_mut().for_each(Reader::read);
    }
    all_know(&mut readers, 101).await;
    let mut texts: Vec<_> = readers.iter().flat_map(|reader| &reader.addresses).copied().collect();
    let told = texts.len();
    texts.sort_unstable();
    texts.dedup();
    // At most one for each flush, and a snapshot or two.
    assert!(told > 100 && texts.len() <= 20, "{} texts were made for {told}", texts.len());
    // A later member gets all participants at once that the others know.
    for known in 101..104 {
        let mut late = Reader::new(scene.join(&format!("late-{known}")).await.1.presence);
        late.read();
        assert!(late.states == 1 && late.diffs.is_empty());
        assert!(late.known().as_object().unwrap().len() >= known);
        readers.push(late);
        all_know(&mut readers, known + 1).await;
    }
}

/// Waits until each reader knows that many users.
async fn all_know(readers: &mut [Reader], users: usize) {
    let reading = async {
        while readers.iter().any(|reader| reader.known().as_object().unwrap().len() < users) {
            tokio::task::yield_now().await;
            readers.iter_mut().for_each(Reader::read);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_silent_for_too_long_is_removed() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    let (_silent, _) = scene.join("silent").await;
    scene.advance(Duration::from_secs(59));
    scene.presence.touch(&ada, Activity::Alive);
    scene.advance(Duration::from_secs(1));
    assert_eq!(scene.participants(), json!({"ada": {"metas": [{}]}}));
    assert_eq!(scene.sink.until(4).await[3], "user.left silent stale");
    scene.advance(Duration::from_secs(59));
    assert_eq!(scene.sink.until(6).await[4..], ["user.left ada stale", "session.ended stale"]);
    // The document is removed.
    scene.advance(Duration::from_secs(60));
    let stats = scene.presence.stats();
    assert_eq!((stats.sessions, stats.users, stats.connections, stats.waiting_events), (0, 0, 0, 0));
    assert_eq!(stats.expired, 2);
}

#[tokio::test]
async fn a_session_goes_through_its_states() {
    let scene = Scene::new();
    let state = || scene.presence.session(&scene.document).map(|session| session.state);
    scene
        .sink
        .refuse(Some(PublishError::Overloaded { document: scene.document.clone(), waited: Duration::ZERO }));
    let (ada, _) = scene.join("ada").await;
    assert_eq!(state(), Some(SessionState::Opening));
    scene.sink.refuse(None);
    scene.sink.until(2).await;
    assert_eq!(state(), Some(SessionState::Active));
    for _ in 0..6 {
        scene.presence.touch(&ada, Activity::Alive);
        scene.advance(Duration::from_secs(50));
    }
    assert_eq!(state(), Some(SessionState::Idle));
    scene.presence.touch(&ada, Activity::Active);
    assert_eq!(state(), Some(SessionState::Active));
    scene.presence.leave(&ada, LeaveReason::Lost);
    assert_eq!(state(), Some(SessionState::Closing));
    let (_ada, _) = scene.join("ada").await;
    assert_eq!(state(), Some(SessionState::Active));
    let mut query = SessionQuery::default();
    (query.user, query.state) = (Some(ada.user.clone()), Some(SessionState::Active));
    let found = scene.presence.sessions(&query);
    assert_eq!((found.len(), found[0].counters.returns, found[0].counters.actions), (1, 1, 1));
    query.state = Some(SessionState::Idle);
    assert!(scene.presence.sessions(&query).is_empty());
    assert!(scene.presence.shutdown(Duration::from_secs(20)).await);
    assert_eq!(state(), None);
    assert_eq!(scene.sink.told()[2..], ["user.left ada shutdown", "session.ended shutdown"]);
}

#[tokio::test]
async fn a_session_closes_when_its_last_connection_is_lost_and_no_earlier() {
    let scene = Scene::new();
    let state = || scene.presence.session(&scene.document).map(|session| session.state);
    let ((ada, _), (bob, _)) = (scene.join("ada").await, scene.join("bob").await);
    scene.sink.until(3).await;
    scene.presence.leave(&ada, LeaveReason::Lost);
    scene.presence.leave(&ada, LeaveReason::Lost);
    assert_eq!(state(), Some(SessionState::Active));
    let (ada, _) = scene.join("ada").await;
    scene.presence.leave(&bob, LeaveReason::Lost);
    assert_eq!(state(), Some(SessionState::Active));
    scene.presence.leave(&bob, LeaveReason::Left);
    assert_eq!(state(), Some(SessionState::Active));
    scene.presence.leave(&ada, LeaveReason::Lost);
    assert_eq!(state(), Some(SessionState::Closing));
    scene.join("ada").await;
    assert_eq!(state(), Some(SessionState::Active));
}

#[tokio::test]
async fn an_overloaded_log_delays_events_and_keeps_newcomers_out_when_too_many_wait() {
    let mut config = PresenceConfig::default();
    config.max_waiting_events = 3;
    let scene = Scene::with(config);
    let overloaded = PublishError::Overloaded { document: scene.document.clone(), waited: Duration::ZERO };
    scene.sink.refuse(Some(overloaded));
    scene.join("ada").await;
    scene.join("bob").await;
    let refused = scene.join_as(&scene.membership("cleo"), JoinOptions::default()).await.unwrap_err();
    assert_eq!(refused.code().as_str(), "overloaded");
    while scene.presence.stats().retries == 0 {
        tokio::task::yield_now().await;
    }
    scene.sink.refuse(None);
    assert_eq!(scene.sink.until(3).await, ["session.started", "user.joined ada", "user.joined bob"]);
}

#[tokio::test]
async fn a_join_is_answered_when_its_events_have_their_places() {
    let scene = Scene::new();
    scene.sink.fall_silent();
    scene.join("ada").await;
    assert_eq!(scene.sink.told(), ["session.started", "user.joined ada"]);
    // The second tab of a user has no events of its own.
    scene.join("ada").await;
    scene.join("bob").await;
    assert_eq!(scene.sink.told()[2..], ["user.joined bob"]);
    assert!(!scene.presence.shutdown(Duration::ZERO).await, "no event was answered");
}

#[tokio::test]
async fn an_event_that_the_log_does_not_take_is_counted_and_the_others_go_on() {
    let scene = Scene::new();
    scene.sink.refuse(Some(PublishError::Log(LogError::Corrupt { detail: "on fire".to_owned() })));
    let (ada, _) = scene.join("ada").await;
    while scene.presence.stats().failed < 2 {
        tokio::task::yield_now().await;
    }
    // The event about the start is lost, so the session does not open.
    let session = scene.presence.session(&scene.document).unwrap();
    assert_eq!(session.state, SessionState::Opening);
    scene.sink.refuse(None);
    scene.presence.leave(&ada, LeaveReason::Left);
    assert_eq!(scene.sink.until(2).await, ["user.left ada left", "session.ended left"]);
}

#[tokio::test]
async fn states_count_to_the_address_that_set_them_until_they_are_gone() {
    let scene = Scene::new();
    let mut limits = MemoryLimits::default();
    (limits.max_address_bytes, limits.max_connection_bytes) = (8_000, 8_000);
    let budget = MemoryBudget::new(limits);
    let [ada, ben] = [1, 2].map(|last| Some(IpAddr::from([10, 0, 0, last])));
    let options = |address| {
        let mut options = JoinOptions::default().state(object(&json!({"text": "x".repeat(1_000)})));
        options.memory = Some(budget.connection(address));
        options
    };
    let mut joined = Vec::new();
    let refused = loop {
        let membership = scene.membership(&format!("user-{}", joined.len()));
        match scene.join_as(&membership, options(ada)).await {
            Ok(_) => joined.push(membership),
            Err(error) => break error,
        }
    };
    assert_eq!((joined.len(), refused.code()), (3, ErrorCode::Overloaded));
    assert!(refused.to_string().contains("your address"), "{refused}");
    scene.join_as(&scene.membership("ben"), options(ben)).await.unwrap();
    // A larger state is refused, and a smaller one makes space.
    let larger = json!({"more": "x".repeat(1_000)});
    let refused = scene.request(&joined[0], "presence:update", larger).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    scene.request(&joined[0], "presence:update", json!({"text": null})).await.unwrap();
    scene.join_as(&scene.membership("late"), options(ada)).await.unwrap();
    let used = budget.connection(ada);
    scene.presence.leave(&joined[1], LeaveReason::Left);
    assert!(used.try_reserve_beside(1_000).is_ok());
}

#[tokio::test]
async fn events_that_wait_for_the_log_count_to_the_client_that_joined_and_left() {
    let scene = Scene::new();
    let overloaded = PublishError::Overloaded { document: scene.document.clone(), waited: Duration::ZERO };
    scene.sink.refuse(Some(overloaded));
    let mut limits = MemoryLimits::default();
    (limits.max_address_bytes, limits.max_connection_bytes) = (20_000, 20_000);
    let budget = MemoryBudget::new(limits);
    let join = async |last: u8| {
        let mut options = JoinOptions::default();
        options.memory = Some(budget.connection(Some(IpAddr::from([10, 0, 0, last]))));
        let membership = scene.membership("ada");
        scene.join_as(&membership, options).await.map(|_| membership)
    };
    let mut visits = 0;
    let refused = loop {
        match join(1).await {
            Ok(membership) => scene.presence.leave(&membership, LeaveReason::Left),
            Err(error) => break error,
        }
        visits += 1;
    };
    assert_eq!((visits, refused.code()), (18, ErrorCode::Overloaded));
    assert!(refused.to_string().contains("your address"), "{refused}");
    assert!(scene.memory.held(MemoryPurpose::PresenceEvents) > visits * 4 * 128);
    let ben = join(2).await.unwrap();
    scene.presence.leave(&ben, LeaveReason::Left);
    scene.sink.refuse(None);
    let last = scene.sink.until(4 * visits + 4).await.pop();
    assert_eq!(last.as_deref(), Some("session.ended left"));
    while scene.memory.held(MemoryPurpose::PresenceEvents) > 0 {
        tokio::task::yield_now().await;
    }
    join(1).await.unwrap();
}

#[tokio::test]
async fn one_address_takes_half_of_the_memory_of_a_documents_states() {
    let mut config = PresenceConfig::default();
    config.max_document_bytes = 40_000;
    let scene = Scene::with(config);
    let budget = MemoryBudget::default();
    let join = async |user: &str, last: u8| {
        let mut options = JoinOptions::default().state(object(&json!({"text": "x".repeat(1_000)})));
        options.memory = Some(budget.connection(Some(IpAddr::from([10, 0, 0, last]))));
        let membership = scene.membership(user);
        scene.join_as(&membership, options).await.map(|_| membership)
    };
    let mut joined = Vec::new();
    let refused = loop {
        match join(&format!("user-{}", joined.len()), 1).await {
            Ok(membership) => joined.push(membership),
            Err(error) => break error,
        }
    };
    assert_eq!((joined.len(), refused.code()), (4, ErrorCode::Overloaded));
    assert!(refused.to_string().contains("your address in this document"), "{refused}");
    let larger = json!({"more": "x"});
    let refused = scene.request(&joined[0], "presence:update", larger).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    // The others have their part, and so has the address itself when its participants have left.
    for number in 0..3 {
        join(&format!("other-{number}"), 2).await.unwrap();
    }
    for membership in &joined {
        scene.presence.leave(membership, LeaveReason::Left);
    }
    for number in 0..4 {
        join(&format!("back-{number}"), 1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the test waits for its tasks")]
async fn changes_at_once_get_their_versions_in_the_order_in_which_they_are_made() {
    let scene = Arc::new(Scene::new());
    let (ada, joined) = scene.join("ada").await;
    let (ben, _) = scene.join("ben").await;
    let changing = [ada, ben].map(|membership| {
        let scene = Arc::clone(&scene);
        tokio::spawn(async move {
            for n in 1..=5_000 {
                scene.request(&membership, "presence:update", json!({"n": n})).await.unwrap();
            }
        })
    });
    let mut reader = Reader::new(joined.presence);
    let reading = async {
        loop {
            reader.read();
            let is_over = changing.iter().all(tokio::task::JoinHandle::is_finished);
            let mut known = reader.known();
            without_refs(&mut known);
            if is_over && known == scene.participants() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap();
    for changes in changing {
        changes.await.unwrap();
    }
}

#[tokio::test]
async fn requests_of_participants_are_answered() {
    let scene = Scene::new();
    let (ada, _) = scene.join("ada").await;
    assert_eq!(scene.request(&ada, "presence:update", json!({"typing": true})).await.unwrap(), json!({}));
    let refused = scene.request(&ada, "presence:update", json!([])).await.unwrap_err();
    assert_eq!(refused.code.as_str(), "invalid_request");
    let refused = scene.request(&ada, "presence:update", json!({"phx_ref": 1})).await.unwrap_err();
    assert_eq!(refused.code.as_str(), "invalid_request");
    let large = json!({"bio": "x".repeat(5_000)});
    assert_eq!(scene.request(&ada, "presence:update", large).await.unwrap_err().code.as_str(), "too_large");
    let stranger = scene.membership("eve");
    assert_eq!(
        scene.request(&stranger, "presence:update", json!({})).await.unwrap_err().code.as_str(),
        "not_joined"
    );
    scene.request(&ada, "cursor", json!({"position": 7})).await.unwrap();
    assert_eq!(scene.request(&ada, "cursor", json!({})).await.unwrap_err().code.as_str(), "invalid_payload");
    let cursor = scene.sink.events().into_iter().find(|event| event.kind.as_str() == "cursor.moved").unwrap();
    assert_eq!(cursor.key.as_deref(), Some(ada.connection.to_string().as_str()));
    let info = scene.request(&ada, "session:info", json!({})).await.unwrap();
    assert_eq!(info["participants"], json!([{"user": "ada", "connections": 1}]));
    assert!(scene.try_request(&ada, "nonsense", json!({})).await.is_none());
}

#[tokio::test]
async fn two_servers_that_merge_their_deltas_have_one_presence() {
    let (here, there) = (Scene::new(), Scene::new());
    let (ada, joined) = here.join("ada").await;
    let (bob, _) = there.join("bob").await;
    let mut reader = Reader::new(joined.presence);
    here.presence.merge(&here.document, &there.presence.whole(&there.document));
    there.presence.merge(&there.document, &here.presence.whole(&here.document));
    assert_eq!(here.participants(), json!({"ada": {"metas": [{}]}, "bob": {"metas": [{}]}}));
    assert_eq!(there.participants(), here.participants());
    let old = there.presence.whole(&there.document);
    there.presence.leave(&bob, LeaveReason::Left);
    here.presence.merge(&here.document, &there.presence.whole(&there.document));
    here.presence.merge(&here.document, &old);
    here.advance(Duration::from_secs(1));
    here.presence.merge(&here.document, &old);
    reader.read();
    assert_eq!(here.participants(), json!({"ada": {"metas": [{}]}}));
    assert_eq!(reader.known().as_object().unwrap().len(), 1);
    // The participants of a server that is gone are removed.
    there.presence.remove_node(here.presence.node());
    assert_eq!(there.participants(), json!({}));
    here.presence.leave(&ada, LeaveReason::Left);
}

/// A step of one of a few connections of two users, or of a reader.
#[derive(Debug, Clone)]
enum Step {
    Join(usize),
    Leave(usize),
    Lose(usize),
    Update(usize, u8),
    Advance(u64),
    /// This reader reads all changes.
    Read(usize),
    /// This reader becomes a fork of that one.
    Fork(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_usize..6).prop_map(Step::Join),
        (0_usize..6).prop_map(Step::Leave),
        (0_usize..6).prop_map(Step::Lose),
        (0_usize..6, 0_u8..3).prop_map(|(who, what)| Step::Update(who, what)),
        (0_u64..7_000).prop_map(Step::Advance),
        (0_usize..3).prop_map(Step::Read),
        (0_usize..3, 0_usize..3).prop_map(|(to, from)| Step::Fork(to, from)),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A reader that follows the npm client's rules knows all participants when it has read all changes, however slow it was.
    /// `Reader` checks that no leave and no meta comes that it has not seen.
    #[test]
    fn a_snapshot_and_its_differences_lead_to_the_present(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scene = Scene::new();
            // One member stays, so that the document exists to the end.
            let (stays, joined) = scene.join("zoe").await;
            let mut readers = vec![Reader::new(joined.presence)];
            for _ in 1..3 {
                readers.push(readers[0].fork());
            }
            let mut seats: Vec<Option<Membership>> = vec![None; 6];
            let user = |who: usize| if who < 3 { "ada" } else { "bob" };
            for step in steps {
                match step {
                    Step::Join(who) => {
                        let membership = scene.membership(user(who));
                        scene.join_as(&membership, JoinOptions::default()).await.unwrap();
                        seats[who] = Some(membership);
                    }
                    Step::Leave(who) => seats[who].take().iter().for_each(|membership| scene.presence.leave(membership, LeaveReason::Left)),
                    Step::Lose(who) => seats[who].take().iter().for_each(|membership| scene.presence.leave(membership, LeaveReason::Lost)),
                    Step::Update(who, what) => if let Some(membership) = &seats[who] {
                        let _ = scene.request(membership, "presence:update", json!({"v": what})).await;
                    },
                    Step::Advance(millis) => {
                        scene.presence.touch(&stays, Activity::Alive);
                        scene.advance(Duration::from_millis(millis));
                    }
                    Step::Read(reader) => readers[reader].read(),
                    Step::Fork(to, from) => readers[to] = readers[from].fork(),
                }
            }
            // A change after a quiet interval is visible at once, and all changes before it with it.
            scene.presence.touch(&stays, Activity::Alive);
            scene.clock.advance(Duration::from_millis(100));
            scene.request(&stays, "presence:update", json!({"last": true})).await.unwrap();
            while scene.presence.stats().waiting_events > 0 {
                tokio::task::yield_now().await;
            }
            let participants = users(&scene.presence.snapshot(&scene.document).entries);
            for reader in &mut readers {
                for _ in 0..100 {
                    reader.read();
                    if reader.known() == sorted(&participants) {
                        break;
                    }
                    // A flush is still scheduled.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                assert_eq!(reader.known(), sorted(&participants));
            }
        });
    }
}
