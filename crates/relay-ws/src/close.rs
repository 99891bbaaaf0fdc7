//! [`CloseReason`]: the reason for which the server closes a connection, with its close code.

/// The reason for which the server closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The client has sent nothing for too long.
    Stale,
    /// The client's bytes break the rules of RFC 6455.
    NotWebSocket,
    /// A message is not of the protocol.
    Malformed,
    /// A text message is not UTF-8.
    NotUtf8,
    /// A message is too large.
    TooLarge,
    /// The server stops.
    Restart,
    /// The client does not read its messages.
    TooSlow,
    /// A message did not arrive whole in time.
    SlowMessage,
    /// The memory of the connection, of its address or of the server is used up.
    TooMuchMemory,
}

impl CloseReason {
    /// The close code, from RFC 6455 or its registry.
    pub(crate) const fn code(self) -> u16 {
        match self {
            Self::Stale => 1001,
            Self::NotWebSocket => 1002,
            Self::Malformed => 1003,
            Self::NotUtf8 => 1007,
            Self::TooLarge => 1009,
            Self::Restart => 1012,
            Self::SlowMessage => 1008,
            Self::TooSlow | Self::TooMuchMemory => 1013,
        }
    }

    /// True when the client may be in the middle of a message, so that its next bytes cannot be read.
    pub(crate) const fn breaks_framing(self) -> bool {
        matches!(
            self,
            Self::NotWebSocket | Self::NotUtf8 | Self::TooLarge | Self::SlowMessage | Self::TooMuchMemory
        )
    }

    /// The text of the close message, for people.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Stale => "the client sent nothing for too long",
            Self::NotWebSocket => "a frame is not WebSocket",
            Self::Malformed => "a message is not of Phoenix serializer 2.0.0",
            Self::NotUtf8 => "a text is not UTF-8",
            Self::TooLarge => "the message is too large",
            Self::Restart => "the server restarts; connect again",
            Self::TooSlow => "the client did not read its messages; connect again and recover",
            Self::SlowMessage => "a message did not arrive whole in time",
            Self::TooMuchMemory => {
                "the memory for this client, its address or all clients is used up; connect again later and recover"
            }
        }
    }
}
