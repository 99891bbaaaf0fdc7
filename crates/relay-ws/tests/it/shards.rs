//! A shard that panics, and a shard that has ended.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use relay_core::DocumentId;
use relay_core::testing::ManualClock;
use relay_ws::{Member, WsConfig, WsParts, WsServer};
use serde_json::json;

use crate::scripted::connect;
use crate::support::{Feed, Shared, quick};

fn config() -> WsConfig {
    let mut config = quick();
    // Without ticks nothing runs a shard that no request wakes.
    (config.shards, config.tick) = (Some(1), Duration::from_secs(60));
    config
}

fn parts() -> WsParts {
    let clock = Arc::new(ManualClock::new());
    let feed = Arc::new(Feed::new(Arc::clone(&clock)));
    WsParts::new(Arc::clone(&feed) as _, Arc::new(Shared(feed)), clock)
}

/// A waker that panics in the task that wakes it.
struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("a test ends the task that answers it");
    }
}

/// Asks the shards a question whose answer makes them panic, as long as the future lives.
fn ask_to_panic(ws: &WsServer) -> impl Future<Output = Vec<Member>> {
    let document = DocumentId::new("notes").unwrap();
    let mut asking = Box::pin(async move { ws.members(&document).await });
    let waker = Waker::from(Arc::new(PanickingWaker));
    assert!(asking.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    asking
}

#[tokio::test]
async fn a_shard_that_panics_in_a_request_goes_on_with_the_later_requests() {
    let parts = parts();
    let supervisor = parts.supervisor.clone();
    let ws = WsServer::with_parts(config(), parts).unwrap();
    let panics = async |count| {
        while supervisor.stats().values().map(|task| task.panicked).sum::<u64>() < count {
            tokio::task::yield_now().await;
        }
    };
    let _first = ask_to_panic(&ws);
    panics(1).await;
    // Until the shard is started again, a question and a connection wait for it.
    let _second = ask_to_panic(&ws);
    let mut client = connect(&ws, "/socket/websocket?vsn=2.0.0&user=ada").await;
    panics(2).await;
    assert_eq!(ws.stats().connections, 0, "the shard panics before it serves the connection");
    client.deliver(&[json!([null, "1", "phoenix", "heartbeat", {}])]);
    assert_eq!(client.until_reply("1").await["status"], "ok");
    assert_eq!(ws.stats().connections, 1);
}

#[tokio::test]
async fn a_shard_that_has_ended_answers_no_question_and_keeps_nobody_waiting() {
    let ws = WsServer::with_parts(config(), parts()).unwrap();
    ws.shutdown(Duration::from_secs(60)).await;
    let asked = tokio::time::timeout(Duration::from_secs(10), ws.connections(None)).await;
    assert_eq!(asked.map(|connections| connections.len()), Ok(0));
}
