//! The systems that are measured, and what a member says to each of them: how it joins, publishes, and stays alive.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::frame;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;

/// A system that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// A loop that does nothing but write the same bytes to as many sockets.
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

/// What a member does about a message that came while it joins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It waits on.
    Wait,
    /// It answers with this frame.
    Send(Vec<u8>),
    /// It has joined.
    Joined,
    /// It was refused.
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

    /// Whether it is something that one could use in Relay's place.
    pub(crate) fn is_peer(self) -> bool {
        !matches!(self, Self::Baseline | Self::Relay)
    }

    /// The request that makes a WebSocket of a connection; the baseline speaks none.
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

    /// What a member says first, once it is connected.
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

    /// What a message of the server means to a member that is joining.
    pub(crate) fn opening(self, message: &[u8], document: &str) -> Opening {
        match self {
            Self::Baseline => Opening::Joined,
            Self::Relay if !contains(message, br#""phx_reply""#) => Opening::Wait,
            Self::Relay if contains(message, br#""status":"ok""#) => Opening::Joined,
            Self::Relay => Opening::Refused,
            Self::Ws if message.starts_with(b"joined") => Opening::Joined,
            Self::SocketIo | Self::Socketioxide => match message {
                [b'0', ..] => Opening::Send(client_frame(TEXT, "40")),
                [b'4', b'0', ..] => {
                    Opening::Send(client_frame(TEXT, &format!(r#"420["join","{document}"]"#)))
                }
                [b'4', b'3', ..] => Opening::Joined,
                [b'4', b'4', ..] => Opening::Refused,
                _ => Opening::Wait,
            },
            Self::Nats if message.starts_with(b"INFO") => {
                let connect = r#"CONNECT {"verbose":false,"pedantic":false,"lang":"bench","version":"1"}"#;
                Opening::Send(client_frame(BINARY, &format!("{connect}\r\nSUB {document} 1\r\nPING\r\n")))
            }
            Self::Nats if contains(message, b"PONG") => Opening::Joined,
            Self::Nats if contains(message, b"-ERR") => Opening::Refused,
            Self::Ws | Self::Nats => Opening::Wait,
        }
    }

    /// Appends what publishes `message`, which needs no escaping, in `document`.
    pub(crate) fn publish(self, out: &mut Vec<u8>, document: &str, message: &[u8]) {
        let text = String::from_utf8_lossy(message);
        match self {
            Self::Baseline => out.extend_from_slice(message),
            Self::Relay => {
                let push = format!(r#"["1","2","document:{document}","x-bench",{{"text":"{text}"}}]"#);
                frame::write(out, TEXT, push.as_bytes());
            }
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

    /// What must be answered so that the server does not take a member for gone.
    pub(crate) fn keep_alive(self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::SocketIo | Self::Socketioxide if message == b"2" => Some(client_frame(TEXT, "3")),
            Self::Nats if message.starts_with(b"PING") => Some(client_frame(BINARY, "PONG\r\n")),
            _ => None,
        }
    }

    /// What a member sends from time to time by itself; with Socket.IO it is the server that asks.
    pub(crate) fn heartbeat(self) -> Option<Vec<u8>> {
        match self {
            Self::Relay => Some(client_frame(TEXT, r#"[null,"3","phoenix","heartbeat",{}]"#)),
            Self::Ws => Some(client_frame(PING, "")),
            Self::Nats => Some(client_frame(BINARY, "PING\r\n")),
            Self::Baseline | Self::SocketIo | Self::Socketioxide => None,
        }
    }
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
    use super::{Opening, System};

    #[test]
    fn a_member_has_joined_when_the_server_says_so() {
        let opening = |system: System, message: &str| system.opening(message.as_bytes(), "d-1");
        let reply = r#"["1","1","document:d-1","phx_reply",{"status":"ok","response":{}}]"#;
        assert_eq!(opening(System::Relay, reply), Opening::Joined);
        assert_eq!(opening(System::Relay, &reply.replace("ok", "error")), Opening::Refused);
        assert_eq!(opening(System::Relay, r#"["1",null,"document:d-1","presence_state",{}]"#), Opening::Wait);
        assert!(matches!(opening(System::SocketIo, r#"0{"sid":"a"}"#), Opening::Send(_)));
        assert_eq!(opening(System::SocketIo, r#"430[["a"]]"#), Opening::Joined);
        assert!(matches!(opening(System::Nats, "INFO {}\r\n"), Opening::Send(_)));
        assert_eq!(opening(System::Nats, "PONG\r\n"), Opening::Joined);
        assert_eq!(opening(System::Ws, "joined [1]"), Opening::Joined);
    }
}
