//! [`Document`]: the presence of one document: its connections, users and session, and the events about them.
//!
//! It is pure: each call says what happens and at which time, and the [effects](Document::take_effects) of the calls are
//! taken afterwards. A user is *joined* while at least one connection of it is; a session lasts from the first connection to
//! the last.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use relay_core::{
    Activity, Actor, BudgetFull, CommandError, ConnectionId, DocumentId, ErrorCode, EventId, JoinOptions,
    JsonObject, Membership, MemoryPurpose, MemoryShare, Monotonic, NodeId, Now, PresenceChange,
    PresenceSnapshot, Reservation, SessionId, ShareKind, UserId,
};
use relay_events::{
    EndReason, SESSION_ENDED, SessionEnded, SessionStarted, TypedPayload, USER_LEFT, UserJoined, UserLeft,
    server_draft,
};

use crate::config::PresenceConfig;
use crate::crdt::{ReplicaDelta, ReplicaEntry};
use crate::flushing::{Flush, ReaderId, Readers};
use crate::outbox::{EventMemory, Outbox};
use crate::presence_view::PresenceView;
use crate::session::{Session, SessionState, Transition};
use crate::state;
use crate::stats::CounterDelta;
use crate::version::Version;

/// A connection that has joined the document.
#[derive(Debug)]
struct Connection {
    /// The connection under which readers see this one: the first of those that took over from one another.
    presence_key: ConnectionId,
    user: UserId,
    /// The time of the last sign of life; `None` for a connection that is exempt from the timeout.
    heard_at: Option<Monotonic>,
    /// The time at which the connection was lost, while it is.
    lost_at: Option<Monotonic>,
    /// The reason to tell when it does not come back.
    lost_by: EndReason,
    /// The client's own share of memory, and the state in it.
    client: ClientMemory,
}

/// The bytes that the events about a membership take beside their texts, until they are published.
const MEMBERSHIP_BYTES: usize = 1024;
/// The bytes that an event takes beside its draft while it waits to be published.
const EVENT_BYTES: usize = 128;

/// The memory of one membership in the share of its client.
#[derive(Debug, Default)]
struct ClientMemory {
    share: Option<MemoryShare>,
    state: Option<ClientState>,
    /// The memory of the events about the membership, as long as one of them waits or will come.
    events: Option<Arc<Reservation>>,
}

/// The memory of a state beside the document's.
#[derive(Debug)]
struct ClientState {
    /// In the share of the client and of its address.
    _of_client: Reservation,
    /// In the share of its address in the document, if the address is known.
    _of_address: Option<Reservation>,
}

/// The shares of a document's states by the address that set them, each while something of it is used.
#[derive(Debug)]
struct AddressShares {
    by_address: HashMap<IpAddr, MemoryShare>,
    /// The share that they are made from. It counts the bytes once for all, elsewhere.
    total: MemoryShare,
}

impl AddressShares {
    /// Reserves the memory of a state beside the one before it, which is given up when the result is put in its place.
    /// `client` is the share of the client that sets it.
    fn reserve(
        &mut self,
        client: Option<&MemoryShare>,
        user: &UserId,
        state: &JsonObject,
        config: &PresenceConfig,
    ) -> Result<Option<ClientState>, BudgetFull> {
        let Some(client) = client else { return Ok(None) };
        let bytes = ReplicaEntry::bytes_of(user, state);
        let of_client = client.try_reserve_beside(bytes)?;
        let of_address = client.address().map(|address| {
            let new = || self.total.child(ShareKind::DocumentAddress, config.state_bytes_per_address());
            let share = self.by_address.get(&address).cloned().unwrap_or_else(new);
            let reserved = share.try_reserve_beside(bytes)?;
            self.by_address.insert(address, share);
            Ok(reserved)
        });
        Ok(Some(ClientState { _of_client: of_client, _of_address: of_address.transpose()? }))
    }

    /// Removes the share of `address` if nothing of it is used.
    fn remove_unused(&mut self, address: IpAddr) {
        if self.by_address.get(&address).is_some_and(|share| share.used() == 0) {
            self.by_address.remove(&address);
        }
    }
}

/// The findings of a sweep.
#[derive(Debug, Default)]
pub(crate) struct SweepResult {
    /// The users whose locks are to be released.
    pub(crate) gone: Vec<UserId>,
    /// The number of connections that were removed.
    pub(crate) removed: usize,
}

/// The effects of changes, for the owner of the document to apply.
#[derive(Debug)]
pub(crate) struct Effects {
    pub(crate) counter_delta: CounterDelta,
    /// True when the owner has to start a publisher for the outbox.
    pub(crate) needs_publisher: bool,
    /// The visibility of the changes.
    pub(crate) flush: Flush,
}

/// The presence of one document.
#[derive(Debug)]
pub(crate) struct Document {
    id: DocumentId,
    session: Option<Session>,
    view: PresenceView,
    connections: HashMap<ConnectionId, Connection>,
    addresses: AddressShares,
    /// The number of connections that are lost.
    lost: usize,
    /// The connections of each user.
    users: HashMap<UserId, HashSet<ConnectionId>>,
    /// The users whose last connection was removed, with the time from which on it was gone. They keep their locks for the
    /// grace time.
    departed_users: HashMap<UserId, Monotonic>,
    outbox: Outbox,
    readers: Readers,
    /// True when a reader waits for memory.
    await_memory: bool,
    counter_delta: CounterDelta,
}

impl Document {
    /// A document without participants. The shares of addresses are made from `total`.
    pub(crate) fn new(id: DocumentId, view: PresenceView, total: MemoryShare) -> Self {
        Self {
            id,
            session: None,
            readers: Readers::new(view.version()),
            view,
            connections: HashMap::new(),
            addresses: AddressShares { by_address: HashMap::new(), total },
            lost: 0,
            users: HashMap::new(),
            departed_users: HashMap::new(),
            outbox: Outbox::default(),
            await_memory: false,
            counter_delta: CounterDelta::default(),
        }
    }

    /// True when the document has nothing to remember.
    pub(crate) fn is_over(&self) -> bool {
        self.session.is_none()
            && self.view.is_empty()
            && self.outbox.is_idle()
            && self.departed_users.is_empty()
    }

    /// Takes a membership. Returns the session, and true when the connection takes over from a previous one.
    pub(crate) fn join(
        &mut self,
        membership: &Membership,
        options: &JoinOptions,
        config: &PresenceConfig,
        now: Now,
        version: Version,
    ) -> Result<(SessionId, bool), CommandError> {
        let waiting = self.outbox.len();
        if waiting >= config.max_waiting_events {
            return Err(CommandError::new(
                ErrorCode::Overloaded,
                format!(
                    "{waiting} events of the document's session wait to be stored, the most that are allowed; try \
                     again later"
                ),
            ));
        }
        if self.connections.get(&membership.connection).is_some_and(|one| one.user != membership.user) {
            let message =
                format!("connection {} belongs to another user; use one of your own", membership.connection);
            return Err(CommandError::new(ErrorCode::InvalidRequest, message));
        }
        let previous = self.previous_connection(membership, options.resume);
        let presence_key = previous
            .and_then(|previous| self.connections.get(&previous))
            .map_or(membership.connection, |one| one.presence_key);
        let before = self.view.own_state_or_empty(presence_key);
        let state = match &options.state {
            Some(change) => state::merge(&before, change, config)?,
            None => before.clone(),
        };
        let is_new = self.view.own_state(presence_key).is_none();
        let share = options.memory.clone();
        let texts = self.id.as_str().len() + membership.user.as_str().len();
        let events = share.as_ref().map(|share| share.try_reserve_beside(MEMBERSHIP_BYTES + 4 * texts));
        let events = events.transpose().map_err(overloaded)?.map(Arc::new);
        let reserved = self.addresses.reserve(share.as_ref(), &membership.user, &state, config);
        let reserved = reserved.map_err(overloaded)?;
        if (is_new || state != before)
            && let Err(full) = self.view.reserve_state(&membership.user, &state)
        {
            drop(reserved);
            if let Some(address) = share.as_ref().and_then(MemoryShare::address) {
                self.addresses.remove_unused(address);
            }
            return Err(overloaded(full));
        }
        let client = ClientMemory { share, state: reserved, events: events.clone() };
        if let Some(previous) = previous {
            self.remove_connection(previous);
        }
        if is_new || state != before {
            self.view.put(version, presence_key, membership.user.clone(), state);
        }
        let heard_at = (!options.exempt_from_timeout).then_some(now.monotonic);
        let connection = Connection {
            presence_key,
            user: membership.user.clone(),
            heard_at,
            lost_at: None,
            lost_by: EndReason::Stale,
            client,
        };
        self.connections.insert(membership.connection, connection);
        let connections = self.users.entry(membership.user.clone()).or_default();
        connections.insert(membership.connection);
        let is_first = previous.is_none() && connections.len() == 1;
        let session = self.start_or_resume_session(now, previous.is_some(), events.as_ref());
        self.departed_users.remove(&membership.user);
        if is_first {
            let joined = UserJoined { user: membership.user.to_string(), name: self.name_of(presence_key) };
            self.publish(session, Actor::User(membership.user.clone()), &joined, None, events);
        }
        let users = self.users.len();
        if let Some(session) = &mut self.session {
            session.counters.most_users = session.counters.most_users.max(users);
        }
        Ok((session, previous.is_some()))
    }

    /// Counts a connection that joins or comes back in the session, which starts when there is none.
    fn start_or_resume_session(
        &mut self,
        now: Now,
        is_return: bool,
        memory: Option<&Arc<Reservation>>,
    ) -> SessionId {
        if let Some(session) = &mut self.session {
            session.try_transition(Transition::Returned);
            let counters = &mut session.counters;
            *(if is_return { &mut counters.returns } else { &mut counters.joins }) += 1;
            return session.id;
        }
        let mut session = Session::new(now.wall, now.monotonic);
        session.counters.joins = 1;
        self.counter_delta.sessions_started += 1;
        let id = session.id;
        self.session = Some(session);
        let started = SessionStarted { started_at: now.wall };
        self.publish(id, Actor::System, &started, Some(id), memory.cloned());
        id
    }

    /// The connection that a joining one takes over from: itself, when it has joined before; else the one that it names; else
    /// the connection of the same user that was lost last. Exactly one is taken over, so that none is left behind.
    fn previous_connection(
        &self,
        membership: &Membership,
        resume: Option<ConnectionId>,
    ) -> Option<ConnectionId> {
        let is_own = |connection: &ConnectionId| {
            self.connections.get(connection).is_some_and(|one| one.user == membership.user)
        };
        Some(membership.connection).filter(is_own).or(resume.filter(is_own)).or_else(|| {
            let of_user = self.users.get(&membership.user)?.iter();
            let lost = of_user.filter_map(|one| Some((self.connections.get(one)?.lost_at?, *one)));
            lost.max_by_key(|(lost_at, _)| *lost_at).map(|(_, connection)| connection)
        })
    }

    /// The `name` in a participant's state, if it has one.
    fn name_of(&self, presence_key: ConnectionId) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Named {
            name: Option<String>,
        }
        serde_json::from_str::<Named>(self.view.own_state(presence_key)?.as_str()).ok()?.name
    }

    /// Gives up a membership on purpose.
    pub(crate) fn leave(&mut self, membership: &Membership, reason: EndReason, now: Now, version: Version) {
        if self.is_joined(membership) {
            self.remove(membership.connection, reason, now.monotonic, version);
        }
    }

    /// Notes that a connection is lost for `reason`. It may come back within the grace time.
    pub(crate) fn disconnect(&mut self, membership: &Membership, reason: EndReason, now: Now) {
        if let Some(connection) = self.connection_mut(membership) {
            connection.lost_by = reason;
            if connection.lost_at.replace(now.monotonic).is_none() {
                self.lost += 1;
            }
            self.end_activity_if_all_lost();
        }
    }

    /// True when the membership is held.
    pub(crate) fn is_joined(&self, membership: &Membership) -> bool {
        self.connections.get(&membership.connection).is_some_and(|one| one.user == membership.user)
    }

    fn connection_mut(&mut self, membership: &Membership) -> Option<&mut Connection> {
        self.connections.get_mut(&membership.connection).filter(|one| one.user == membership.user)
    }

    fn end_activity_if_all_lost(&mut self) {
        if self.lost == self.connections.len()
            && let Some(session) = &mut self.session
        {
            session.try_transition(Transition::Emptied);
        }
    }

    /// Notes a sign of life of a connection that has joined.
    pub(crate) fn touch(&mut self, membership: &Membership, activity: Activity, now: Now) {
        let Some(connection) = self.connection_mut(membership) else { return };
        connection.heard_at = connection.heard_at.map(|_| now.monotonic);
        if activity == Activity::Active
            && let Some(session) = &mut self.session
        {
            session.record_activity(now.wall, now.monotonic);
        }
    }

    /// Changes a participant's state. Returns false when the state is the same as before.
    pub(crate) fn update(
        &mut self,
        membership: &Membership,
        change: &JsonObject,
        config: &PresenceConfig,
        version: Version,
    ) -> Result<bool, CommandError> {
        let Self { id, view, connections, addresses, .. } = self;
        let own = connections.get_mut(&membership.connection).filter(|one| one.user == membership.user);
        let Some(Connection { presence_key, client, .. }) = own else { return Err(not_joined(id)) };
        let presence_key = *presence_key;
        let before = view.own_state_or_empty(presence_key);
        let state = state::merge(&before, change, config)?;
        if state == before {
            return Ok(false);
        }
        let reserved = addresses.reserve(client.share.as_ref(), &membership.user, &state, config);
        let reserved = reserved.map_err(overloaded)?;
        view.reserve_state(&membership.user, &state).map_err(overloaded)?;
        client.state = reserved;
        view.put(version, presence_key, membership.user.clone(), state);
        if let Some(session) = &mut self.session {
            session.counters.presence_updates += 1;
        }
        Ok(true)
    }

    /// Applies everything that is due: removes connections that were lost or silent for too long, finds the users whose grace
    /// time is over, and makes a quiet session idle.
    pub(crate) fn sweep(&mut self, config: &PresenceConfig, now: Now, version: Version) -> SweepResult {
        self.view.sweep(now.monotonic);
        let is_over = |since: Monotonic, span: Duration| now.monotonic.since(since) >= span;
        let gone: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, one)| match one.lost_at {
                Some(lost_at) => is_over(lost_at, config.grace),
                None => one.heard_at.is_some_and(|heard_at| is_over(heard_at, config.stale_after)),
            })
            .map(|(connection, _)| *connection)
            .collect();
        for connection in &gone {
            // The grace time of a lost connection began when it was lost.
            let one = self.connections.get(connection);
            let since = one.and_then(|one| one.lost_at).unwrap_or(now.monotonic);
            let reason = one.map_or(EndReason::Stale, |one| one.lost_by);
            self.remove(*connection, reason, since, version);
        }
        let mut result = SweepResult { removed: gone.len(), ..SweepResult::default() };
        let gone = self.departed_users.extract_if(|_, since| is_over(*since, config.grace));
        result.gone.extend(gone.map(|(user, _)| user));
        if let Some(session) = &mut self.session {
            session.update_idle(now.monotonic, config.idle_after);
        }
        result
    }

    /// Removes all connections, because the server stops.
    pub(crate) fn shut_down(&mut self, now: Now, version: Version) {
        let all: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for connection in all {
            self.remove(connection, EndReason::Shutdown, now.monotonic, version);
        }
        self.departed_users.clear();
    }

    /// Removes a connection that is gone since `since`, its user when it was the last one, and the session when it is empty.
    fn remove(&mut self, connection: ConnectionId, reason: EndReason, since: Monotonic, version: Version) {
        let Some(Connection { presence_key, user, client, .. }) = self.remove_connection(connection) else {
            return;
        };
        self.view.remove(version, presence_key);
        self.counter_delta.leaves += 1;
        let Some(session) = self.session.as_ref().map(|session| session.id) else { return };
        if self.users.get(&user).is_some_and(HashSet::is_empty) {
            self.users.remove(&user);
            let left = UserLeft { user: user.to_string(), reason };
            self.publish(session, Actor::User(user.clone()), &left, None, client.events.clone());
            self.departed_users.insert(user, since);
        }
        if !self.connections.is_empty() {
            self.end_activity_if_all_lost();
            return;
        }
        if let Some(mut ended) = self.session.take() {
            ended.try_transition(Transition::Emptied);
            ended.try_transition(Transition::Ended);
            self.counter_delta.sessions_ended += 1;
            self.publish(session, Actor::System, &SessionEnded { reason }, None, client.events);
        }
    }

    /// Removes a connection alone. Its user may be left without one.
    fn remove_connection(&mut self, connection: ConnectionId) -> Option<Connection> {
        let mut removed = self.connections.remove(&connection)?;
        removed.client.state = None;
        if let Some(address) = removed.client.share.as_ref().and_then(MemoryShare::address) {
            self.addresses.remove_unused(address);
        }
        self.lost -= usize::from(removed.lost_at.is_some());
        if let Some(connections) = self.users.get_mut(&removed.user) {
            connections.remove(&connection);
        }
        Some(removed)
    }

    fn publish<P: TypedPayload>(
        &mut self,
        session: SessionId,
        actor: Actor,
        payload: &P,
        opens: Option<SessionId>,
        of_client: Option<Arc<Reservation>>,
    ) {
        match server_draft(self.id.clone(), payload) {
            Ok(draft) => {
                let draft =
                    if [USER_LEFT, SESSION_ENDED].contains(&P::KIND) { draft.closing() } else { draft };
                // Each attempt has the same id. The bus looks for no duplicates of logged events, so an attempt is repeated only
                // when the log has refused the one before.
                let draft = draft.actor(actor).session(session).fresh_id(EventId::new());
                let bytes = EVENT_BYTES + draft.approx_bytes();
                // Those who leave cannot be refused. With the total used up nobody joins.
                let whole = self.addresses.total.charge(MemoryPurpose::PresenceEvents, bytes);
                self.outbox.push(draft, opens, EventMemory::new(whole, of_client));
            }
            Err(error) => {
                tracing::error!(document = %self.id, %error, "an event of a session cannot be written as JSON");
            }
        }
    }

    /// Merges presence of another server.
    pub(crate) fn merge(&mut self, version: Version, delta: &ReplicaDelta) {
        self.view.merge(version, |replica| replica.merge(delta));
    }

    /// Removes the participants of a server that is gone.
    pub(crate) fn remove_node(&mut self, version: Version, node: NodeId) {
        self.view.merge(version, |replica| replica.remove_node(node));
    }

    /// Takes the effects of all changes since the last call.
    pub(crate) fn take_effects(&mut self, now: Monotonic, flush_interval: Duration) -> Effects {
        let (version, members) = (self.view.version(), self.connections.len());
        Effects {
            counter_delta: std::mem::take(&mut self.counter_delta),
            needs_publisher: self.outbox.claim_publisher(),
            flush: self.readers.flush_or_schedule(version, now, members, flush_interval),
        }
    }

    /// Makes all changes visible. Returns the readers to wake.
    pub(crate) fn flush(&mut self, now: Monotonic) -> Vec<Waker> {
        self.readers.flush(self.view.version(), now)
    }

    /// The next change for a reader at `position`, and its position afterwards. Without one, the reader's waker is kept until
    /// the next flush.
    pub(crate) fn read(
        &mut self,
        position: Option<Version>,
        reader: ReaderId,
        waker: &Waker,
    ) -> Option<(PresenceChange, Version)> {
        let visible = self.readers.visible();
        if position.is_some_and(|position| position >= visible) {
            self.readers.wait(reader, waker);
            return None;
        }
        let read = self.view.read(position, visible);
        if read.is_none() {
            self.readers.wait(reader, waker);
            self.await_memory = true;
        }
        read
    }

    /// Returns the readers to wake because there is memory for their snapshots again.
    pub(crate) fn take_starved(&mut self) -> Vec<Waker> {
        if self.await_memory && !self.view.is_over() {
            self.await_memory = false;
            return self.readers.take_all();
        }
        Vec::new()
    }

    /// Drops the waker of a reader that ends.
    pub(crate) fn remove_reader(&mut self, reader: ReaderId) {
        self.readers.remove(reader);
    }

    /// The events that are to be published.
    pub(crate) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Removes the first event in flight, which was published or given up. A session whose start was published is open.
    pub(crate) fn end_outgoing(&mut self, is_published: bool) {
        let opens = self.outbox.end_first().filter(|_| is_published);
        if let Some(session) = self.session.as_mut().filter(|session| Some(session.id) == opens) {
            session.try_transition(Transition::Opened);
        }
    }

    /// The number of events that are not published yet.
    pub(crate) fn waiting_events(&self) -> usize {
        self.outbox.len()
    }

    /// The present participants.
    pub(crate) fn snapshot(&self) -> Arc<PresenceSnapshot> {
        self.view.snapshot()
    }

    /// All that this server knows of the document's presence.
    pub(crate) fn whole(&self) -> ReplicaDelta {
        self.view.whole()
    }

    /// The present session.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// The state of the session.
    pub(crate) fn session_state(&self) -> SessionState {
        self.session.as_ref().map_or(SessionState::Ended, |session| session.state)
    }

    /// The users, each with the number of its connections.
    pub(crate) fn users(&self) -> impl Iterator<Item = (&UserId, usize)> {
        self.users.iter().map(|(user, connections)| (user, connections.len()))
    }

    /// The number of connections. Lost connections that may come back are included.
    pub(crate) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// True when the user has a connection.
    pub(crate) fn has_user(&self, user: &UserId) -> bool {
        self.users.contains_key(user)
    }
}

/// The refusal of a state for which there is no memory.
fn overloaded(full: BudgetFull) -> CommandError {
    CommandError::new(ErrorCode::Overloaded, full.to_string())
}

/// The refusal of a request from a connection that has not joined.
pub(crate) fn not_joined(document: &DocumentId) -> CommandError {
    CommandError::new(
        ErrorCode::NotJoined,
        format!("this connection has not joined `{document}`, or was gone for too long; join again"),
    )
}
