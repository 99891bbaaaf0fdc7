//! The suite for [`Presence`] and [`PresenceStream`].

use std::collections::BTreeMap;
use std::future::poll_fn;

use super::waiting::{WakeSignal, bounded};
use crate::error::ErrorCode;
use crate::id::{ConnectionId, DocumentId, UserId};
use crate::presence::{
    Activity, JoinOptions, Joined, LeaveReason, Membership, Presence, PresenceChange, PresenceEntry,
    PresenceId, PresenceStream,
};

/// Runs the whole suite against `presence`, which must not know any document whose id begins with `suite/`.
///
/// # Panics
/// When a contract is broken; the message says how.
pub async fn presence_suite(presence: &dyn Presence) {
    bounded("the suite of presence", async {
        the_snapshot_comes_first_and_differences_lead_to_the_present(presence).await;
        joining_again_replaces_the_state(presence).await;
        a_forked_stream_leads_to_the_same(presence).await;
        a_connection_belongs_to_one_user(presence).await;
        a_membership_that_is_not_held_is_passed_over(presence).await;
        a_reader_that_waits_is_woken(presence).await;
        a_dropped_join_holds_nothing(presence).await;
    })
    .await;
}

/// A reader that follows a document's presence.
struct Reader {
    stream: Box<dyn PresenceStream>,
    known: BTreeMap<PresenceId, PresenceEntry>,
    has_snapshot: bool,
}

impl Reader {
    fn new(stream: Box<dyn PresenceStream>) -> Self {
        Self { stream, known: BTreeMap::new(), has_snapshot: false }
    }

    /// Reads on until the users are those, each with the number of connections.
    async fn until(&mut self, expected: &[(&str, usize)]) {
        let expected: BTreeMap<String, usize> =
            expected.iter().map(|(user, count)| ((*user).to_owned(), *count)).collect();
        while !self.has_snapshot || self.users() != expected {
            let change = poll_fn(|cx| self.stream.poll_next(cx)).await;
            let Some(change) = change else { panic!("the stream is over, with {:?} known", self.users()) };
            self.take(&change);
        }
    }

    fn take(&mut self, change: &PresenceChange) {
        match change {
            PresenceChange::Snapshot(snapshot) => {
                self.has_snapshot = true;
                self.known = snapshot.entries.iter().map(|entry| (entry.id, entry.clone())).collect();
                assert!(
                    snapshot.entries.is_sorted_by_key(|entry| (entry.user.clone(), entry.id)),
                    "a snapshot is ordered by user"
                );
            }
            PresenceChange::Diff(diff) => {
                assert!(self.has_snapshot, "the snapshot comes before any difference");
                for entry in &diff.joins {
                    self.known.insert(entry.id, entry.clone());
                }
                for entry in &diff.leaves {
                    assert!(self.known.remove(&entry.id).is_some(), "{entry:?} leaves and was never seen");
                }
            }
        }
    }

    fn users(&self) -> BTreeMap<String, usize> {
        let mut users = BTreeMap::new();
        for entry in self.known.values() {
            *users.entry(entry.user.to_string()).or_default() += 1;
        }
        users
    }
}

fn member(document: &str, user: &str) -> Membership {
    Membership {
        document: DocumentId::new(document).unwrap_or_else(|error| panic!("{error}")),
        user: UserId::new(user).unwrap_or_else(|error| panic!("{error}")),
        connection: ConnectionId::new(),
    }
}

fn with_state(json: &str) -> JoinOptions {
    let state = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}"));
    JoinOptions { state: Some(state), ..JoinOptions::default() }
}

async fn join(presence: &dyn Presence, membership: &Membership, options: JoinOptions) -> Joined {
    presence.join(membership, options).await.unwrap_or_else(|error| panic!("a join was refused: {error}"))
}

async fn the_snapshot_comes_first_and_differences_lead_to_the_present(presence: &dyn Presence) {
    let (ada, bob) = (member("suite/presence", "ada"), member("suite/presence", "bob"));
    let tab = member("suite/presence", "ada");
    let joined = join(presence, &ada, JoinOptions::default()).await;
    let mut reader = Reader::new(joined.presence);
    reader.until(&[("ada", 1)]).await;
    let session = join(presence, &bob, JoinOptions::default()).await.session;
    assert_eq!(session, joined.session, "participants of one document share its session");
    reader.until(&[("ada", 1), ("bob", 1)]).await;
    join(presence, &tab, JoinOptions::default()).await;
    reader.until(&[("ada", 2), ("bob", 1)]).await;
    presence.leave(&bob, LeaveReason::Left);
    presence.leave(&tab, LeaveReason::Left);
    reader.until(&[("ada", 1)]).await;
    let mut late = Reader::new(join(presence, &bob, JoinOptions::default()).await.presence);
    late.until(&[("ada", 1), ("bob", 1)]).await;
    reader.until(&[("ada", 1), ("bob", 1)]).await;
    presence.leave(&ada, LeaveReason::Left);
    late.until(&[("bob", 1)]).await;
    presence.leave(&bob, LeaveReason::Left);
}

async fn joining_again_replaces_the_state(presence: &dyn Presence) {
    let (ada, bob) = (member("suite/again", "ada"), member("suite/again", "bob"));
    let mut reader = Reader::new(join(presence, &bob, JoinOptions::default()).await.presence);
    join(presence, &ada, with_state(r#"{"name":"Ada"}"#)).await;
    reader.until(&[("ada", 1), ("bob", 1)]).await;
    let of_ada = |reader: &Reader| reader.known.values().find(|one| one.user == ada.user).cloned();
    let before = of_ada(&reader).unwrap_or_else(|| panic!("ada is not there"));
    assert_eq!(before.state.as_str(), r#"{"name":"Ada"}"#);
    join(presence, &ada, with_state(r#"{"name":"Countess"}"#)).await;
    loop {
        let change = poll_fn(|cx| reader.stream.poll_next(cx)).await;
        reader.take(&change.unwrap_or_else(|| panic!("the stream is over")));
        if let Some(after) = of_ada(&reader).filter(|after| after.id != before.id) {
            assert_eq!(after.state.as_str(), r#"{"name":"Countess"}"#);
            break;
        }
    }
    assert_eq!(reader.users().get("ada"), Some(&1), "a connection is shown once");
    presence.leave(&ada, LeaveReason::Left);
    presence.leave(&bob, LeaveReason::Left);
}

async fn a_forked_stream_leads_to_the_same(presence: &dyn Presence) {
    let (ada, bob) = (member("suite/fork", "ada"), member("suite/fork", "bob"));
    let mut reader = Reader::new(join(presence, &ada, JoinOptions::default()).await.presence);
    reader.until(&[("ada", 1)]).await;
    let mut fork = Reader { stream: reader.stream.fork(), known: reader.known.clone(), has_snapshot: true };
    assert_eq!(fork.stream.position(), reader.stream.position());
    join(presence, &bob, JoinOptions::default()).await;
    fork.until(&[("ada", 1), ("bob", 1)]).await;
    reader.until(&[("ada", 1), ("bob", 1)]).await;
    presence.leave(&ada, LeaveReason::Left);
    presence.leave(&bob, LeaveReason::Left);
}

async fn a_connection_belongs_to_one_user(presence: &dyn Presence) {
    let ada = member("suite/owner", "ada");
    join(presence, &ada, JoinOptions::default()).await;
    let mallory = Membership { connection: ada.connection, ..member("suite/owner", "mallory") };
    let refused = presence.join(&mallory, JoinOptions::default()).await;
    assert!(
        refused.as_ref().is_err_and(|error| error.code() == ErrorCode::InvalidRequest),
        "another user's connection is taken: {refused:?}"
    );
    presence.leave(&ada, LeaveReason::Left);
}

async fn a_membership_that_is_not_held_is_passed_over(presence: &dyn Presence) {
    let (ada, stranger) = (member("suite/stranger", "ada"), member("suite/stranger", "eve"));
    let mut reader = Reader::new(join(presence, &ada, JoinOptions::default()).await.presence);
    presence.touch(&stranger, Activity::Active);
    presence.leave(&stranger, LeaveReason::Left);
    presence.leave(&stranger, LeaveReason::Lost);
    reader.until(&[("ada", 1)]).await;
    presence.leave(&ada, LeaveReason::Left);
    presence.leave(&ada, LeaveReason::Left);
}

async fn a_reader_that_waits_is_woken(presence: &dyn Presence) {
    let (ada, bob) = (member("suite/waiting", "ada"), member("suite/waiting", "bob"));
    let mut reader = Reader::new(join(presence, &ada, JoinOptions::default()).await.presence);
    reader.until(&[("ada", 1)]).await;
    let (former, last) = (WakeSignal::new(), WakeSignal::new());
    assert!(former.poll(&mut poll_fn(|cx| reader.stream.poll_next(cx))).is_pending(), "nothing has changed");
    assert!(last.poll(&mut poll_fn(|cx| reader.stream.poll_next(cx))).is_pending(), "nor for another task");
    assert!(!former.is_held(), "the last task alone is kept");
    join(presence, &bob, JoinOptions::default()).await;
    last.woken().await;
    reader.until(&[("ada", 1), ("bob", 1)]).await;
    let dropped = WakeSignal::new();
    assert!(dropped.poll(&mut poll_fn(|cx| reader.stream.poll_next(cx))).is_pending());
    drop(reader);
    assert!(!dropped.is_held(), "a dropped stream leaves its waker behind");
    presence.leave(&ada, LeaveReason::Left);
    presence.leave(&bob, LeaveReason::Left);
}

async fn a_dropped_join_holds_nothing(presence: &dyn Presence) {
    let bob = member("suite/dropped", "bob");
    let mut reader = Reader::new(join(presence, &bob, JoinOptions::default()).await.presence);
    for polls in 0..5 {
        let ada = member("suite/dropped", "ada");
        let mut joining = presence.join(&ada, JoinOptions::default());
        let task = WakeSignal::new();
        if (0..polls).any(|_| task.poll(&mut joining).is_ready()) {
            drop(joining);
            presence.leave(&ada, LeaveReason::Left);
            break;
        }
        drop(joining);
        // A connection belongs to one user, so the dropped join would be in the way.
        let eve = Membership { connection: ada.connection, ..member("suite/dropped", "eve") };
        join(presence, &eve, JoinOptions::default()).await;
        reader.until(&[("bob", 1), ("eve", 1)]).await;
        presence.leave(&eve, LeaveReason::Left);
        reader.until(&[("bob", 1)]).await;
    }
    presence.leave(&bob, LeaveReason::Left);
}
