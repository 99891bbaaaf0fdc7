//! [`End`]: the way in which a connection ends.

use relay_core::LeaveReason;

use crate::close::CloseReason;
use crate::framing::FramingError;

/// The way in which a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The server closes the connection.
    Close(CloseReason),
    /// The client closed the connection.
    ClosedByClient {
        /// The code in the client's close message.
        code: Option<u16>,
        /// The reason with which the client leaves its documents.
        leave: LeaveReason,
    },
    /// The connection broke without a close message.
    Lost,
}

impl End {
    /// The end by a close message of the client.
    ///
    /// `disconnect()` of the `phoenix` client sends no code, or the code of its caller. A page that is closed or loaded again
    /// sends 1001. The client sends 1000 with a reason when its heartbeat is not answered.
    pub(super) fn by_client(close: Option<(u16, &str)>) -> Self {
        let leave = match close {
            None => LeaveReason::Left,
            Some((1000, reason)) if reason != "heartbeat timeout" => LeaveReason::Left,
            Some(_) => LeaveReason::Lost,
        };
        Self::ClosedByClient { code: close.map(|(code, _)| code), leave }
    }

    /// The reason with which the client leaves its documents.
    pub(super) const fn leave_reason(self) -> LeaveReason {
        match self {
            Self::ClosedByClient { leave, .. } => leave,
            Self::Close(CloseReason::Restart) => LeaveReason::Shutdown,
            Self::Close(_) | Self::Lost => LeaveReason::Lost,
        }
    }
}

impl From<FramingError> for End {
    fn from(error: FramingError) -> Self {
        Self::Close(match error {
            FramingError::NotUtf8 => CloseReason::NotUtf8,
            FramingError::TooLarge { .. } => CloseReason::TooLarge,
            FramingError::Protocol { .. } => CloseReason::NotWebSocket,
        })
    }
}
