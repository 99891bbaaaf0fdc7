//! A connection that follows a document, and rejoins from its position after a disconnection.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use tokio::time::{MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite::Message;

use super::follower::{Follower, ReplayEvent};
use super::phoenix::{self, PhoenixFrame, Socket};
use super::progress::Progress;
use super::trace::Trace;

/// The interval of heartbeats; servers wait for 60 s.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(20);

/// The number of disconnections of one subscriber after which the replay is given up.
const MAX_REJOINS: u32 = 100;

/// One subscriber, joined.
pub(crate) struct Subscriber {
    name: String,
    url: Arc<str>,
    topic: Arc<str>,
    socket: Socket,
    follower: Follower,
    rejoins: u32,
}

/// The result of a subscriber whose deliveries were all right.
pub(crate) struct Followed {
    pub(crate) digest: u64,
    /// The microseconds from sending to receiving.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) rejoins: u32,
}

impl Subscriber {
    pub(crate) async fn join(
        name: String,
        url: Arc<str>,
        topic: Arc<str>,
        trace: Arc<Trace>,
    ) -> anyhow::Result<Self> {
        let mut socket = phoenix::connect(&url, &name).await?;
        let joined = phoenix::join(&mut socket, &topic, r#"{"seq":0}"#).await?;
        let follower = Follower::new(trace, joined.epoch);
        Ok(Self { name, url, topic, socket, follower, rejoins: 0 })
    }

    /// Follows to the end of the replay.
    ///
    /// # Errors
    /// On the first delivery that is not right.
    pub(crate) async fn follow(mut self, progress: Arc<Progress>) -> anyhow::Result<Followed> {
        let context = format!("{} of {}", self.name, self.topic);
        let mut latencies = Histogram::new(2)?;
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = self.socket.next() => message,
                _ = heartbeat.tick() => {
                    // The next read finds a lost connection.
                    let _ = self.socket.send(phoenix::heartbeat()).await;
                    continue;
                }
            };
            let cut_off = match &message {
                Some(Ok(Message::Text(text))) => {
                    let frame = PhoenixFrame::parse(text)?;
                    match frame.event {
                        "phx_reply" | "system.notice" => false,
                        "phx_error" | "phx_close" => true,
                        kind => {
                            match self.follower.receive(kind, frame.payload.get()).context(context.clone())? {
                                ReplayEvent::Edit(index) => {
                                    latencies.record(progress.delivered(index))?;
                                    false
                                }
                                ReplayEvent::Other => false,
                                ReplayEvent::End => break,
                            }
                        }
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => true,
                Some(Ok(_)) => false,
            };
            if cut_off {
                self.rejoin().await.context(context.clone())?;
            }
        }
        Ok(Followed { digest: self.follower.digest(), latencies, rejoins: self.rejoins })
    }

    async fn rejoin(&mut self) -> anyhow::Result<()> {
        self.rejoins += 1;
        if self.rejoins > MAX_REJOINS {
            bail!("cut off more than {MAX_REJOINS} times");
        }
        self.socket = phoenix::connect(&self.url, &self.name).await?;
        let joined = phoenix::join(&mut self.socket, &self.topic, &self.follower.position()).await?;
        if joined.reset {
            let why = joined.reset_reason.unwrap_or_default();
            bail!(
                "was cut off and cannot continue ({why}): the server keeps less history than the subscriber is behind"
            );
        }
        Ok(())
    }
}
