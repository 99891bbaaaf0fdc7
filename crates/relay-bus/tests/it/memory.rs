//! The bounds of a bus in bytes: what clients publish and readers encode stays within the shares of its memory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use relay_bus::{Bus, BusConfig, BusParts, Filter, LagPolicy, MailboxConfig, Subscription};
use relay_core::testing::{ManualClock, MemoryLog};
use relay_core::{
    CheckedDraft, DocumentId, Draft, ErrorCode, EventLog, EventStream, MemoryBudget, MemoryLimits,
    MemoryPurpose, Metadata, Payload, Seq, ShareKind, StartPosition,
};
use tokio::task::JoinHandle;

use crate::support::{available, checked, config, document, held_log, settle};

const KIB: usize = 1024;
const EVERYTHING: StartPosition = StartPosition::After { epoch: None, seq: Seq::ZERO };

/// A budget whose caches take at most `cache_kib`.
fn budget(cache_kib: usize) -> MemoryBudget {
    let mut limits = MemoryLimits::default();
    limits.max_cache_bytes = cache_kib * KIB;
    MemoryBudget::new(limits)
}

fn bus(memory: &MemoryBudget, log: Option<MemoryLog>, config: BusConfig) -> Bus {
    let mut parts = BusParts::new(Arc::new(ManualClock::new()));
    parts.log = log.map(|log| Arc::new(log) as Arc<dyn EventLog>);
    parts.memory = memory.clone();
    Bus::with_parts(config, parts).unwrap()
}

fn draft(document: &DocumentId, kind: &str, bytes: usize) -> CheckedDraft {
    let payload = Payload::json(&"x".repeat(bytes)).unwrap();
    checked(Draft::new(document.clone(), relay_events::kind(kind).unwrap(), payload))
}

async fn subscribe(bus: &Bus, document: &DocumentId) -> Subscription {
    bus.subscribe(document, EVERYTHING, Filter::all(), LagPolicy::Refill).await.unwrap().1
}

/// Reads all that is there, and encodes it as an edge does.
fn encode_available(events: &mut Subscription) -> usize {
    let events = available(events);
    events
        .into_iter()
        .map(|event| relay_events::json::encode(&event.unwrap()))
        .filter(|json| !json.is_empty())
        .count()
}

/// Publishes drafts at once, as clients do. Returns those that wait for the log; the others are refused as overloaded.
async fn publish_all(bus: &Bus, drafts: impl Iterator<Item = CheckedDraft>) -> Vec<JoinHandle<()>> {
    let publish = |draft| {
        let bus = bus.clone();
        tokio::spawn(async move {
            let error = bus.publish(draft).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Overloaded);
        })
    };
    let tasks: Vec<_> = drafts.map(publish).collect();
    settle().await;
    // Those that would wait for space are refused.
    tokio::time::advance(Duration::from_millis(1)).await;
    settle().await;
    let (ended, waiting): (Vec<_>, Vec<_>) = tasks.into_iter().partition(JoinHandle::is_finished);
    join_all(ended).await.into_iter().for_each(Result::unwrap);
    waiting
}

#[tokio::test]
async fn the_encoded_copies_of_a_documents_events_count_to_its_cache() {
    for log in [Some(MemoryLog::new()), None] {
        // Without a log a document has a quarter of all caches.
        let memory = budget(256);
        let bus = bus(&memory, log, config(|c| c.cache_bytes = 64 * KIB));
        let doc = document("doc");
        let mut events = subscribe(&bus, &doc).await;
        for _ in 0..100 {
            bus.publish(draft(&doc, "x-note", 4 * KIB)).await.unwrap();
            assert_eq!(encode_available(&mut events), 1);
            let held = memory.held(MemoryPurpose::Events);
            // The newest event's copy was made after the event had made space for itself.
            assert!(held <= 64 * KIB + 5 * KIB, "{held}");
        }
        assert!(memory.held(MemoryPurpose::Events) >= 32 * KIB);
        // What a slow socket still has to take counts for as long as it waits.
        bus.publish(draft(&doc, "x-note", 4 * KIB)).await.unwrap();
        let json = relay_events::json::encode(&events.next().await.unwrap().unwrap());
        drop((events, bus));
        settle().await;
        assert_eq!((memory.total().used(), memory.held(MemoryPurpose::Events)), (json.len(), json.len()));
        drop(json);
        assert_eq!(memory.total().used(), 0);
    }
}

#[tokio::test]
async fn all_caches_together_have_a_limit_and_the_least_recently_used_ones_give_way() {
    let memory = budget(256);
    let bus = bus(&memory, Some(MemoryLog::new()), config(|c| c.cache_bytes = 64 * KIB));
    let documents: Vec<_> = (0..20).map(|number| document(&format!("doc {number}"))).collect();
    let mut first_events = subscribe(&bus, &documents[0]).await;
    // Publishers would wait for it.
    first_events.stand_for(0);
    for document in &documents {
        for _ in 0..12 {
            bus.publish(draft(document, "x-note", 4 * KIB)).await.unwrap();
            assert!(memory.caches().used() <= 256 * KIB, "{}", memory.caches().used());
        }
    }
    assert!(bus.stats().caches_dropped >= 14, "{}", bus.stats().caches_dropped);
    assert!(memory.caches().used() > 128 * KIB, "{}", memory.caches().used());
    // The latest document is read from memory, and the first one from the log.
    let mut last_events = subscribe(&bus, &documents[19]).await;
    assert_eq!((encode_available(&mut last_events), bus.stats().replay_pages), (12, 0));
    let mut read = 0;
    while read < 12 {
        first_events.next().await.unwrap().unwrap();
        read += 1;
    }
    assert!(bus.stats().replay_pages > 0);
}

#[tokio::test]
async fn caches_give_way_before_others_are_refused() {
    let mut limits = MemoryLimits::default();
    (limits.max_bytes, limits.max_cache_bytes) = (512 * KIB, 256 * KIB);
    (limits.max_address_bytes, limits.max_connection_bytes) = (512 * KIB, 512 * KIB);
    let memory = MemoryBudget::new(limits);
    let bus = bus(&memory, Some(MemoryLog::new()), BusConfig::default());
    let doc = document("doc");
    for _ in 0..40 {
        bus.publish(draft(&doc, "x-note", 4 * KIB)).await.unwrap();
    }
    assert!(memory.caches().used() > 160 * KIB);
    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(memory.total().try_reserve(MemoryPurpose::Requests, 4 * KIB).unwrap());
        bus.publish(draft(&doc, "x-note", 1)).await.unwrap();
    }
    assert!(bus.stats().caches_dropped > 0);
}

#[tokio::test]
async fn reading_what_is_in_memory_encodes_no_more_than_all_caches_may_take() {
    let memory = budget(256);
    let bus = bus(&memory, Some(MemoryLog::new()), config(|c| c.cache_bytes = 64 * KIB));
    let documents: Vec<_> = (0..7).map(|number| document(&format!("doc {number}"))).collect();
    for document in &documents {
        for _ in 0..7 {
            bus.publish(draft(document, "x-note", 4 * KIB)).await.unwrap();
        }
    }
    assert_eq!(bus.stats().caches_dropped, 0);
    for document in &documents {
        let mut events = subscribe(&bus, document).await;
        assert!(encode_available(&mut events) <= 7);
        // One page of a reader is encoded before the next look at the limit.
        assert!(memory.caches().used() <= 256 * KIB + 7 * 5 * KIB, "{}", memory.caches().used());
    }
    assert!(bus.stats().caches_dropped > 0);
}

#[tokio::test]
async fn opening_a_document_reads_no_more_than_its_cache_takes() {
    let (memory, log) = (budget(4096), MemoryLog::new());
    let doc = document("doc");
    let writer = bus(&MemoryBudget::default(), Some(log.clone()), BusConfig::default());
    for _ in 0..100 {
        writer.publish(draft(&doc, "x-note", 4 * KIB)).await.unwrap();
    }
    let bus = bus(&memory, Some(log), config(|c| c.cache_bytes = 64 * KIB));
    let mut events = subscribe(&bus, &doc).await;
    let held = memory.held(MemoryPurpose::Events);
    assert!(held <= 64 * KIB && held > 48 * KIB, "{held}");
    for _ in 0..100 {
        events.next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn ephemeral_events_of_any_number_of_keys_have_a_limit_in_bytes() {
    let memory = budget(64 * KIB);
    let bus = bus(&memory, Some(MemoryLog::new()), config(|c| c.max_ephemeral_bytes = 64 * KIB));
    let doc = document("doc");
    let mut events = subscribe(&bus, &doc).await;
    let mut all = bus.subscribe_all(Filter::all(), MailboxConfig::default());
    for key in 0..600 {
        bus.publish(draft(&doc, "x-ephemeral-cursor", 8 * KIB).key(key.to_string())).await.unwrap();
    }
    // The mailbox has a limit of its own, below which it holds all of them.
    while all.next().now_or_never().is_some() {}
    drop(all);
    let held = memory.held(MemoryPurpose::Ephemerals);
    assert!(held <= 64 * KIB && held > 48 * KIB, "{held}");
    assert!(bus.stats().ephemeral_dropped >= 590);
    assert!(encode_available(&mut events) >= 6);
    // Their encoded copies count too, from the next event on.
    bus.publish(draft(&doc, "x-ephemeral-cursor", 8 * KIB).key("last")).await.unwrap();
    let held = memory.held(MemoryPurpose::Ephemerals);
    assert!(held <= 64 * KIB, "{held}");
}

#[tokio::test]
async fn a_mailbox_that_is_full_of_bytes_leaves_gaps_instead_of_growing() {
    let memory = MemoryBudget::default();
    let bus = bus(&memory, Some(MemoryLog::new()), config(|c| c.cache_bytes = 16 * KIB));
    let doc = document("doc");
    let mut config = MailboxConfig::default();
    config.max_bytes = 64 * KIB;
    let mut all = bus.subscribe_all(Filter::all(), config);
    for _ in 0..100 {
        bus.publish(draft(&doc, "x-note", 4 * KIB)).await.unwrap();
    }
    let held = memory.held(MemoryPurpose::Events);
    assert!(held <= (16 + 64 + 5) * KIB, "{held}");
    for _ in 0..100 {
        all.next().await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_counts_among_the_bytes_that_wait_for_the_log() {
    let memory = MemoryBudget::default();
    let bus = bus(
        &memory,
        Some(held_log()),
        config(|c| {
            (c.max_payload_bytes, c.max_pending_bytes) = (KIB, 256 * KIB);
            c.publish_timeout = Duration::ZERO;
        }),
    );
    let mut metadata = Metadata::default();
    for entry in 0..32 {
        metadata.insert(format!("key {entry}"), "x".repeat(1024)).unwrap();
    }
    let heavy = || {
        let payload = Payload::json(&1).unwrap();
        let draft = Draft::new(document("doc"), relay_events::kind("x-note").unwrap(), payload);
        checked(draft.metadata(metadata.clone()))
    };
    let waiting = publish_all(&bus, (0..100).map(|_| heavy())).await;
    let held = memory.held(MemoryPurpose::PublishQueue);
    assert!(held <= 256 * KIB && held > 200 * KIB, "{held}");
    assert_eq!(waiting.len(), held / (33 * KIB));
}

#[tokio::test(start_paused = true)]
async fn the_queues_of_all_documents_together_have_a_limit() {
    let mut limits = MemoryLimits::default();
    (limits.max_bytes, limits.max_cache_bytes) = (550 * KIB, 64 * KIB);
    (limits.max_address_bytes, limits.max_connection_bytes) = (550 * KIB, 550 * KIB);
    let memory = MemoryBudget::new(limits);
    let bus = bus(&memory, Some(held_log()), BusConfig::default());
    let draft = |number| draft(&document(&format!("doc {number}")), "x-note", 60 * KIB);
    let waiting = publish_all(&bus, (0..20).map(draft)).await;
    // The open documents take 40 KiB.
    assert_eq!(waiting.len(), 8);
    assert!(memory.total().used() <= 550 * KIB);
    assert_eq!((memory.refusals(ShareKind::Total), bus.stats().refused_overloaded), (12, 12));
}

#[tokio::test]
async fn open_documents_without_events_count_to_the_total() {
    let mut limits = MemoryLimits::default();
    (limits.max_bytes, limits.max_cache_bytes) = (200 * KIB, 64 * KIB);
    (limits.max_address_bytes, limits.max_connection_bytes) = (200 * KIB, 200 * KIB);
    let memory = MemoryBudget::new(limits);
    let bus = bus(&memory, None, BusConfig::default());
    let mut readers = Vec::new();
    for number in 0..100 {
        readers.push(subscribe(&bus, &document(&format!("doc {number}"))).await);
    }
    let further = document("further");
    let refused = bus.subscribe(&further, EVERYTHING, Filter::all(), LagPolicy::Refill).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Overloaded);
    assert_eq!(memory.held(MemoryPurpose::Documents), 200 * KIB);
    assert_eq!(memory.refusals(ShareKind::Total), 1);
    // An idle one gives way, and nothing is refused.
    readers.pop();
    subscribe(&bus, &further).await;
    assert_eq!((bus.stats().channels_evicted, memory.refusals(ShareKind::Total)), (1, 1));
}
