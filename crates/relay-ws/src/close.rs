//! Why this side closes a connection, and with which code.

/// Why this side closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// Nothing was heard for too long.
    Stale,
    /// What came is not WebSocket.
    NotWebSocket,
    /// A message is not of the protocol.
    Malformed,
    /// A text is not UTF-8.
    NotUtf8,
    /// A message is too large.
    TooLarge,
    /// The server stops.
    Restart,
    /// The client does not take what is sent.
    TooSlow,
}

impl CloseReason {
    /// The code of RFC 6455 and its registry.
    pub(crate) const fn code(self) -> u16 {
        match self {
            Self::Stale => 1001,
            Self::NotWebSocket => 1002,
            Self::Malformed => 1003,
            Self::NotUtf8 => 1007,
            Self::TooLarge => 1009,
            Self::Restart => 1012,
            Self::TooSlow => 1013,
        }
    }

    /// Whether the client may still be in the middle of a message that nobody can read any more.
    pub(crate) const fn breaks_framing(self) -> bool {
        matches!(self, Self::NotWebSocket | Self::NotUtf8 | Self::TooLarge)
    }

    /// What people read.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Stale => "nothing was heard for too long",
            Self::NotWebSocket => "not a WebSocket frame",
            Self::Malformed => "not a message of Phoenix serializer 2.0.0",
            Self::NotUtf8 => "text that is not UTF-8",
            Self::TooLarge => "the message is too large",
            Self::Restart => "the server restarts; come back",
            Self::TooSlow => "what was sent was not read; come back and recover",
        }
    }
}
