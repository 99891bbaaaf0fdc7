//! `relay tail`: follows a document over server-sent events, and continues at its position when the server comes back.

use std::io::Write as _;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use relay_core::{Event, Payload, Recovery, SubscribeAck};
use serde::Deserialize;

use crate::cli::TailArgs;
use crate::client::{RelayClient, RelayResponse, events_path};
use crate::sse::{Parser, SseEvent};

/// The first wait before connecting again.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest wait before connecting again.
const RETRY_MOST: Duration = Duration::from_secs(5);
/// The silence after which the connection counts as lost. By default the server sends at least a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

pub(crate) async fn tail(args: TailArgs) -> anyhow::Result<()> {
    let client = RelayClient::new(&args.server)?;
    let mut follower = DocumentFollower { args, last_id: None };
    let mut answer = follower.connect(&client).await?;
    loop {
        let ended = follower.follow(answer).await?;
        eprintln!("relay: {ended}; connecting again");
        let mut wait = RETRY_FIRST;
        answer = loop {
            tokio::time::sleep(wait).await;
            if let Ok(answer) = follower.connect(&client).await {
                break answer;
            }
            wait = (wait * 2).min(RETRY_MOST);
        };
    }
}

struct DocumentFollower {
    args: TailArgs,
    /// The id of the last event that was printed, or of the opening.
    last_id: Option<String>,
}

#[derive(Deserialize)]
struct EndedData {
    message: String,
}

impl DocumentFollower {
    async fn connect(&self, client: &RelayClient) -> anyhow::Result<RelayResponse> {
        let mut path = format!("{}/stream", events_path(&self.args.document));
        if let Some(seq) = self.args.after_seq {
            path = format!("{path}?after_seq={seq}");
        }
        let mut request = Request::get(path);
        if let Some(id) = &self.last_id {
            request = request.header("last-event-id", id);
        }
        let answer = client.send(request.body(Full::<Bytes>::default())?).await?;
        if !answer.response.status().is_success() {
            bail!(answer.problem().await);
        }
        Ok(answer)
    }

    /// Prints events until the connection ends, and returns the reason. An error is permanent: connecting again does not
    /// help.
    async fn follow(&mut self, mut answer: RelayResponse) -> anyhow::Result<String> {
        let mut parser = Parser::default();
        let mut ended = None;
        loop {
            let frame = match tokio::time::timeout(SILENCE, answer.response.body_mut().frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(ended.unwrap_or_else(|| "the server ended the stream".to_owned())),
                Ok(Some(Err(error))) => return Ok(format!("the connection was lost ({error})")),
                Err(_elapsed) => return Ok(format!("nothing was heard for {} s", SILENCE.as_secs())),
            };
            let Ok(bytes) = frame.into_data() else { continue };
            for message in parser.feed(&bytes)? {
                if message.name == "relay.ended" {
                    ended = serde_json::from_str::<EndedData>(&message.data).ok().map(|ended| ended.message);
                } else {
                    self.print(&message)?;
                }
                self.last_id = message.last_id;
            }
        }
    }

    fn print(&self, message: &SseEvent) -> anyhow::Result<()> {
        if message.name == "relay.opening" {
            report(&serde_json::from_str(&message.data)?, &self.args.document);
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        if self.args.json {
            writeln!(out, "{}", message.data)?;
        } else {
            let event = relay_events::json::decode(message.data.as_bytes())?;
            writeln!(out, "{}", line(&event))?;
        }
        Ok(out.flush()?)
    }
}

fn report(ack: &SubscribeAck, document: &str) {
    let SubscribeAck { head, position, recovery, .. } = ack;
    match recovery {
        Recovery::Reset(reason) => {
            let reason = reason.code();
            eprintln!(
                "relay: `{document}` cannot be continued ({reason}); what is kept follows, after seq {position}"
            );
        }
        _ => {
            eprintln!("relay: following `{document}` after seq {position} (latest {})", head.last);
        }
    }
}

/// Formats an event in one line: seq, time, actor, kind and payload.
fn line(event: &Event) -> String {
    let seq = event.seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
    let payload = match &event.payload {
        Payload::Json(text) => text.as_str().replace(['\n', '\r'], " "),
        Payload::Binary(bytes) => format!("({} bytes)", bytes.len()),
        Payload::Absent(absence) => format!("({})", absence.as_str()),
    };
    format!("{seq:>6}  {}  {}  {}  {payload}", event.time, event.actor, event.kind)
}
