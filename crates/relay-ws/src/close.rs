//! Why this side closes a connection, and with which code.

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

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
    pub(crate) const fn code(self) -> CloseCode {
        match self {
            Self::Stale => CloseCode::Away,
            Self::NotWebSocket => CloseCode::Protocol,
            Self::Malformed => CloseCode::Unsupported,
            Self::NotUtf8 => CloseCode::Invalid,
            Self::TooLarge => CloseCode::Size,
            Self::Restart => CloseCode::Restart,
            Self::TooSlow => CloseCode::Again,
        }
    }

    /// Whether the client may still be in the middle of a message that nobody can read any more.
    pub(crate) const fn breaks_framing(self) -> bool {
        matches!(self, Self::NotWebSocket | Self::NotUtf8 | Self::TooLarge)
    }

    pub(crate) fn frame(self) -> CloseFrame {
        let reason = match self {
            Self::Stale => "nothing was heard for too long",
            Self::NotWebSocket => "not a WebSocket frame",
            Self::Malformed => "not a message of Phoenix serializer 2.0.0",
            Self::NotUtf8 => "text that is not UTF-8",
            Self::TooLarge => "the message is too large",
            Self::Restart => "the server restarts; come back",
            Self::TooSlow => "what was sent was not read; come back and recover",
        };
        CloseFrame { code: self.code(), reason: reason.into() }
    }
}
