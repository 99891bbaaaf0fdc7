//! The cost of publishing with sequencing and history, beside a bare `tokio::sync::broadcast` to as many receivers.
//!
//! `send`: the call alone, with every receiver waiting, so that it includes waking them. `deliver`: until every
//! receiver has the event. The broadcast sends an `Arc` of an event that is ready; the bus makes the event (id, seq,
//! time), keeps it in its history, and sends it.

#![allow(clippy::disallowed_methods, reason = "a benchmark ends with its tasks")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use relay_bus::{Bus, BusConfig, Filter, LagPolicy};
use relay_core::{
    CheckedDraft, DocumentId, Draft, Epoch, Event, Payload, Seq, StartPosition, SystemClock, Timestamp,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;
use tokio::task::{LocalSet, yield_now};

const RECEIVERS: [usize; 3] = [1, 100, 10_000];

fn draft() -> CheckedDraft {
    let kind = relay_events::DOCUMENT_EDITED;
    let payload = Payload::json(&serde_json::json!({"patches": [[1024, 0, "h"]]})).unwrap();
    relay_events::check(Draft::new(DocumentId::new("notes").unwrap(), kind, payload)).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The number of events that all receivers together have.
type Received = Rc<Cell<u64>>;

/// The time that `send` takes, `rounds` times over, and the time until everybody has the event.
async fn measure(
    rounds: u64,
    receivers: usize,
    received: Received,
    mut send: impl AsyncFnMut(),
) -> (Duration, Duration) {
    let (mut sending, mut delivering) = (Duration::ZERO, Duration::ZERO);
    // Everybody is there and waits.
    yield_now().await;
    for round in 1..=rounds {
        let start = Instant::now();
        send().await;
        sending += start.elapsed();
        while received.get() < round * receivers as u64 {
            yield_now().await;
        }
        delivering += start.elapsed();
    }
    (sending, delivering)
}

fn broadcast(rounds: u64, receivers: usize) -> (Duration, Duration) {
    LocalSet::new().block_on(&runtime(), async {
        let (sender, _) = broadcast::channel::<Arc<Event>>(1024);
        let received = Received::default();
        for _ in 0..receivers {
            let (mut events, received) = (sender.subscribe(), Rc::clone(&received));
            tokio::task::spawn_local(async move {
                while let Ok(event) = events.recv().await {
                    black_box(&event);
                    received.set(received.get() + 1);
                }
            });
        }
        let event = Arc::new(draft().into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH));
        measure(rounds, receivers, received, async || {
            sender.send(Arc::clone(&event)).unwrap();
        })
        .await
    })
}

fn bus(rounds: u64, receivers: usize) -> (Duration, Duration) {
    LocalSet::new().block_on(&runtime(), async {
        let bus = Bus::new(BusConfig::default(), None, Arc::new(SystemClock::new())).unwrap();
        let received = Received::default();
        let template = draft();
        for _ in 0..receivers {
            let (_, mut events) = bus
                .subscribe(&template.document, StartPosition::Live, Filter::all(), LagPolicy::Refill)
                .await
                .unwrap();
            let received = Rc::clone(&received);
            tokio::task::spawn_local(async move {
                while let Some(Ok(event)) = events.next().await {
                    black_box(&event);
                    received.set(received.get() + 1);
                }
            });
        }
        // Making a draft is the publisher's work, not the bus's.
        let mut drafts = (0..rounds).map(|_| template.clone()).collect::<Vec<_>>();
        let result = measure(rounds, receivers, received, async || {
            let draft = drafts.pop().unwrap();
            bus.publish(draft).await.unwrap();
        })
        .await;
        bus.shutdown(Duration::from_secs(1)).await;
        result
    })
}

fn publish(criterion: &mut Criterion) {
    for (name, part) in [("send", 0), ("deliver", 1)] {
        let mut group = criterion.benchmark_group(name);
        let pick = |(sending, delivering)| if part == 0 { sending } else { delivering };
        for receivers in RECEIVERS {
            group.bench_function(BenchmarkId::new("broadcast", receivers), |b| {
                b.iter_custom(|rounds| pick(broadcast(rounds, receivers)));
            });
            group.bench_function(BenchmarkId::new("bus", receivers), |b| {
                b.iter_custom(|rounds| pick(bus(rounds, receivers)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, publish);
criterion_main!(benches);
