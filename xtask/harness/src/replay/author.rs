//! The connection that types: it pushes every edit of the trace, with a bounded number of them unacknowledged.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::follower::{Digest, EDITED, END};
use super::phoenix::{self, JOIN_REF, PhoenixFrame, Socket};
use super::progress::Progress;
use super::subscriber::HEARTBEAT;
use super::trace::Trace;

/// One document's author, joined.
pub(crate) struct Author {
    topic: Arc<str>,
    socket: Socket,
    trace: Arc<Trace>,
}

/// The result of an author.
pub(crate) struct Typed {
    /// The digest of the seqs and ids that were acknowledged.
    pub(crate) digest: u64,
    /// The time from the first push to the last acknowledgement.
    pub(crate) took: Duration,
}

/// The pace of an author.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Edits per second; as many as the server takes when absent.
    pub(crate) rate: Option<f64>,
    /// The most edits that may be unacknowledged.
    pub(crate) window: u32,
}

#[derive(Deserialize)]
struct PublishReply<'a> {
    id: &'a str,
    seq: u64,
}

impl Author {
    pub(crate) async fn join(
        name: String,
        url: &str,
        topic: Arc<str>,
        trace: Arc<Trace>,
    ) -> anyhow::Result<Self> {
        let mut socket = phoenix::connect(url, &name).await?;
        phoenix::join(&mut socket, &topic, "{}").await?;
        Ok(Self { topic, socket, trace })
    }

    /// Types the whole trace and then the event that ends the replay.
    ///
    /// # Errors
    /// When the server refuses an edit, acknowledges it out of order, or ends the connection.
    pub(crate) async fn write(self, pace: Pace, progress: Arc<Progress>) -> anyhow::Result<Typed> {
        let Self { topic, socket, trace } = self;
        let (mut sink, stream) = socket.split();
        let window = Semaphore::new(pace.window as usize);
        let started = progress.elapsed();
        let edits = trace.edits.len();
        let push = push_all(&mut sink, &topic, &trace, pace, &window, &progress);
        let ((), (stream, digest)) = tokio::try_join!(push, acknowledge_all(stream, edits, &window))
            .with_context(|| format!("the author of {topic}"))?;
        let took = progress.elapsed().saturating_sub(started);
        let end = reference(edits);
        sink.send(phoenix::push(&topic, end, END, "{}")).await?;
        acknowledged(stream, end).await?;
        Ok(Typed { digest, took })
    }
}

/// Returns the `ref` of the edit with this index.
fn reference(index: usize) -> u64 {
    JOIN_REF + 1 + index as u64
}

async fn push_all(
    sink: &mut SplitSink<Socket, Message>,
    topic: &str,
    trace: &Trace,
    pace: Pace,
    window: &Semaphore,
    progress: &Progress,
) -> anyhow::Result<()> {
    let (started, offset) = (Instant::now(), progress.elapsed());
    let mut heartbeat = started + HEARTBEAT;
    for (index, edit) in trace.edits.iter().enumerate() {
        let due = pace.rate.map(|rate| Duration::from_secs_f64(index as f64 / rate));
        if let Some(due) = due.map(|due| started + due).filter(|due| *due > Instant::now()) {
            sink.flush().await?;
            // Only a slow pace needs heartbeats between edits.
            while heartbeat < due {
                sleep_until(heartbeat).await;
                sink.send(phoenix::heartbeat()).await?;
                heartbeat += HEARTBEAT;
            }
            sleep_until(due).await;
        }
        // Fed messages are flushed before the task waits.
        let permit = if let Ok(permit) = window.try_acquire() {
            permit
        } else {
            sink.flush().await?;
            window.acquire().await?
        };
        permit.forget();
        progress.sent(index, due.map_or_else(|| progress.elapsed(), |due| offset + due));
        sink.feed(phoenix::push(topic, reference(index), EDITED, &serde_json::to_string(edit)?)).await?;
    }
    sink.flush().await?;
    Ok(())
}

/// Reads the acknowledgements of `edits` edits in order. Returns the digest of their seqs and ids.
async fn acknowledge_all(
    mut stream: SplitStream<Socket>,
    edits: usize,
    window: &Semaphore,
) -> anyhow::Result<(SplitStream<Socket>, u64)> {
    let mut digest = Digest::default();
    let mut next = 0;
    while next < edits {
        let Some(message) = stream.next().await else { bail!("the server closed the connection") };
        let Message::Text(text) = message? else { continue };
        let frame = PhoenixFrame::parse(&text)?;
        match (frame.event, frame.reference.and_then(|text| text.parse::<u64>().ok())) {
            ("phx_reply", Some(found)) if found > JOIN_REF => {
                let reply: PublishReply<'_> = serde_json::from_str(frame.response()?)?;
                ensure!(found == reference(next), "ref {found} was answered, {} is next", reference(next));
                digest.add(reply.seq, reply.id);
                next += 1;
                window.add_permits(1);
            }
            ("phx_error" | "phx_close", _) => bail!("the server ended the channel: {}", frame.payload),
            _ => {}
        }
    }
    Ok((stream, digest.value()))
}

async fn acknowledged(mut stream: SplitStream<Socket>, wanted: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + HEARTBEAT;
    loop {
        let Some(message) = timeout_at(deadline, stream.next()).await? else {
            bail!("the server closed the connection before the end")
        };
        let Message::Text(text) = message? else { continue };
        let frame = PhoenixFrame::parse(&text)?;
        if frame.event == "phx_reply" && frame.reference == Some(wanted.to_string().as_str()) {
            frame.response()?;
            return Ok(());
        }
    }
}
