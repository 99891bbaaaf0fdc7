//! The systems that are measured, and the messages with which a member joins, publishes and stays connected.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::frame;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;

/// A system under measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// A loop that only writes the same bytes to as many sockets.
    Baseline,
    /// This workspace's server.
    Relay,
    /// The npm package `ws` alone.
    Ws,
    /// The npm package `socket.io`.
    SocketIo,
    /// The crate `socketioxide`.
    Socketioxide,
    /// `nats-server` through its WebSocket listener.
    Nats,
}

/// The position of a member in its document: the last event that it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: String,
    pub(crate) seq: u64,
}

impl Position {
    /// The position of a member that has just joined, out of the reply to its join.
    pub(crate) fn of_reply(reply: &[u8]) -> Self {
        let position = Self { epoch: text_after(reply, br#""epoch":""#, b'"'), seq: 0 };
        Self { seq: text_after(reply, br#""position":"#, b',').parse().unwrap_or(0), ..position }
    }

    /// Returns the message with which Relay's member joins again after the last event that it has, as clients do.
    pub(crate) fn rejoin(&self, document: &str, presence: bool) -> Vec<u8> {
        let Self { epoch, seq } = self;
        let payload = format!(r#"{{"presence":{presence},"epoch":"{epoch}","seq":{seq}}}"#);
        client_frame(TEXT, &format!(r#"["1","1","document:{document}","phx_join",{payload}]"#))
    }

    /// Moves to the event in `message`, if it has a seq.
    pub(crate) fn advance(&mut self, message: &[u8]) {
        if let Ok(seq) = text_after(message, br#""seq":"#, b',').parse() {
            self.seq = seq;
        }
    }
}

/// Returns the text between the first `key` and the `end` after it; empty without them.
fn text_after(message: &[u8], key: &[u8], end: u8) -> String {
    let Some(begin) = memchr::memmem::find(message, key) else { return String::new() };
    let rest = &message[begin + key.len()..];
    let length = rest.iter().position(|byte| *byte == end).unwrap_or(0);
    String::from_utf8_lossy(&rest[..length]).into_owned()
}

/// The next step of a member that is joining.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum JoinStep {
    /// The member waits for the next message.
    Wait,
    /// The member answers with this frame.
    Send(Vec<u8>),
    /// The member has joined.
    Joined,
    /// The server refused the member.
    Refused,
}

impl System {
    pub(crate) const ALL: [Self; 6] =
        [Self::Baseline, Self::Relay, Self::Ws, Self::SocketIo, Self::Socketioxide, Self::Nats];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Relay => "Relay",
            Self::Ws => "ws (Node)",
            Self::SocketIo => "Socket.IO",
            Self::Socketioxide => "socketioxide",
            Self::Nats => "NATS",
        }
    }

    /// Tells if the system could be used instead of Relay.
    pub(crate) fn is_peer(self) -> bool {
        !matches!(self, Self::Baseline | Self::Relay)
    }

    /// Returns the upgrade request of a connection. The baseline has none, since it does not speak WebSocket.
    pub(crate) fn upgrade(self, port: u16, member: u32) -> Option<String> {
        let path = match self {
            Self::Baseline => return None,
            Self::Relay => format!("/socket/websocket?vsn=2.0.0&user=member-{member}"),
            Self::SocketIo | Self::Socketioxide => "/socket.io/?EIO=4&transport=websocket".to_owned(),
            Self::Ws | Self::Nats => "/".to_owned(),
        };
        Some(format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ))
    }

    /// Returns the first bytes that a connected member sends.
    pub(crate) fn greeting(self, document: &str, presence: bool) -> Vec<u8> {
        match self {
            Self::Relay => {
                let payload = if presence { "{}" } else { r#"{"presence":false}"# };
                client_frame(TEXT, &format!(r#"["1","1","document:{document}","phx_join",{payload}]"#))
            }
            Self::Ws => client_frame(TEXT, document),
            Self::Baseline | Self::SocketIo | Self::Socketioxide | Self::Nats => Vec::new(),
        }
    }

    /// Returns true for a message that ends the join of a member by a failure.
    pub(crate) fn ends_join(self, message: &[u8]) -> bool {
        self == Self::Relay && contains(message, br#""phx_error""#)
    }

    /// Returns the step of a joining member after a message of the server.
    pub(crate) fn join_step(self, message: &[u8], document: &str) -> JoinStep {
        match self {
            Self::Baseline => JoinStep::Joined,
            Self::Relay if !contains(message, br#""phx_reply""#) => JoinStep::Wait,
            Self::Relay if contains(message, br#""status":"ok""#) => JoinStep::Joined,
            Self::Relay => JoinStep::Refused,
            Self::Ws if message.starts_with(b"joined") => JoinStep::Joined,
            Self::SocketIo | Self::Socketioxide => match message {
                [b'0', ..] => JoinStep::Send(client_frame(TEXT, "40")),
                [b'4', b'0', ..] => {
                    JoinStep::Send(client_frame(TEXT, &format!(r#"420["join","{document}"]"#)))
                }
                [b'4', b'3', ..] => JoinStep::Joined,
                [b'4', b'4', ..] => JoinStep::Refused,
                _ => JoinStep::Wait,
            },
            Self::Nats if message.starts_with(b"INFO") => {
                let connect = r#"CONNECT {"verbose":false,"pedantic":false,"lang":"bench","version":"1"}"#;
                JoinStep::Send(client_frame(BINARY, &format!("{connect}\r\nSUB {document} 1\r\nPING\r\n")))
            }
            Self::Nats if contains(message, b"PONG") => JoinStep::Joined,
            Self::Nats if contains(message, b"-ERR") => JoinStep::Refused,
            Self::Ws | Self::Nats => JoinStep::Wait,
        }
    }

    /// Appends the bytes that publish `message` in `document`. The message needs no escaping.
    pub(crate) fn publish(self, out: &mut Vec<u8>, document: &str, message: &[u8]) {
        let text = String::from_utf8_lossy(message);
        match self {
            Self::Baseline => out.extend_from_slice(message),
            Self::Relay => push(out, document, "x-bench", &text),
            Self::Ws => frame::write(out, TEXT, message),
            Self::SocketIo | Self::Socketioxide => {
                frame::write(out, TEXT, format!(r#"42["message","{text}"]"#).as_bytes());
            }
            Self::Nats => {
                let publish = format!("PUB {document} {}\r\n{text}\r\n", message.len());
                frame::write(out, BINARY, publish.as_bytes());
            }
        }
    }

    /// Returns the answer to a message of the server that checks the connection.
    pub(crate) fn keep_alive(self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::SocketIo | Self::Socketioxide if message == b"2" => Some(client_frame(TEXT, "3")),
            Self::Nats if message.starts_with(b"PING") => Some(client_frame(BINARY, "PONG\r\n")),
            _ => None,
        }
    }

    /// Returns the heartbeat that a member sends. With Socket.IO the server asks instead.
    pub(crate) fn heartbeat(self) -> Option<Vec<u8>> {
        match self {
            Self::Relay => Some(client_frame(TEXT, r#"[null,"3","phoenix","heartbeat",{}]"#)),
            Self::Ws => Some(client_frame(PING, "")),
            Self::Nats => Some(client_frame(BINARY, "PING\r\n")),
            Self::Baseline | Self::SocketIo | Self::Socketioxide => None,
        }
    }
}

/// Appends the bytes with which Relay's member pushes `event` in `document`. The text needs no escaping.
pub(crate) fn push(out: &mut Vec<u8>, document: &str, event: &str, text: &str) {
    let push = format!(r#"["1","2","document:{document}","{event}",{{"text":"{text}"}}]"#);
    frame::write(out, TEXT, push.as_bytes());
}

fn client_frame(opcode: u8, payload: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    frame::write(&mut out, opcode, payload.as_bytes());
    out
}

pub(crate) fn contains(message: &[u8], wanted: &[u8]) -> bool {
    memchr::memmem::find(message, wanted).is_some()
}

#[cfg(test)]
mod tests {
    use super::{JoinStep, Position, System};

    #[test]
    fn a_member_joins_again_after_its_last_event() {
        let reply = br#"["1","1","document:d","phx_reply",{"status":"ok","response":{"epoch":"0a","seq":9,"position":7,"reset":false}}]"#;
        let mut position = Position::of_reply(reply);
        assert_eq!(position, Position { epoch: "0a".to_owned(), seq: 7 });
        position.advance(br#"[null,null,"document:d","x-note",{"id":"1","seq":12,"payload":1}]"#);
        position.advance(br#"[null,null,"document:d","x-ephemeral-note",{"id":"1"}]"#);
        let rejoin = position.rejoin("d", true);
        assert!(memchr::memmem::find(&rejoin, br#"{"presence":true,"epoch":"0a","seq":12}"#).is_some());
    }

    #[test]
    fn a_member_has_joined_when_the_server_says_so() {
        let step = |system: System, message: &str| system.join_step(message.as_bytes(), "d-1");
        let reply = r#"["1","1","document:d-1","phx_reply",{"status":"ok","response":{}}]"#;
        assert_eq!(step(System::Relay, reply), JoinStep::Joined);
        assert_eq!(step(System::Relay, &reply.replace("ok", "error")), JoinStep::Refused);
        assert_eq!(step(System::Relay, r#"["1",null,"document:d-1","presence_state",{}]"#), JoinStep::Wait);
        assert!(matches!(step(System::SocketIo, r#"0{"sid":"a"}"#), JoinStep::Send(_)));
        assert_eq!(step(System::SocketIo, r#"430[["a"]]"#), JoinStep::Joined);
        assert!(matches!(step(System::Nats, "INFO {}\r\n"), JoinStep::Send(_)));
        assert_eq!(step(System::Nats, "PONG\r\n"), JoinStep::Joined);
        assert_eq!(step(System::Ws, "joined [1]"), JoinStep::Joined);
    }
}
