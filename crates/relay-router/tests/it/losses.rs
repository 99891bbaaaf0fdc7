//! Lost events: the reason in their decision, and the log lines about them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{EventLog, LogError, Seq};
use relay_router::Router;
use relay_router::decisions::DecisionRecord;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use crate::support::{
    Recorder, TO_A, World, attach, lost, note, patient, router_without_cache, target, until, until_queued,
};

/// Adds up the field `events` of all log lines.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<u64>>);

impl Told {
    fn get(&self) -> u64 {
        *self.0.lock()
    }
}

impl Visit for Told {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "events" {
            *self.0.lock() += value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl Subscriber for Told {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn log_lines_tell_of_each_lost_event_also_of_the_last_ones() {
    let told = Told::default();
    let _lines = tracing::subscriber::set_default(told.clone());
    let world = World::new();
    let (a, _gate) = Recorder::gated(0);
    let mut config = world.config(TO_A);
    config.max_waiting = 5;
    config.targets = vec![target("a", &a, patient())];
    let router = world.router_with(config).await;
    world.publish_notes(5, 55).await;
    lost(&router, 50).await;
    until(|| told.get() == 50).await;
    // The next line is not due when the router stops.
    world.publish_notes(5, 3).await;
    lost(&router, 53).await;
    router.stop(Duration::ZERO).await;
    assert_eq!(told.get(), 53);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_damaged_while_it_waits_is_lost_with_that_reason() {
    let told = Told::default();
    let _lines = tracing::subscriber::set_default(told.clone());
    let world = World::new();
    let (router, _a, gate) = router_without_cache(&world, 2).await;
    world.log.damage(&note("d0", 2).document, Seq::new(2));
    gate.add_permits(2);
    let lost = lost(&router, 1).await;
    let reason = "the log cannot read the event: it is damaged (`relay log check`)";
    assert_eq!(lost[0].error.as_deref(), Some(reason));
    until_queued(&router, "a", 0).await;
    router.stop(Duration::from_secs(5)).await;
    assert_eq!(told.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn events_that_the_log_drops_before_they_are_routed_are_decided_as_one_gap_and_count() {
    let told = Told::default();
    let _lines = tracing::subscriber::set_default(told.clone());
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, patient()).await;
    world.log.fail_reads(Some(LogError::Corrupt { detail: "the disk is on fire".to_owned() }));
    let mut offsets = Vec::new();
    for n in 0..100 {
        offsets.push(world.publish(note(&format!("d{}", n % 2), n)).await.offset);
    }
    // Retention takes most events of one document, so that the gap has some that are kept.
    world.log.trim(&note("d0", 0).document, Seq::new(40)).await.unwrap();
    until(|| router.stats().targets["a"].lag_events >= 100).await;
    world.log.fail_reads(None);
    until(|| router.stats().targets["a"].lag_events == 0).await;
    let lost = lost(&router, 1).await;
    let record = &lost[0];
    assert_eq!((lost.len(), record.event, record.document.as_ref()), (1, None, None));
    let gap = record.gap.unwrap();
    assert_eq!((record.offset, Some(gap.through), gap.events), (offsets[0], offsets[78], 40));
    assert!(record.error.as_deref().unwrap().starts_with("the log dropped 40 events between"));
    assert_eq!((a.wait_for(60).await.len(), router.stats().decisions["lost"]), (60, 40));
    // Nothing is left after the cursor.
    world.log.fail_reads(Some(LogError::Corrupt { detail: "the disk is on fire".to_owned() }));
    world.publish(note("d0", 1)).await;
    world.log.trim(&note("d0", 0).document, Seq::new(51)).await.unwrap();
    world.log.fail_reads(None);
    world.publish(note("d1", 2)).await;
    a.wait_for(61).await;
    until(|| router.stats().decisions["lost"] == 41).await;
    router.stop(Duration::from_secs(5)).await;
    assert_eq!(told.get(), 41);
}

#[tokio::test(start_paused = true)]
async fn losses_are_among_the_decisions_and_counted_after_a_restart() {
    let world = World::new();
    let (a, _gate) = Recorder::gated(0);
    let start = async || {
        let mut config = world.config(TO_A);
        config.max_waiting = 5;
        config.targets = vec![target("a", &a, patient())];
        world.router_with(config).await
    };
    let router = start().await;
    world.publish_notes(2, 12).await;
    let before = lost(&router, 7).await;
    // Two more are lost without a target, in one decision.
    world.log.fail_reads(Some(LogError::Corrupt { detail: "the disk is on fire".to_owned() }));
    for n in 0..2 {
        world.publish(note("other", n)).await;
    }
    world.log.trim(&note("other", 0).document, Seq::new(2)).await.unwrap();
    world.log.fail_reads(None);
    let before = [lost(&router, 8).await[..1].to_vec(), before].concat();
    let counted = |router: &Router| {
        let stats = router.stats();
        (stats.decisions["lost"], stats.targets["a"].lost)
    };
    assert_eq!(counted(&router), (9, 7));
    router.stop(Duration::ZERO).await;

    let router = start().await;
    let after = lost(&router, 8).await;
    let all = |records: &[Arc<DecisionRecord>]| -> Vec<_> {
        records.iter().map(|record| serde_json::to_value(&**record).unwrap()).collect()
    };
    assert_eq!((all(&after), counted(&router)), (all(&before), (9, 7)));
    world.publish_notes(2, 1).await;
    lost(&router, 9).await;
    assert_eq!(counted(&router), (10, 8));
    router.stop(Duration::ZERO).await;
}
