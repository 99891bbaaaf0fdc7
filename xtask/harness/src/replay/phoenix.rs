//! A small Phoenix client with the 2.0.0 serializer, which joins, pushes and listens, and parses little of each frame.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// The time that a server has to answer a connection or a join.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The `ref` of a join; pushes count from above it.
pub(crate) const JOIN_REF: u64 = 1;

/// A connection of a Phoenix client.
pub(crate) type Socket = WebSocketStream<TcpStream>;

/// The parsed parts of a message `[join_ref, ref, topic, event, payload]`. A connection joins one topic here.
#[derive(Debug)]
pub(crate) struct PhoenixFrame<'a> {
    pub(crate) reference: Option<&'a str>,
    pub(crate) event: &'a str,
    pub(crate) payload: &'a RawValue,
}

/// The payload of a `phx_reply`.
#[derive(Debug, Deserialize)]
struct Reply<'a> {
    status: &'a str,
    #[serde(borrow)]
    response: &'a RawValue,
}

/// The response to a join.
#[derive(Debug, Deserialize)]
pub(crate) struct JoinReply {
    pub(crate) epoch: String,
    #[serde(default)]
    pub(crate) reset: bool,
    pub(crate) reset_reason: Option<String>,
}

impl<'a> PhoenixFrame<'a> {
    pub(crate) fn parse(text: &'a str) -> anyhow::Result<Self> {
        let (_, reference, _, event, payload): (IgnoredAny, Option<&str>, IgnoredAny, &str, &RawValue) =
            serde_json::from_str(text)
                .with_context(|| format!("the server sent an invalid frame: {text}"))?;
        Ok(Self { reference, event, payload })
    }

    /// Returns the response of an `ok` reply.
    ///
    /// # Errors
    /// With the server's reason when the reply is an error.
    pub(crate) fn response(&self) -> anyhow::Result<&'a str> {
        let reply: Reply<'a> = serde_json::from_str(self.payload.get())?;
        match reply.status {
            "ok" => Ok(reply.response.get()),
            _ => Err(anyhow!("the server refused: {}", reply.response)),
        }
    }
}

/// Connects to the server at `url` (`ws://host:port`) as `user`.
pub(crate) async fn connect(url: &str, user: &str) -> anyhow::Result<Socket> {
    let authority = url
        .strip_prefix("ws://")
        .map(|rest| rest.trim_end_matches('/'))
        .filter(|rest| !rest.contains('/'))
        .with_context(|| format!("`{url}` is not of the form ws://host:port"))?;
    let connected = timeout(ANSWER_TIMEOUT, async {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let address = format!("{url}/socket/websocket?vsn=2.0.0&user={user}");
        let (socket, _response) = client_async(address, stream).await?;
        anyhow::Ok(socket)
    });
    connected.await.map_err(anyhow::Error::from).flatten().with_context(|| format!("no connection to {url}"))
}

/// Joins a topic from a position, the text of a JSON object, without presence, so that only edits are delivered.
pub(crate) async fn join(socket: &mut Socket, topic: &str, position: &str) -> anyhow::Result<JoinReply> {
    let mut payload: serde_json::Map<String, serde_json::Value> = serde_json::from_str(position)?;
    payload.insert("presence".to_owned(), false.into());
    let payload = serde_json::Value::from(payload);
    let frame = format!(r#"["{JOIN_REF}","{JOIN_REF}","{topic}","phx_join",{payload}]"#);
    let answered = timeout(ANSWER_TIMEOUT, async {
        socket.send(Message::text(frame)).await?;
        while let Some(message) = socket.next().await {
            let Message::Text(text) = message? else { continue };
            let frame = PhoenixFrame::parse(&text)?;
            if frame.event == "phx_reply" {
                return Ok(serde_json::from_str(frame.response()?)?);
            }
        }
        bail!("the connection was closed")
    });
    answered.await.map_err(anyhow::Error::from).flatten().with_context(|| format!("{topic} cannot be joined"))
}

/// Returns a push on a topic that was joined with [`join`].
pub(crate) fn push(topic: &str, reference: u64, event: &str, payload: &str) -> Message {
    Message::text(format!(r#"["{JOIN_REF}","{reference}","{topic}","{event}",{payload}]"#))
}

/// Returns the heartbeat that keeps a connection from becoming stale.
pub(crate) fn heartbeat() -> Message {
    Message::text(r#"[null,"0","phoenix","heartbeat",{}]"#)
}

#[cfg(test)]
mod tests {
    use super::PhoenixFrame;

    #[test]
    fn a_reply_gives_its_response_or_what_is_wrong() {
        let ok =
            PhoenixFrame::parse(r#"["1","7","document:a","phx_reply",{"status":"ok","response":{"seq":1}}]"#)
                .unwrap();
        assert_eq!((ok.reference, ok.response().unwrap()), (Some("7"), r#"{"seq":1}"#));
        let text = r#"["1","7","document:a","phx_reply",{"status":"error","response":{"reason":"closed"}}]"#;
        let refused = PhoenixFrame::parse(text).unwrap();
        assert!(refused.response().unwrap_err().to_string().contains("closed"));
    }

    #[test]
    fn an_invalid_frame_is_shown() {
        assert!(PhoenixFrame::parse("{}").unwrap_err().to_string().contains("{}"));
    }
}
