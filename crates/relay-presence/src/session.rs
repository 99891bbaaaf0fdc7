//! A document's live collaboration as a pure state machine: each call says what happens and at which time.
//!
//! ```text
//! opening --opened--> active <--resumed-- idle      closing --ended--> ended
//!    |                 | | ^  \-went quiet-^ |          ^ |
//!    |                 | |  \----------------|-returned-|-/
//!    \----emptied------|-\------emptied------/----------/
//! ```

use std::fmt;
use std::time::Duration;

use relay_core::{Monotonic, SessionId, Timestamp};
use serde::Serialize;

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionState {
    /// A user has joined, and the event about the start is not published yet.
    Opening,
    /// Participants are connected and active.
    Active,
    /// Participants are connected, and have been quiet for a while.
    Idle,
    /// All connections are lost, and may still come back.
    Closing,
    /// All participants are gone. The next join starts another session.
    Ended,
}

/// An input of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transition {
    /// The event about the start is published.
    Opened,
    /// The participants have been quiet for a while.
    WentQuiet,
    /// A participant is active again.
    Resumed,
    /// The last connection is lost or has left.
    Emptied,
    /// A participant is connected again.
    Returned,
    /// No connection has come back within the grace time.
    Ended,
}

/// A transition that the state of a session does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session that is {state} cannot take the transition {transition:?}")]
pub(crate) struct IllegalTransition {
    /// The state.
    pub(crate) state: SessionState,
    /// The transition that it does not allow.
    pub(crate) transition: Transition,
}

impl SessionState {
    /// Every state, in the order of a session's life.
    pub const ALL: [Self; 5] = [Self::Opening, Self::Active, Self::Idle, Self::Closing, Self::Ended];

    /// The state after `transition`.
    ///
    /// # Errors
    /// [`IllegalTransition`] for every transition that is no arrow in the module's diagram.
    pub(crate) const fn after(self, transition: Transition) -> Result<Self, IllegalTransition> {
        match (self, transition) {
            (Self::Opening, Transition::Opened)
            | (Self::Idle, Transition::Resumed)
            | (Self::Closing, Transition::Returned) => Ok(Self::Active),
            (Self::Active, Transition::WentQuiet) => Ok(Self::Idle),
            (Self::Opening | Self::Active | Self::Idle, Transition::Emptied) => Ok(Self::Closing),
            (Self::Closing, Transition::Ended) => Ok(Self::Ended),
            _ => Err(IllegalTransition { state: self, transition }),
        }
    }

    /// The state's name in the wire protocols.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Closing => "closing",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The counters of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionCounters {
    /// Connections that joined.
    pub joins: u64,
    /// Connections that came back within the grace time.
    pub returns: u64,
    /// The most users at the same time.
    pub most_users: usize,
    /// Pushes and requests of participants.
    pub actions: u64,
    /// Changes of participants' states.
    pub presence_updates: u64,
}

/// One session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) state: SessionState,
    pub(crate) started_at: Timestamp,
    pub(crate) last_activity_at: Timestamp,
    /// The time of the last activity by the monotonic clock.
    active_at: Monotonic,
    pub(crate) counters: SessionCounters,
}

impl Session {
    pub(crate) fn new(wall: Timestamp, now: Monotonic) -> Self {
        Self {
            id: SessionId::new(),
            state: SessionState::Opening,
            started_at: wall,
            last_activity_at: wall,
            active_at: now,
            counters: SessionCounters::default(),
        }
    }

    /// Takes a transition if the state allows it. Returns true when it does.
    pub(crate) fn try_transition(&mut self, transition: Transition) -> bool {
        match self.state.after(transition) {
            Ok(state) => {
                self.state = state;
                true
            }
            Err(_) => false,
        }
    }

    /// Notes a push or request of a participant.
    pub(crate) fn record_activity(&mut self, wall: Timestamp, now: Monotonic) {
        self.last_activity_at = wall;
        self.active_at = now;
        self.counters.actions += 1;
        self.try_transition(Transition::Resumed);
    }

    /// Makes the session idle when its participants have been quiet for `idle_after`.
    pub(crate) fn update_idle(&mut self, now: Monotonic, idle_after: Duration) {
        if now.since(self.active_at) >= idle_after {
            self.try_transition(Transition::WentQuiet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_transitions_are_possible() {
        use SessionState::{Active, Closing, Ended, Idle, Opening};
        use Transition as T;
        let legal = [
            (Opening, T::Opened, Active),
            (Opening, T::Emptied, Closing),
            (Active, T::WentQuiet, Idle),
            (Active, T::Emptied, Closing),
            (Idle, T::Resumed, Active),
            (Idle, T::Emptied, Closing),
            (Closing, T::Returned, Active),
            (Closing, T::Ended, Ended),
        ];
        let transitions = [T::Opened, T::WentQuiet, T::Resumed, T::Emptied, T::Returned, T::Ended];
        for state in SessionState::ALL {
            for transition in transitions {
                let to = legal.iter().find(|(from, by, _)| (*from, *by) == (state, transition));
                let expected = to.map(|(_, _, to)| *to).ok_or(IllegalTransition { state, transition });
                assert_eq!(state.after(transition), expected);
            }
        }
    }

    #[test]
    fn a_refused_transition_says_from_where() {
        let error = SessionState::Ended.after(Transition::Returned).unwrap_err();
        assert_eq!(error.to_string(), "a session that is ended cannot take the transition Returned");
    }
}
