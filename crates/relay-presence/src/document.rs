//! One document's people: seats, users, the session, and the events about them. Pure: it is told what happens, and when, and
//! keeps what is to be published.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use relay_core::{
    Activity, Actor, CheckedDraft, CommandError, ConnectionId, DocumentId, ErrorCode, EventId, JoinOptions,
    JsonText, Membership, Monotonic, Now, SessionId, UserId,
};
use relay_events::{
    EndReason, SessionEnded, SessionStarted, TypedPayload, UserJoined, UserLeft, server_draft,
};

use crate::config::PresenceConfig;
use crate::presence_view::{PresenceView, Version};
use crate::session::{Session, SessionState, Transition};
use crate::state;
use crate::stats::CounterDelta;

/// A connection that is in the document.
#[derive(Debug)]
struct Connection {
    /// The connection under which the others see it: the first of those that took the place over from one another.
    presence_key: ConnectionId,
    user: UserId,
    /// When it was heard last; `None` when it need not be heard.
    heard_at: Option<Monotonic>,
    /// When it was lost, if it is.
    lost_at: Option<Monotonic>,
}

/// An event on its way.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) draft: CheckedDraft,
    /// The session that has begun when it is kept.
    pub(crate) opens: Option<SessionId>,
}

/// What sweeping has found.
#[derive(Debug, Default)]
pub(crate) struct SweepResult {
    /// Users whose locks are to be released.
    pub(crate) gone: Vec<UserId>,
    /// Connections that were removed.
    pub(crate) removed: usize,
}

#[derive(Debug)]
pub(crate) struct Document {
    id: DocumentId,
    pub(crate) session: Option<Session>,
    pub(crate) view: PresenceView,
    connections: HashMap<ConnectionId, Connection>,
    /// How many seats each user has.
    users: HashMap<UserId, usize>,
    /// Users without a membership, and since when: they may still come back to their locks.
    departed_users: Vec<(UserId, Monotonic)>,
    pub(crate) outbox: VecDeque<Outgoing>,
    /// Whether a task publishes what is in the outbox.
    pub(crate) publishing: bool,
    /// Up to which version readers are told.
    pub(crate) visible: Version,
    /// Whether a flush is to come.
    pub(crate) dirty: bool,
    pub(crate) flushed_at: Option<Monotonic>,
    pub(crate) readers: HashMap<u64, Waker>,
    pub(crate) counter_delta: CounterDelta,
}

impl Document {
    pub(crate) fn new(id: DocumentId, view: PresenceView) -> Self {
        Self {
            id,
            session: None,
            visible: view.version(),
            view,
            connections: HashMap::new(),
            users: HashMap::new(),
            departed_users: Vec::new(),
            outbox: VecDeque::new(),
            publishing: false,
            dirty: false,
            flushed_at: None,
            readers: HashMap::new(),
            counter_delta: CounterDelta::default(),
        }
    }

    /// Whether nothing is left to remember.
    pub(crate) fn is_over(&self) -> bool {
        self.session.is_none()
            && self.view.replica().is_empty()
            && self.outbox.is_empty()
            && !self.publishing
            && self.departed_users.is_empty()
    }

    /// Takes a membership. Returns the session, and whether a lost connection has come back.
    pub(crate) fn join(
        &mut self,
        membership: &Membership,
        options: &JoinOptions,
        config: &PresenceConfig,
        now: Now,
        version: Version,
    ) -> Result<(SessionId, bool), CommandError> {
        if self.outbox.len() >= config.max_waiting_events {
            return Err(CommandError::new(
                ErrorCode::Overloaded,
                format!(
                    "{} events about who is here wait to be kept, the most that are allowed; try again later",
                    self.outbox.len()
                ),
            ));
        }
        if self.connections.get(&membership.connection).is_some_and(|one| one.user != membership.user) {
            let message =
                format!("connection {} is somebody else's; use one of your own", membership.connection);
            return Err(CommandError::new(ErrorCode::InvalidRequest, message));
        }
        let previous = self.previous_connection(membership, options.resume);
        let presence_key = previous
            .and_then(|previous| self.connections.get(&previous))
            .map_or(membership.connection, |one| one.presence_key);
        let before = self.state_of(presence_key);
        let state = match &options.state {
            Some(change) => state::merge(&before, change, config.max_state_bytes)?,
            None => before.clone(),
        };
        if let Some(previous) = previous {
            self.connections.remove(&previous);
        }
        let is_new = self.view.replica().get(self.view.replica().key(presence_key)).is_none();
        if is_new || state != before {
            self.view.put(version, presence_key, membership.user.clone(), state);
        }
        let heard_at = (!options.exempt_from_timeout).then_some(now.monotonic);
        let connection = Connection { presence_key, user: membership.user.clone(), heard_at, lost_at: None };
        self.connections.insert(membership.connection, connection);
        let session = self.start_or_resume_session(now, previous.is_some());
        self.departed_users.retain(|(user, _)| *user != membership.user);
        if previous.is_none() {
            let seats = self.users.entry(membership.user.clone()).or_default();
            *seats += 1;
            if *seats == 1 {
                let joined =
                    UserJoined { user: membership.user.to_string(), name: self.name_of(presence_key) };
                self.publish(session, Actor::User(membership.user.clone()), &joined, None);
            }
        }
        let users = self.users.len();
        if let Some(session) = &mut self.session {
            session.counters.most_users = session.counters.most_users.max(users);
        }
        Ok((session, previous.is_some()))
    }

    /// The session, begun if there is none, now that somebody is there.
    fn start_or_resume_session(&mut self, now: Now, is_return: bool) -> SessionId {
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
        self.publish(id, Actor::System, &started, Some(id));
        id
    }

    /// The membership that a newcomer takes over: the one that it has, the one that it names, or else the one of the same user
    /// that was lost last. Only one is taken over, and who has one leaves none behind.
    fn previous_connection(
        &self,
        membership: &Membership,
        resume: Option<ConnectionId>,
    ) -> Option<ConnectionId> {
        let is_theirs = |connection: &ConnectionId| {
            self.connections.get(connection).is_some_and(|one| one.user == membership.user)
        };
        Some(membership.connection).filter(is_theirs).or(resume.filter(is_theirs)).or_else(|| {
            if !self.users.contains_key(&membership.user) {
                return None;
            }
            let lost = self
                .connections
                .iter()
                .filter(|(_, one)| one.user == membership.user && one.lost_at.is_some());
            lost.max_by_key(|(_, one)| one.lost_at).map(|(connection, _)| *connection)
        })
    }

    fn state_of(&self, presence_key: ConnectionId) -> JsonText {
        let replica = self.view.replica();
        replica
            .get(replica.key(presence_key))
            .map_or_else(JsonText::empty_object, |entry| entry.state.clone())
    }

    fn name_of(&self, presence_key: ConnectionId) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Named {
            name: Option<String>,
        }
        serde_json::from_str::<Named>(self.state_of(presence_key).as_str()).ok()?.name
    }

    /// Gives up a membership on purpose.
    pub(crate) fn leave(&mut self, membership: &Membership, now: Now, version: Version) {
        if self.is_joined(membership) {
            self.remove(membership.connection, EndReason::Left, now.monotonic, version);
        }
    }

    /// A connection is lost, and may come back.
    pub(crate) fn disconnect(&mut self, membership: &Membership, now: Now) {
        if !self.is_joined(membership) {
            return;
        }
        if let Some(connection) = self.connections.get_mut(&membership.connection) {
            connection.lost_at = Some(now.monotonic);
        }
        self.note_emptied();
    }

    pub(crate) fn is_joined(&self, membership: &Membership) -> bool {
        self.connections.get(&membership.connection).is_some_and(|one| one.user == membership.user)
    }

    fn note_emptied(&mut self) {
        if self.connections.values().all(|one| one.lost_at.is_some())
            && let Some(session) = &mut self.session
        {
            session.try_transition(Transition::Emptied);
        }
    }

    /// Notes a sign of life. Whether the membership is held.
    pub(crate) fn touch(&mut self, membership: &Membership, activity: Activity, now: Now) -> bool {
        let Some(connection) =
            self.connections.get_mut(&membership.connection).filter(|one| one.user == membership.user)
        else {
            return false;
        };
        connection.heard_at = connection.heard_at.map(|_| now.monotonic);
        if activity == Activity::Active
            && let Some(session) = &mut self.session
        {
            session.record_activity(now.wall, now.monotonic);
        }
        true
    }

    /// Changes a participant's state. Returns whether it has changed.
    pub(crate) fn update(
        &mut self,
        membership: &Membership,
        change: &JsonText,
        config: &PresenceConfig,
        version: Version,
    ) -> Result<bool, CommandError> {
        let Some(connection) =
            self.connections.get(&membership.connection).filter(|one| one.user == membership.user)
        else {
            return Err(not_joined(&self.id));
        };
        let presence_key = connection.presence_key;
        let before = self.state_of(presence_key);
        let state = state::merge(&before, change, config.max_state_bytes)?;
        if state == before {
            return Ok(false);
        }
        self.view.put(version, presence_key, membership.user.clone(), state);
        if let Some(session) = &mut self.session {
            session.counters.presence_updates += 1;
        }
        Ok(true)
    }

    /// Looks at all times: who was lost for too long, who is silent, whose locks are to go, whether nothing happens.
    pub(crate) fn sweep(&mut self, config: &PresenceConfig, now: Now, version: Version) -> SweepResult {
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
            // The grace time of a lost one has run already.
            let since = self.connections.get(connection).and_then(|one| one.lost_at).unwrap_or(now.monotonic);
            self.remove(*connection, EndReason::Stale, since, version);
        }
        let mut result = SweepResult { removed: gone.len(), ..SweepResult::default() };
        self.departed_users.retain(|(user, since)| {
            let is_gone = is_over(*since, config.grace);
            if is_gone {
                result.gone.push(user.clone());
            }
            !is_gone
        });
        if let Some(session) = &mut self.session {
            session.update_idle(now.monotonic, config.idle_after);
        }
        result
    }

    /// Removes everybody, because the server stops.
    pub(crate) fn shut_down(&mut self, now: Now, version: Version) {
        let all: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for connection in all {
            self.remove(connection, EndReason::Shutdown, now.monotonic, version);
        }
        self.departed_users.clear();
    }

    /// Removes a connection that has been gone `since` then.
    fn remove(&mut self, connection: ConnectionId, reason: EndReason, since: Monotonic, version: Version) {
        let Some(Connection { presence_key, user, .. }) = self.connections.remove(&connection) else {
            return;
        };
        self.view.remove(version, presence_key);
        self.counter_delta.leaves += 1;
        let Some(session) = self.session.as_ref().map(|session| session.id) else { return };
        if let Some(seats) = self.users.get_mut(&user) {
            *seats -= 1;
            if *seats == 0 {
                self.users.remove(&user);
                let left = UserLeft { user: user.to_string(), reason };
                self.publish(session, Actor::User(user.clone()), &left, None);
                self.departed_users.push((user, since));
            }
        }
        if !self.connections.is_empty() {
            self.note_emptied();
            return;
        }
        if let Some(mut over) = self.session.take() {
            over.try_transition(Transition::Emptied);
            over.try_transition(Transition::Ended);
            self.counter_delta.sessions_ended += 1;
            self.publish(session, Actor::System, &SessionEnded { reason }, None);
        }
    }

    /// Makes all changes visible. Returns the readers to wake.
    pub(crate) fn flush(&mut self, now: Monotonic) -> Vec<Waker> {
        self.dirty = false;
        self.visible = self.view.version();
        self.flushed_at = Some(now);
        self.readers.drain().map(|(_, waker)| waker).collect()
    }

    /// The beginning of a session is kept.
    pub(crate) fn opened(&mut self, id: SessionId) {
        if let Some(session) = self.session.as_mut().filter(|session| session.id == id) {
            session.try_transition(Transition::Opened);
        }
    }

    fn publish<P: TypedPayload>(
        &mut self,
        session: SessionId,
        actor: Actor,
        payload: &P,
        opens: Option<SessionId>,
    ) {
        match server_draft(self.id.clone(), payload) {
            Ok(draft) => {
                // With an id, so that sending it again makes no second event.
                let draft = draft.actor(actor).session(session).id(EventId::new());
                self.outbox.push_back(Outgoing { draft, opens });
            }
            Err(error) => {
                tracing::error!(document = %self.id, %error, "an event about a session cannot be JSON");
            }
        }
    }

    /// Each user, with how many connections they have.
    pub(crate) fn users(&self) -> impl Iterator<Item = (&UserId, usize)> {
        self.users.iter().map(|(user, seats)| (user, *seats))
    }

    /// How many connections there are, lost ones that may come back included.
    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn has_user(&self, user: &UserId) -> bool {
        self.users.contains_key(user)
    }

    pub(crate) fn state(&self) -> SessionState {
        self.session.as_ref().map_or(SessionState::Ended, |session| session.state)
    }
}

/// Who asks without having joined.
pub(crate) fn not_joined(document: &DocumentId) -> CommandError {
    CommandError::new(
        ErrorCode::NotJoined,
        format!("this connection has not joined `{document}`, or was gone for too long; join again"),
    )
}
