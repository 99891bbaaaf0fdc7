//! Presence: the calls of the server to it, and the messages about it to the members of a document.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use relay_core::{
    Activity, Caller, Command, CommandError, CommandHandler, Commands, ErrorCode, JoinError, JoinOptions,
    Joined, JsonObject, LeaveReason, Membership, NodeId, Presence, PresenceChange, PresenceDiff,
    PresenceEntry, PresenceId, PresenceSnapshot, PresenceStream, SessionId, UserId,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{Server, edit, quick};

/// A presence in memory without time-outs. It keeps the participants of every version.
#[derive(Default)]
pub(crate) struct Roster {
    state: Mutex<State>,
    granted: Notify,
}

#[derive(Default)]
struct State {
    /// The calls of the server since the last look, in words.
    told: Vec<String>,
    present: BTreeSet<UserId>,
    /// The participants after each change.
    versions: Vec<BTreeSet<UserId>>,
    waiting: Vec<Waker>,
}

impl State {
    fn changed(&mut self) {
        self.versions.push(self.present.clone());
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

struct Stream {
    roster: Arc<Roster>,
    /// The last version that was returned; 0 before the snapshot.
    position: usize,
}

impl PresenceStream for Stream {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>> {
        let mut state = self.roster.state.lock();
        let newest = state.versions.len();
        if self.position == newest {
            state.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        let now = &state.versions[newest - 1];
        let change = if self.position == 0 {
            PresenceChange::Snapshot(Arc::new(PresenceSnapshot::new(now.iter().map(entry).collect())))
        } else {
            let before = &state.versions[self.position - 1];
            let (joins, leaves) = (now.difference(before), before.difference(now));
            PresenceChange::Diff(Arc::new(PresenceDiff::new(
                joins.map(entry).collect(),
                leaves.map(entry).collect(),
            )))
        };
        self.position = newest;
        Poll::Ready(Some(change))
    }

    fn position(&self) -> u64 {
        self.position as u64
    }

    fn fork(&self) -> Box<dyn PresenceStream> {
        Box::new(Self { roster: Arc::clone(&self.roster), position: self.position })
    }
}

fn entry(user: &UserId) -> PresenceEntry {
    let id = PresenceId { node: NodeId::from_u64(0), counter: 1 };
    PresenceEntry::new(id, None, user.clone(), JsonObject::empty())
}

#[derive(Clone)]
struct Desk(Arc<Roster>);

#[derive(Deserialize)]
struct Acquire {}

impl Command for Acquire {
    const NAME: &'static str = "lock:acquire";
    type Reply = Value;
}

#[async_trait]
impl CommandHandler<Acquire> for Desk {
    async fn handle(&self, _from: &Caller, Acquire {}: Acquire) -> Result<Value, CommandError> {
        self.0.granted.notified().await;
        Ok(json!({"token": 1}))
    }
}

#[derive(Deserialize)]
struct Renew {}

impl Command for Renew {
    const NAME: &'static str = "lock:renew";
    type Reply = Value;
}

#[async_trait]
impl CommandHandler<Renew> for Desk {
    async fn handle(&self, _from: &Caller, Renew {}: Renew) -> Result<Value, CommandError> {
        Err(CommandError::new(ErrorCode::Locked, "held").holder(UserId::new("eve").ok()))
    }
}

#[derive(Deserialize)]
struct Cursor(Value);

impl Command for Cursor {
    const NAME: &'static str = "cursor";
    type Reply = Value;
}

#[async_trait]
impl CommandHandler<Cursor> for Desk {
    async fn handle(&self, from: &Caller, Cursor(at): Cursor) -> Result<Value, CommandError> {
        Ok(json!({"of": from.membership.user, "is": at}))
    }
}

#[async_trait]
impl Presence for Desk {
    async fn join(&self, membership: &Membership, options: JoinOptions) -> Result<Joined, JoinError> {
        if membership.user.as_str() == "banned" {
            let message = "the document is closed to you".to_owned();
            return Err(CommandError::new(ErrorCode::TooManyDocuments, message).into());
        }
        if membership.document.as_str() == "slow" {
            self.0.granted.notified().await;
        }
        let mut state = self.0.state.lock();
        let given = options.state.map_or(String::new(), |state| format!(" with {}", state.as_str()));
        let timeout = if options.exempt_from_timeout { "" } else { ", and may time out" };
        state.told.push(format!("{} joined{given}{timeout}", membership.user));
        state.present.insert(membership.user.clone());
        state.changed();
        let presence = Box::new(Stream { roster: Arc::clone(&self.0), position: 0 });
        Ok(Joined::new(SessionId::from_u128(7), Vec::new(), presence))
    }

    fn leave(&self, membership: &Membership, reason: LeaveReason) {
        let mut state = self.0.state.lock();
        state.told.push(format!("{} {reason:?}", membership.user));
        state.present.remove(&membership.user);
        state.changed();
    }

    fn touch(&self, membership: &Membership, activity: Activity) {
        self.0.state.lock().told.push(format!("{} {activity:?}", membership.user));
    }
}

/// The commands of a server where no `lock:acquire` is granted, and its presence.
pub(crate) fn waiting_locks() -> (Arc<dyn Presence>, Commands) {
    let desk = Desk(Arc::default());
    let mut commands = Commands::default();
    commands.register::<Acquire>(desk.clone()).unwrap();
    (Arc::new(desk), commands)
}

async fn scene() -> (Server, Arc<Roster>) {
    let roster = Arc::new(Roster::default());
    let desk = Arc::new(Desk(Arc::clone(&roster)));
    let mut commands = Commands::default();
    commands.register::<Acquire>((*desk).clone()).unwrap();
    commands.register::<Renew>((*desk).clone()).unwrap();
    commands.register::<Cursor>((*desk).clone()).unwrap();
    (Server::with_presence(quick(), desk, commands).await, roster)
}

impl Roster {
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().told)
    }

    async fn until(&self, wanted: &str) {
        let waiting = async {
            while !self.state.lock().told.iter().any(|told| told == wanted) {
                tokio::task::yield_now().await;
            }
        };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, waiting)
            .await
            .unwrap_or_else(|_| panic!("`{wanted}` was not told, only {:?}", self.state.lock().told));
    }
}

#[tokio::test]
async fn the_state_comes_after_the_reply_and_before_any_change() {
    let (server, _roster) = scene().await;
    let mut ada = server.connect("ada").await;
    let reply = ada.join_as("1", "document:notes", json!({})).await;
    assert_eq!(reply["response"]["session"], json!(SessionId::from_u128(7)));
    assert_eq!(reply["response"]["locks"], json!([]));
    let meta = json!({"metas": [{"phx_ref": "0.1"}]});
    assert_eq!(ada.next().await, json!([null, null, "document:notes", "presence_state", {"ada": meta}]));
    let mut bob = server.connect("bob").await;
    bob.join("document:notes", json!({})).await;
    let diff = json!({"joins": {"bob": meta}, "leaves": {}});
    assert_eq!(ada.next().await, json!([null, null, "document:notes", "presence_diff", diff]));
    assert_eq!(bob.next().await[4], json!({"ada": meta, "bob": meta}));
    bob.send_raw(Message::Close(Some(CloseFrame { code: 1000.into(), reason: "".into() }))).await;
    let diff = json!({"joins": {}, "leaves": {"bob": meta}});
    assert_eq!(ada.next().await, json!([null, null, "document:notes", "presence_diff", diff]));
}

#[tokio::test]
async fn a_member_without_presence_is_no_participant_and_gets_the_events_alone() {
    let (server, roster) = scene().await;
    let (mut ada, mut observer) = (server.connect("ada").await, server.connect("observer").await);
    ada.join_as("1", "document:notes", json!({})).await;
    ada.next().await;
    let reply = observer.join("document:notes", json!({"presence": false})).await;
    assert_eq!((reply["status"].clone(), reply["response"].get("session")), (json!("ok"), None));
    ada.push("1", "document:notes", "document.edited", edit("a")).await;
    let event = observer.next().await;
    assert_eq!(
        (&event[3], &event[4]["session"]),
        (&json!("document.edited"), &json!(SessionId::from_u128(7)))
    );
    let refused = observer.push("j1", "document:notes", "lock:acquire", json!({})).await;
    assert_eq!(refused["response"]["reason"], "not_joined");
    assert_eq!(roster.told(), ["ada joined", "ada Active"]);
}

#[tokio::test]
async fn a_leave_has_the_reason_of_the_connections_end() {
    let (server, roster) = scene().await;
    let close = |code: u16, reason: &str| {
        Message::Close(Some(CloseFrame { code: code.into(), reason: reason.to_owned().into() }))
    };
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({"state": {"name": "Ada"}})).await;
    ada.send(json!(["1", "l", "document:notes", "phx_leave", {}])).await;
    ada.reply("l").await;
    assert_eq!(roster.told(), [r#"ada joined with {"name":"Ada"}"#, "ada Left"]);
    let closes = [
        (Message::Close(None), "ada Left"),
        (close(1000, ""), "ada Left"),
        (close(1000, "heartbeat timeout"), "ada Lost"),
        (close(1001, ""), "ada Lost"),
        (close(3000, ""), "ada Lost"),
    ];
    for (close, reason) in closes {
        let mut ada = server.connect("ada").await;
        ada.join("document:notes", json!({})).await;
        ada.send_raw(close).await;
        roster.until(reason).await;
        roster.told();
    }
    let mut ada = server.connect("ada").await;
    ada.join("document:notes", json!({})).await;
    drop(ada);
    roster.until("ada Lost").await;
}

#[tokio::test]
async fn pushes_are_reported_as_activity_and_the_connection_itself_needs_no_report() {
    let (server, roster) = scene().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    roster.told();
    ada.is_alive().await;
    ada.push("1", "document:notes", "cursor.moved", json!({"position": 1})).await;
    ada.send_raw(Message::Ping("still here".into())).await;
    while !matches!(ada.receive().await, Message::Pong(_)) {}
    ada.is_alive().await;
    assert_eq!(roster.told(), ["ada Active"]);
}

#[tokio::test]
async fn commands_are_answered_by_their_handlers() {
    let (server, roster) = scene().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    let answer = ada.push("1", "document:notes", "cursor", json!({"position": 3})).await;
    assert_eq!(answer, json!({"status": "ok", "response": {"of": "ada", "is": {"position": 3}}}));
    let answer = ada.push("1", "document:notes", "lock:renew", json!({})).await;
    assert_eq!(answer["response"], json!({"reason": "locked", "message": "held", "holder": "eve"}));
    let answer = ada.push("1", "document:notes", "lock:explode", json!({})).await;
    assert_eq!(answer["response"]["reason"], "unknown_event");
    // A command has JSON arguments.
    let binary = b"\x00\x01\x01\x0e\x061bdocument:notescursor\x01";
    ada.send_raw(Message::Binary(binary.as_slice().into())).await;
    assert_eq!(ada.reply("b").await["response"]["reason"], "unknown_event");
    // A command that has to wait delays no other reply.
    ada.send(json!(["1", "w", "document:notes", "lock:acquire", {}])).await;
    ada.is_alive().await;
    assert_eq!(ada.push("1", "document:notes", "document.edited", edit("a")).await["status"], "ok");
    roster.granted.notify_one();
    assert_eq!(ada.reply("w").await["response"], json!({"token": 1}));
}

#[tokio::test]
async fn a_join_that_is_refused_leaves_nothing_behind() {
    let (server, roster) = scene().await;
    let mut banned = server.connect("banned").await;
    let reply = banned.join("document:notes", json!({})).await;
    assert_eq!(reply["response"]["reason"], "too_many_documents");
    banned.is_alive().await;
    assert_eq!((server.feed.subscriptions("notes"), server.ws.rooms().len()), (0, 0));
    assert!(roster.told().is_empty());
}

#[tokio::test]
async fn a_stopping_server_answers_requests_that_wait_before_it_closes() {
    let (server, roster) = scene().await;
    let mut ada = server.connect("ada").await;
    ada.join_as("1", "document:notes", json!({})).await;
    ada.send(json!(["1", "w", "document:notes", "lock:acquire", {}])).await;
    // A message behind the request has its reply, so the request waits now.
    assert_eq!(ada.push("1", "document:notes", "cursor", json!(1)).await["status"], "ok");
    let mut bob = server.connect("bob").await;
    bob.send(json!(["2", "j", "document:slow", "phx_join", {}])).await;
    bob.is_alive().await;
    let ws = server.ws.clone();
    let stopping = tokio::spawn(async move { ws.shutdown(Duration::from_secs(20)).await });
    for (client, reference) in [(&mut ada, "w"), (&mut bob, "j")] {
        let reply = client.reply(reference).await;
        assert_eq!((&reply["status"], &reply["response"]["reason"]), (&json!("error"), &json!("closed")));
        assert_eq!(client.closed().await, 1012);
    }
    stopping.await.unwrap();
    assert_eq!(roster.told().last().map(String::as_str), Some("ada Shutdown"));
}
