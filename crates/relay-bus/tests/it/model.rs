//! Order and recovery under any interleaving of publishing, joining, leaving, lagging, trimming, eviction and restart,
//! beside a plain model: a list per document.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{available, checked, config, document, in_memory, laser, note, number, seq};
use proptest::prelude::*;
use relay_bus::{Bus, BusConfig, Filter, LagPolicy, Subscription};
use relay_core::testing::{ManualClock, MemoryLog};
use relay_core::{
    CheckedDraft, Clock, DocumentId, Draft, Epoch, EventId, EventLog, EventStream, JsonText, Payload,
    PublishError, ReadLimit, Recovery, ResetReason, Retention, Seq, StartPosition, StreamError,
};

#[derive(Debug, Clone)]
enum Step {
    /// Publishes that many events one after the other.
    Publish {
        doc: usize,
        count: u64,
    },
    /// Publishes that many events at once.
    Burst {
        doc: usize,
        count: u64,
    },
    /// Sends an event again that was published before.
    Resend {
        doc: usize,
        which: prop::sample::Index,
    },
    Ephemeral {
        doc: usize,
    },
    /// A client comes, with nothing.
    Join {
        doc: usize,
    },
    /// A client reads some events, and lags by the rest.
    Read {
        client: prop::sample::Index,
        count: usize,
    },
    /// A client loses its connection and comes back with what it has.
    Reconnect {
        client: prop::sample::Index,
    },
    Trim {
        doc: usize,
        through: prop::sample::Index,
    },
    /// Time passes, idle documents leave memory.
    Evict,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let doc = 0..2usize;
    let step = prop_oneof![
        4 => (doc.clone(), 1..6u64).prop_map(|(doc, count)| Step::Publish { doc, count }),
        3 => (doc.clone(), 1..12u64).prop_map(|(doc, count)| Step::Burst { doc, count }),
        3 => (doc.clone(), any::<prop::sample::Index>()).prop_map(|(doc, which)| Step::Resend { doc, which }),
        1 => doc.clone().prop_map(|doc| Step::Ephemeral { doc }),
        2 => doc.clone().prop_map(|doc| Step::Join { doc }),
        4 => (any::<prop::sample::Index>(), 1..9usize).prop_map(|(client, count)| Step::Read { client, count }),
        2 => any::<prop::sample::Index>().prop_map(|client| Step::Reconnect { client }),
        1 => (doc, any::<prop::sample::Index>()).prop_map(|(doc, through)| Step::Trim { doc, through }),
        1 => Just(Step::Evict),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// The outcomes in a document, by the acks: the event of seq `n` is at `n - 1`.
#[derive(Default)]
struct Story {
    events: Vec<(EventId, u64)>,
    trimmed_through: u64,
    epoch: Option<Epoch>,
}

struct Client {
    doc: usize,
    epoch: Epoch,
    /// The last event that it has.
    seq: u64,
    events: Subscription,
}

struct World {
    log: MemoryLog,
    clock: Arc<ManualClock>,
    bus: Bus,
    documents: [DocumentId; 2],
    stories: [Story; 2],
    clients: Vec<Client>,
    next_number: u64,
}

fn small_caches() -> BusConfig {
    config(|c| {
        c.cache_events = 5;
        c.preload_events = 3;
        c.idempotency_events = 20;
        c.replay_page = ReadLimit { events: 2, bytes: usize::MAX };
    })
}

fn start_bus(log: &MemoryLog, clock: &Arc<ManualClock>) -> Bus {
    Bus::new(small_caches(), Some(Arc::new(log.clone())), Arc::clone(clock) as Arc<dyn Clock>).unwrap()
}

impl World {
    fn new() -> Self {
        let (log, clock) = (MemoryLog::new(), Arc::new(ManualClock::new()));
        Self {
            bus: start_bus(&log, &clock),
            log,
            clock,
            documents: [document("one"), document("two")],
            stories: Default::default(),
            clients: Vec::new(),
            next_number: 0,
        }
    }

    /// Every other draft has an id of its publisher's.
    fn draft(&mut self, doc: usize) -> (Option<EventId>, u64, CheckedDraft) {
        self.next_number += 1;
        let draft = note(&self.documents[doc], self.next_number);
        if self.next_number.is_multiple_of(2) {
            return (None, self.next_number, draft);
        }
        let id = EventId::new();
        (Some(id), self.next_number, draft.id(id))
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Publish { doc, count } => {
                for _ in 0..count {
                    let (id, number, draft) = self.draft(doc);
                    let ack = self.bus.publish(draft).await.unwrap();
                    self.record(doc, &[(id, number, ack)]);
                }
            }
            Step::Burst { doc, count } => {
                let drafts: Vec<_> = (0..count).map(|_| self.draft(doc)).collect();
                let bus = &self.bus;
                let all = drafts.into_iter().map(|(id, number, draft)| async move {
                    (id, number, bus.publish(draft).await.unwrap())
                });
                let acks = futures_util::future::join_all(all).await;
                self.record(doc, &acks);
            }
            Step::Resend { doc, which } => self.resend(doc, which).await,
            Step::Ephemeral { doc } => {
                let ack = self.bus.publish(laser(&self.documents[doc], "ada", 0)).await.unwrap();
                assert_eq!(ack.seq, None);
            }
            Step::Join { doc } => {
                let client = self.join(doc, StartPosition::After { epoch: None, seq: Seq::ZERO }, 0).await;
                self.clients.push(client);
            }
            Step::Read { client, count } => {
                if !self.clients.is_empty() {
                    let index = client.index(self.clients.len());
                    self.read(index, count).await;
                }
            }
            Step::Reconnect { client } => {
                if !self.clients.is_empty() {
                    let index = client.index(self.clients.len());
                    self.reconnect(index).await;
                }
            }
            Step::Trim { doc, through } => {
                let story = &mut self.stories[doc];
                let through = through.index(story.events.len() + 1) as u64;
                self.log.trim(&self.documents[doc], Seq::new(through)).await.unwrap();
                story.trimmed_through = story.trimmed_through.max(through);
            }
            Step::Evict => {
                self.bus.sweep();
                self.clock.advance(Duration::from_secs(61));
                self.bus.sweep();
            }
            Step::Restart => {
                assert!(self.bus.shutdown(Duration::from_secs(10)).await.complete);
                self.bus = start_bus(&self.log, &self.clock);
            }
        }
    }

    /// Receipts come in the order of publishing, with seqs that go on without a gap.
    fn record(&mut self, doc: usize, acks: &[(Option<EventId>, u64, relay_core::PublishAck)]) {
        let story = &mut self.stories[doc];
        for (id, number, ack) in acks {
            assert!(id.is_none_or(|id| ack.id == id));
            assert!(!ack.duplicate);
            story.events.push((ack.id, *number));
            assert_eq!(ack.seq.unwrap().get(), story.events.len() as u64, "no gap, none twice");
            assert_eq!(*story.epoch.get_or_insert(ack.epoch), ack.epoch, "the epoch stays");
        }
    }

    /// Every kept event of the window is recognised, wherever it is now, and however its payload is written.
    async fn resend(&mut self, doc: usize, which: prop::sample::Index) {
        let story = &self.stories[doc];
        let kept = story.events.len() as u64 - story.trimmed_through.min(story.events.len() as u64);
        let recent = kept.min(small_caches().idempotency_events);
        if recent == 0 {
            return;
        }
        let index = story.events.len() - 1 - which.index(usize::try_from(recent).unwrap());
        let (id, number) = story.events[index];
        let draft = |number: &str| {
            let text = JsonText::parse(number.to_owned().into()).unwrap();
            let kind = relay_events::kind("x-note").unwrap();
            checked(Draft::new(self.documents[doc].clone(), kind, Payload::Json(text)).id(id))
        };
        let ack = self.bus.publish(draft(&format!(" {number}\n"))).await.unwrap();
        assert!(ack.duplicate);
        assert_eq!((ack.id, ack.seq.unwrap().get()), (id, index as u64 + 1));
        let other = self.bus.publish(draft("\"other\"")).await;
        assert!(
            matches!(other, Err(PublishError::IdConflict { seq, .. }) if Some(seq) == ack.seq),
            "{other:?}"
        );
    }

    async fn join(&self, doc: usize, start: StartPosition, has: u64) -> Client {
        let story = &self.stories[doc];
        let (opening, mut events) =
            self.bus.subscribe(&self.documents[doc], start, Filter::all(), LagPolicy::Refill).await.unwrap();
        // All are slow at times, and publishers would wait for them.
        events.stand_for(0);
        assert_eq!(opening.head.last.get(), story.events.len() as u64);
        if let Some(epoch) = story.epoch {
            assert_eq!(opening.head.epoch, epoch, "the epoch stays");
        }
        if has < story.trimmed_through {
            // Memory may still reach further back than the log.
            let met = opening.recovery == Recovery::Recovered && opening.position.get() == has;
            let reset = opening.recovery == Recovery::Reset(ResetReason::Trimmed)
                && opening.position.get() == story.trimmed_through;
            assert!(met || reset, "{opening:?}");
        } else {
            assert_eq!(opening.recovery, Recovery::Recovered);
            assert_eq!(opening.position.get(), has);
        }
        Client { doc, epoch: opening.head.epoch, seq: opening.position.get(), events }
    }

    async fn reconnect(&mut self, index: usize) {
        let Client { doc, epoch, seq, .. } = self.clients[index];
        let start = StartPosition::After { epoch: Some(epoch), seq: Seq::new(seq) };
        self.clients[index] = self.join(doc, start, seq).await;
    }

    /// Everything that a client gets is the next event, as it was published.
    async fn read(&mut self, index: usize, count: usize) {
        for _ in 0..count {
            let client = &mut self.clients[index];
            let Some(next) = futures_util::FutureExt::now_or_never(client.events.next()) else { return };
            match next {
                Some(Ok(event)) if event.seq.is_none() => {}
                Some(Ok(event)) => {
                    client.seq += 1;
                    assert_eq!(seq(&event), client.seq, "the next event, none left out, none twice");
                    let (id, published) =
                        self.stories[client.doc].events[usize::try_from(client.seq).unwrap() - 1];
                    assert_eq!((event.id, number(&event)), (id, published));
                    assert!(event.offset.is_some());
                }
                Some(Err(StreamError::Lagged { position, .. })) => {
                    assert_eq!(position.get(), client.seq);
                    assert!(
                        client.seq < self.stories[client.doc].trimmed_through,
                        "only trimming cuts a reader off"
                    );
                    self.reconnect(index).await;
                }
                Some(Err(error)) => panic!("{error}"),
                // The bus was restarted.
                None => self.reconnect(index).await,
            }
        }
    }

    /// In the end everybody has everything.
    async fn finish(mut self) {
        for index in 0..self.clients.len() {
            self.read(index, usize::MAX).await;
            let client = &self.clients[index];
            assert_eq!(client.seq, self.stories[client.doc].events.len() as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_and_recovery_hold_under_any_interleaving(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for step in steps {
                world.take(step).await;
            }
            world.finish().await;
        });
    }

    /// Without a log, history is what the retention leaves in memory.
    #[test]
    fn without_a_log_a_reader_gets_everything_or_is_told(
        published in prop::collection::vec(1..8u64, 1..20),
        reads in prop::collection::vec(0..8usize, 20),
        max_events in 1..12u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let retention = Retention { max_events, ..Retention::default() };
            let bus = in_memory(config(|c| c.retention = retention));
            let doc = document("doc");
            let everything = StartPosition::After { epoch: None, seq: Seq::ZERO };
            let (mut opening, mut events) =
                bus.subscribe(&doc, everything, Filter::all(), LagPolicy::Refill).await.unwrap();
            events.stand_for(0);
            let (mut position, mut last) = (0, 0);
            for (count, reads) in published.into_iter().zip(reads) {
                for _ in 0..count {
                    last += 1;
                    let ack = bus.publish(note(&doc, last)).await.unwrap();
                    assert_eq!(ack.seq.unwrap().get(), last);
                }
                for _ in 0..reads {
                    match futures_util::FutureExt::now_or_never(events.next()).flatten() {
                        Some(Ok(event)) => {
                            position += 1;
                            assert_eq!((seq(&event), number(&event)), (position, position));
                        }
                        Some(Err(StreamError::Lagged { .. })) => {
                            let start = StartPosition::After { epoch: Some(opening.head.epoch), seq: Seq::new(position) };
                            (opening, events) =
                                bus.subscribe(&doc, start, Filter::all(), LagPolicy::Refill).await.unwrap();
                            events.stand_for(0);
                            assert_eq!(opening.recovery, Recovery::Reset(ResetReason::Trimmed));
                            position = opening.position.get();
                            assert_eq!(position, last - max_events);
                        }
                        Some(Err(error)) => panic!("{error}"),
                        None => assert_eq!(position, last),
                    }
                }
            }
            let rest = available(&mut events);
            if rest.iter().all(Result::is_ok) {
                assert_eq!(position + rest.len() as u64, last);
            }
        });
    }
}
