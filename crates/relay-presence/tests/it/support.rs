//! A presence with a manual clock and a sink that keeps its events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use relay_core::testing::ManualClock;
use relay_core::{
    CheckedDraft, Clock, CommandError, Commands, ConnectionId, DocumentId, Epoch, Event, EventSink,
    JoinError, JoinOptions, Joined, JsonObject, Membership, MemoryBudget, Presence, PresenceChange,
    PresenceEntry, PresenceId, PresenceStream, PublishAck, PublishError, Seq, UserId,
};
use relay_presence::{LocalPresence, LockConfig, Locks, MemoryTokens, PresenceConfig};
use relay_tasks::{Supervisor, TaskName};
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify, watch};

/// After this a test that waits has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A sink that keeps the events, or refuses them with the error that a test sets.
#[derive(Default)]
pub(crate) struct Sink {
    events: Mutex<Vec<Event>>,
    closing: Mutex<BTreeSet<String>>,
    trouble: Mutex<Option<PublishError>>,
    panics: AtomicBool,
    gate: Mutex<Option<Arc<Barrier>>>,
    is_silent: watch::Sender<bool>,
    changed: Notify,
}

impl Sink {
    pub(crate) fn refuse(&self, trouble: Option<PublishError>) {
        *self.trouble.lock() = trouble;
    }

    /// Answers the events of users that leave only when `count` of them wait for an answer.
    pub(crate) fn hold_leaving(&self, count: usize) {
        *self.gate.lock() = Some(Arc::new(Barrier::new(count)));
    }

    /// Lets the next event panic.
    pub(crate) fn panic_once(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// Keeps the events from now on, and answers none before it is to [speak](Self::speak).
    pub(crate) fn fall_silent(&self) {
        self.is_silent.send_replace(true);
    }

    /// Answers all events.
    pub(crate) fn speak(&self) {
        self.is_silent.send_replace(false);
    }

    /// The events, each as its kind, its user and its reason.
    pub(crate) fn told(&self) -> Vec<String> {
        self.events.lock().iter().map(tell).collect()
    }

    /// The kinds of the events that close something, by name.
    pub(crate) fn closing(&self) -> Vec<String> {
        self.closing.lock().iter().cloned().collect()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    /// Waits until there are `count` events.
    pub(crate) async fn until(&self, count: usize) -> Vec<String> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if self.events.lock().len() >= count {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{count} events should have happened: {:?}", self.told()));
        self.told()
    }
}

fn tell(event: &Event) -> String {
    let relay_core::Payload::Json(payload) = &event.payload else { panic!("{event:?}") };
    let payload: Value = serde_json::from_str(payload.as_str()).unwrap();
    let mut words = vec![event.kind.to_string()];
    words.extend(
        ["user", "holder", "reason"].iter().filter_map(|key| payload[key].as_str()).map(str::to_owned),
    );
    words.join(" ")
}

#[async_trait]
impl EventSink for Sink {
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "the sink panics once");
        if let Some(trouble) = self.trouble.lock().clone() {
            return Err(trouble);
        }
        let gate = self.gate.lock().clone().filter(|_| draft.kind.as_str() == "user.left");
        if draft.is_closing() {
            self.closing.lock().insert(draft.kind.as_str().to_owned());
        }
        let ack = {
            let mut events = self.events.lock();
            let seq = draft.kind.is_sequenced().then(|| Seq::new(events.len() as u64 + 1));
            let event = draft.into_event(Epoch::from_u64(1), seq, relay_core::Timestamp::UNIX_EPOCH);
            let ack = PublishAck::of(&event, false);
            events.push(event);
            ack
        };
        self.changed.notify_waiters();
        if let Some(gate) = gate {
            gate.wait().await;
        }
        self.is_silent.subscribe().wait_for(|is_silent| !is_silent).await.unwrap();
        Ok(ack)
    }
}

pub(crate) struct Scene {
    pub(crate) presence: LocalPresence,
    pub(crate) sink: Arc<Sink>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) document: DocumentId,
    pub(crate) supervisor: Supervisor,
    pub(crate) memory: MemoryBudget,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(PresenceConfig::default())
    }

    pub(crate) fn with(mut config: PresenceConfig) -> Self {
        config.reserved_state_fields = &["phx_ref", "phx_ref_prev"];
        let (clock, sink) = (Arc::new(ManualClock::new()), Arc::new(Sink::default()));
        let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
        // The tests sweep by themselves, so the ticks are rare.
        let tick = Duration::from_secs(3600);
        config.tick = tick;
        let tokens = Arc::new(MemoryTokens::new(&*time));
        let locks = Locks::new(LockConfig::default(), Arc::clone(&time), tokens).unwrap();
        let (events, supervisor) = (Arc::clone(&sink) as _, Supervisor::default());
        let memory = MemoryBudget::default();
        let presence = LocalPresence::supervised(config, events, locks, time, &supervisor, &memory).unwrap();
        Self { presence, sink, clock, document: DocumentId::new("notes").unwrap(), supervisor, memory }
    }

    /// Ends the running task of this name by a panic. It is started again.
    pub(crate) async fn kill(&self, task: &'static str) {
        let task = TaskName::new(task);
        self.supervisor.kill(task);
        let dying = async {
            while self.supervisor.stats()[&task].panicked == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, dying).await.expect("the task panics");
    }

    pub(crate) fn membership(&self, user: &str) -> Membership {
        let user = UserId::new(user).unwrap();
        Membership { document: self.document.clone(), user, connection: ConnectionId::new() }
    }

    /// A new connection of `user` joins.
    pub(crate) async fn join(&self, user: &str) -> (Membership, Joined) {
        let membership = self.membership(user);
        let joined = self.join_as(&membership, JoinOptions::default()).await.unwrap();
        (membership, joined)
    }

    pub(crate) async fn join_as(
        &self,
        membership: &Membership,
        options: JoinOptions,
    ) -> Result<Joined, JoinError> {
        self.presence.join(membership, options).await
    }

    /// Advances the clock and sweeps.
    pub(crate) fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.presence.sweep();
    }

    /// The participants: the metas of each user, without their refs.
    pub(crate) fn participants(&self) -> Value {
        let mut participants = users(&self.presence.snapshot(&self.document).entries);
        without_refs(&mut participants);
        participants
    }

    pub(crate) async fn request(
        &self,
        membership: &Membership,
        name: &str,
        payload: Value,
    ) -> Result<Value, CommandError> {
        self.try_request(membership, name, payload).await.expect("a command")
    }

    /// `None` when there is no such command.
    pub(crate) async fn try_request(
        &self,
        membership: &Membership,
        name: &str,
        payload: Value,
    ) -> Option<Result<Value, CommandError>> {
        let mut commands = Commands::default();
        self.presence.register_commands(&mut commands).unwrap();
        // An edge reads the arguments from text, too.
        let text = payload.to_string();
        let running =
            commands.run(name, &membership.clone().into(), &mut serde_json::Deserializer::from_str(&text))?;
        Some(running.await.map(|reply| serde_json::to_value(&reply).unwrap()))
    }
}

/// Entries as the `phoenix` client has them: `{user: {"metas": [meta, …]}}`.
pub(crate) fn users(entries: &[PresenceEntry]) -> Value {
    let reference = |id: PresenceId| format!("{:x}.{:x}", id.node.as_u64(), id.counter);
    let mut users = serde_json::Map::new();
    for entry in entries {
        let mut meta: Value = serde_json::from_str(entry.state.as_str()).unwrap();
        meta["phx_ref"] = reference(entry.id).into();
        if let Some(previous) = entry.previous {
            meta["phx_ref_prev"] = reference(previous).into();
        }
        let user = users.entry(entry.user.as_str()).or_insert_with(|| json!({"metas": []}));
        user["metas"].as_array_mut().unwrap().push(meta);
    }
    Value::Object(users)
}

pub(crate) fn without_refs(participants: &mut Value) {
    for user in participants.as_object_mut().unwrap().values_mut() {
        for meta in user["metas"].as_array_mut().unwrap() {
            meta.as_object_mut().unwrap().retain(|name, _| !name.starts_with("phx_ref"));
        }
    }
}

pub(crate) fn object(value: &Value) -> JsonObject {
    serde_json::from_str(&value.to_string()).unwrap()
}

/// A client that follows presence by the rules of the npm client's `Presence`: `syncState` and `syncDiff`.
pub(crate) struct Reader {
    stream: Box<dyn PresenceStream>,
    state: Option<BTreeMap<String, Vec<Value>>>,
    pub(crate) states: usize,
    pub(crate) diffs: Vec<Value>,
    /// The addresses of the values that it got; readers share values.
    pub(crate) addresses: Vec<usize>,
    values: Vec<PresenceChange>,
}

impl Reader {
    pub(crate) fn new(stream: Box<dyn PresenceStream>) -> Self {
        Self { stream, state: None, states: 0, diffs: Vec::new(), addresses: Vec::new(), values: Vec::new() }
    }

    pub(crate) fn fork(&self) -> Self {
        let (state, diffs) = (self.state.clone(), self.diffs.clone());
        let (addresses, values) = (self.addresses.clone(), self.values.clone());
        Self { stream: self.stream.fork(), state, states: self.states, diffs, addresses, values }
    }

    /// Reads all changes.
    pub(crate) fn read(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(change)) = self.stream.poll_next(cx) {
            self.take(&change);
        }
    }

    fn take(&mut self, change: &PresenceChange) {
        // Kept, so that no later value gets the same address.
        self.values.push(change.clone());
        match change {
            PresenceChange::Snapshot(snapshot) => {
                self.addresses.push(Arc::as_ptr(snapshot) as usize);
                self.states += 1;
                self.state = Some(metas(&users(&snapshot.entries)));
            }
            PresenceChange::Diff(diff) => {
                self.addresses.push(Arc::as_ptr(diff) as usize);
                let diff = json!({"joins": users(&diff.joins), "leaves": users(&diff.leaves)});
                let state = self.state.as_mut().expect("the state comes before any change");
                for (user, joined) in metas(&diff["joins"]) {
                    let present = state.entry(user).or_default();
                    let is_new = |meta: &Value| joined.iter().all(|one| one["phx_ref"] != meta["phx_ref"]);
                    present.retain(is_new);
                    present.extend(joined);
                }
                for (user, left) in metas(&diff["leaves"]) {
                    let present = state.get_mut(&user).expect("only users that were seen leave");
                    for meta in &left {
                        let before = present.len();
                        present.retain(|one| one["phx_ref"] != meta["phx_ref"]);
                        assert_eq!(present.len() + 1, before, "no meta leaves that was not seen: {meta}");
                    }
                    if present.is_empty() {
                        state.remove(&user);
                    }
                }
                self.diffs.push(diff);
            }
        }
    }

    /// The participants that it knows, in the form of [`users`], with metas in the order of their refs.
    pub(crate) fn known(&self) -> Value {
        sorted(&json!(
            self.state
                .clone()
                .unwrap_or_default()
                .into_iter()
                .map(|(user, metas)| (user, json!({"metas": metas})))
                .collect::<BTreeMap<_, _>>()
        ))
    }
}

/// A participants with its metas in the order of their refs.
pub(crate) fn sorted(participants: &Value) -> Value {
    let mut participants = participants.clone();
    for user in participants.as_object_mut().unwrap().values_mut() {
        user["metas"].as_array_mut().unwrap().sort_by_key(|meta| meta["phx_ref"].to_string());
    }
    participants
}

fn metas(object: &Value) -> BTreeMap<String, Vec<Value>> {
    let users = object.as_object().unwrap().iter();
    users.map(|(user, one)| (user.clone(), one["metas"].as_array().unwrap().clone())).collect()
}
