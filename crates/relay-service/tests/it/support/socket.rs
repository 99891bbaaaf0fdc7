//! A plain WebSocket client that has joined one document.

use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use super::PATIENCE;

/// One connection, and the one document that it joins.
pub struct Socket {
    connection: WebSocket<TcpStream>,
    topic: String,
    last_ref: u64,
}

/// A message of the server, or the end of the connection.
#[derive(Debug)]
pub enum Incoming {
    /// `[join_ref, ref, topic, event, payload]`.
    Message(Value),
    /// The connection was closed with this code.
    Closed(u16),
    /// The connection broke.
    Lost,
}

impl Socket {
    /// A connection that has joined nothing yet.
    pub fn open(address: SocketAddr, user: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let url = format!("ws://{address}/socket/websocket?vsn=2.0.0&user={user}");
        let (connection, _) = tungstenite::client(url, stream).unwrap();
        Self { connection, topic: String::new(), last_ref: 0 }
    }

    /// A connection that has joined `document` and gets its live events.
    #[track_caller]
    pub fn joined(address: SocketAddr, user: &str, document: &str) -> Self {
        let mut socket = Self::open(address, user);
        let reply = socket.join(document);
        assert_eq!(reply["status"], "ok", "{reply}");
        socket
    }

    /// Joins and waits for the reply's payload.
    #[track_caller]
    pub fn join(&mut self, document: &str) -> Value {
        self.topic = format!("document:{document}");
        // These tests count the events that they publish, so there are none about presence.
        self.push("phx_join", &json!({"presence": false})).unwrap();
        self.reply()
    }

    /// Sends a push without waiting, and returns its ref. `None` when the connection is gone.
    pub fn push(&mut self, event: &str, payload: &Value) -> Option<u64> {
        self.last_ref += 1;
        let message = json!(["1", self.last_ref.to_string(), self.topic, event, payload]);
        self.send(&message.to_string()).then_some(self.last_ref)
    }

    /// Sends a text as it is. False when the connection is gone.
    pub fn send(&mut self, text: &str) -> bool {
        self.connection.send(Message::text(text)).is_ok()
    }

    /// The bytes under the protocol.
    pub fn raw(&mut self) -> &mut TcpStream {
        self.connection.get_mut()
    }

    /// The next message.
    pub fn next(&mut self) -> Incoming {
        loop {
            match self.connection.read() {
                Ok(Message::Text(text)) => return Incoming::Message(serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(frame)) => {
                    // Reading on answers the close and waits for the connection's end.
                    while self.connection.read().is_ok() {}
                    return frame.map_or(Incoming::Lost, |frame| Incoming::Closed(frame.code.into()));
                }
                Ok(_) => {}
                Err(_) => return Incoming::Lost,
            }
        }
    }

    /// The payload of the next reply. Events before it are skipped.
    #[track_caller]
    pub fn reply(&mut self) -> Value {
        loop {
            match self.next() {
                Incoming::Message(message) if message[3] == "phx_reply" => return message[4].clone(),
                Incoming::Message(_) => {}
                other => panic!("no reply, but {other:?}"),
            }
        }
    }

    /// The code with which the server closes.
    #[track_caller]
    pub fn closed(&mut self) -> u16 {
        match self.next() {
            Incoming::Closed(code) => code,
            other => panic!("no close, but {other:?}"),
        }
    }
}
