//! The pace of a document: readers of any speeds beside publishers of any rates.
//!
//! The tests run in steps on one thread. In each step every member reads what its speed allows, and every publisher adds to its
//! drafts under way. The clock stands still.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{config, document, in_memory, note, number, over, settle};
use futures_util::FutureExt;
use proptest::prelude::*;
use relay_bus::{Bus, BusConfig, BusParts, Filter, LagPolicy, Subscription};
use relay_core::testing::{ManualClock, MemoryLog};
use relay_core::{
    Actor, Clock, DocumentId, Draft, EventId, EventLog, EventStream, MemoryBudget, MemoryPurpose, Monotonic,
    Payload, PublishAck, PublishError, Retention, Seq, StartPosition, StreamError, Timestamp, UserId,
};
use relay_events::{SessionStarted, server_draft};
use tokio::task::JoinHandle;

/// The events that are kept. A reader that is further behind lags.
const KEPT: u64 = 512;

type Publishing = Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>>>>;

/// A document with members and publishers.
struct Scene {
    bus: Bus,
    log: Option<MemoryLog>,
    document: DocumentId,
    members: Vec<Member>,
    publishers: Vec<Publisher>,
    published: u64,
}

struct Member {
    events: Subscription,
    /// The most events that it reads in a step.
    speed: usize,
    received: u64,
    has_lagged: bool,
    /// True from its end until it joins again.
    is_over: bool,
}

struct Publisher {
    actor: Actor,
    /// The drafts that it keeps under way.
    window: usize,
    under_way: VecDeque<Publishing>,
    next: u64,
    acknowledged: u64,
}

fn small() -> BusConfig {
    config(|c| {
        c.retention = Retention { max_events: KEPT, ..Retention::default() };
        c.cache_events = 256;
        c.preload_events = 8;
        c.min_events_per_second = 0;
    })
}

impl Scene {
    fn new(has_log: bool) -> Self {
        let log = has_log.then(MemoryLog::new);
        let bus = match &log {
            Some(log) => over(log.clone(), small()),
            None => in_memory(small()),
        };
        let document = document("doc");
        Self { bus, log, document, members: Vec::new(), publishers: Vec::new(), published: 0 }
    }

    async fn join(&mut self, speed: usize) {
        let start = StartPosition::After { epoch: None, seq: Seq::ZERO };
        let (_, events) = self.subscribe(start).await;
        self.members.push(Member { events, speed, received: 0, has_lagged: false, is_over: false });
    }

    /// A subscription that counts as a reader before it reads for the first time.
    async fn subscribe(&self, start: StartPosition) -> (Seq, Subscription) {
        let joined = self.bus.subscribe(&self.document, start, Filter::all(), LagPolicy::Refill).await;
        let (ack, mut events) = joined.unwrap();
        events.stand_for(1);
        (ack.position, events)
    }

    fn add_publisher(&mut self, window: usize) {
        let actor = Actor::User(UserId::new(format!("publisher-{}", self.publishers.len())).unwrap());
        let under_way = VecDeque::new();
        self.publishers.push(Publisher { actor, window, under_way, next: 0, acknowledged: 0 });
    }

    /// Checks, when the member at `lagged` has lagged, that at least half of those that were there are not behind.
    fn check_the_others(&self, lagged: usize) {
        // Half of memory, one part of it, the queue for the log, and the events that a member has taken at once and not yet
        // looked at.
        let near = if self.log.is_some() { 128 + 8 + 64 } else { KEPT / 2 + 16 } + 32;
        let members = self.members.iter().enumerate();
        let were_there = members.filter(|(index, member)| *index == lagged || !member.is_over);
        let distances: Vec<_> =
            were_there.map(|(_, member)| self.published.saturating_sub(member.received)).collect();
        let follow = distances.iter().filter(|&&distance| distance <= near).count();
        assert!(2 * follow >= distances.len(), "{distances:?}");
    }

    /// Publishes a note. Returns false when it has to wait for readers; it is withdrawn then.
    async fn publish_now(&mut self) -> bool {
        let waited = self.bus.stats().drafts_waited;
        let mut publishing = Box::pin(self.bus.publish(note(&self.document, self.published)));
        let ack = match publishing.as_mut().now_or_never() {
            Some(ack) => ack,
            None if self.bus.stats().drafts_waited > waited => return false,
            None => publishing.await,
        };
        self.published = ack.unwrap().seq.unwrap().get();
        self.members[0].read();
        true
    }

    /// Publishes so many notes at once, and lets them come as far as they do.
    async fn publish_at_once(&self, notes: u64) -> Vec<JoinHandle<Result<PublishAck, PublishError>>> {
        let publish = |number| {
            let (bus, draft) = (self.bus.clone(), note(&self.document, number));
            tokio::spawn(async move { bus.publish(draft).await })
        };
        let publishing = (0..notes).map(publish).collect();
        settle().await;
        publishing
    }

    /// Every publisher fills its window, and every member reads as much as it can.
    async fn step(&mut self) {
        for publisher in &mut self.publishers {
            while publisher.under_way.len() < publisher.window {
                let draft = note(&self.document, publisher.next).actor(publisher.actor.clone());
                let bus = self.bus.clone();
                let mut publishing: Publishing = Box::pin(async move { bus.publish(draft).await });
                publisher.next += 1;
                match publishing.as_mut().now_or_never() {
                    Some(ack) => publisher.acknowledge(&ack.unwrap(), &mut self.published),
                    None => publisher.under_way.push_back(publishing),
                }
                if publisher.next.is_multiple_of(64) {
                    // A publisher that never waits has its turn, and others have theirs.
                    break;
                }
            }
        }
        settle().await;
        for publisher in &mut self.publishers {
            while let Some(ack) = publisher.under_way.front_mut().and_then(FutureExt::now_or_never) {
                publisher.under_way.pop_front();
                publisher.acknowledge(&ack.unwrap(), &mut self.published);
            }
        }
        if let Some(log) = &self.log {
            let trimmed = self.published.saturating_sub(KEPT);
            log.trim(&self.document, Seq::new(trimmed)).await.unwrap();
        }
        // One event each in turn, so that no member falls behind only because its turn is later.
        let fastest = self.members.iter().map(|member| member.speed).max().unwrap_or(0);
        for turn in 0..fastest {
            for index in 0..self.members.len() {
                if turn < self.members[index].speed && self.members[index].read_one() {
                    self.check_the_others(index);
                }
            }
        }
        // Who lagged comes back, as clients do.
        for index in 0..self.members.len() {
            if self.members[index].is_over {
                let (received, events) = self.subscribe(StartPosition::Live).await;
                let member = &mut self.members[index];
                (member.events, member.received, member.is_over) = (events, received.get(), false);
            }
        }
    }
}

impl Member {
    fn read(&mut self) {
        for _ in 0..self.speed {
            self.read_one();
        }
    }

    /// Reads one event. Returns true when the member has lagged.
    fn read_one(&mut self) -> bool {
        match self.events.next().now_or_never() {
            Some(Some(Ok(event))) => {
                self.received += 1;
                assert_eq!(event.seq, Some(Seq::new(self.received)), "no gap, none twice");
            }
            Some(Some(Err(StreamError::Lagged { .. }))) => {
                (self.has_lagged, self.is_over) = (true, true);
                return true;
            }
            Some(Some(Err(error))) => panic!("{error}"),
            Some(None) | None => {}
        }
        false
    }
}

impl Publisher {
    fn acknowledge(&mut self, ack: &PublishAck, published: &mut u64) {
        self.acknowledged += 1;
        *published = (*published).max(ack.seq.unwrap().get());
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// A member lags only while it is one of a minority, however fast the publishers are, and however often members lag and come
    /// back. Each step checks it.
    #[test]
    fn a_member_that_is_no_further_behind_than_half_of_the_others_never_ends(
        speeds in prop::collection::vec(1..40usize, 1..12),
        windows in prop::collection::vec(1..200usize, 1..5),
        has_log in any::<bool>(),
        steps in 20..80usize,
    ) {
        run(async {
            let mut scene = Scene::new(has_log);
            for &speed in &speeds {
                scene.join(speed).await;
            }
            for window in windows {
                scene.add_publisher(window);
            }
            for _ in 0..steps {
                scene.step().await;
            }
            assert!(scene.published >= 16, "publishers go on");
        });
    }

    /// The events that pass with a slow minority are as many as without it.
    #[test]
    fn a_slow_minority_never_lowers_the_rate_of_the_rest(
        fast in 2..10usize,
        slow in prop::collection::vec(0..5usize, 1..10),
        speed in 8..40usize,
        window in 1..80usize,
        has_log in any::<bool>(),
    ) {
        let slow = &slow[..slow.len().min(fast - 1)];
        // Those of the minority that lag come back again and again.
        let received = |slow: Vec<usize>| run(async move {
            let mut scene = Scene::new(has_log);
            for _ in 0..fast {
                scene.join(speed).await;
            }
            for speed in slow {
                scene.join(speed).await;
            }
            scene.add_publisher(window);
            for _ in 0..40 {
                scene.step().await;
            }
            assert!(scene.members[..fast].iter().all(|member| !member.has_lagged));
            scene.members[..fast].iter().map(|member| member.received).collect::<Vec<_>>()
        });
        assert_eq!(received(slow.to_vec()), received(vec![speed; slow.len()]));
    }
}

#[test]
fn publishers_wait_for_readers_in_turns() {
    for has_log in [false, true] {
        run(async {
            let mut scene = Scene::new(has_log);
            scene.join(4).await;
            scene.add_publisher(800);
            scene.add_publisher(1);
            for _ in 0..400 {
                scene.step().await;
            }
            // The flooding publisher is held to the room's pace. The room reads 32 events at once, which is every 8 steps, and the
            // polite publisher has its turn each time. Behind the other's 800 drafts it would wait for 200 steps.
            assert!(scene.published < 2200, "{}", scene.published);
            assert!(scene.publishers[1].acknowledged > 25, "{}", scene.publishers[1].acknowledged);
            assert!(scene.bus.stats().drafts_waited > 0);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_is_refused_when_the_room_does_not_follow_in_time() {
    for has_log in [false, true] {
        let mut scene = Scene::new(has_log);
        scene.join(10).await;
        let refused = loop {
            let published = scene.bus.publish(note(&scene.document, scene.published)).await;
            let Ok(ack) = published else { break published };
            scene.published = ack.seq.unwrap().get();
        };
        assert!(
            matches!(refused, Err(PublishError::Overloaded { waited, .. }) if waited == Duration::from_secs(5)),
            "{refused:?}"
        );
        assert!(scene.published < KEPT, "publishers wait well before a reader must be ended");
        assert_eq!(scene.bus.stats().refused_overloaded, 1);
        // A reader that stands for nobody holds up no publisher.
        scene.members[0].events.stand_for(0);
        scene.bus.publish(note(&scene.document, 0)).await.unwrap();
        scene.members[0].events.stand_for(1);
        // Reading lets publishers go on.
        let document = scene.document.clone();
        let bus = scene.bus.clone();
        let waiting = tokio::spawn(async move { bus.publish(note(&document, 7)).await });
        settle().await;
        while !waiting.is_finished() {
            scene.members[0].read();
            settle().await;
        }
        let seq = waiting.await.unwrap().unwrap().seq.unwrap();
        assert_eq!(seq, Seq::new(scene.published + 2), "the refused draft has no place");
    }
}

/// A clock that counts how often it is read.
#[derive(Debug, Default)]
struct CountingClock {
    clock: ManualClock,
    reads: AtomicU64,
}

impl CountingClock {
    /// Lets time pass, also for timers.
    async fn pass(&self, span: Duration) {
        self.clock.advance(span);
        tokio::time::advance(span).await;
        settle().await;
    }
}

impl Clock for CountingClock {
    fn wall(&self) -> Timestamp {
        self.clock.wall()
    }

    fn monotonic(&self) -> Monotonic {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.clock.monotonic()
    }
}

/// A document with one member that follows, and two that never read and are behind.
async fn held_up(has_log: bool, min_rate: u32) -> (Scene, Arc<CountingClock>) {
    held_up_in(&MemoryBudget::default(), has_log, min_rate).await
}

async fn held_up_in(memory: &MemoryBudget, has_log: bool, min_rate: u32) -> (Scene, Arc<CountingClock>) {
    let clock = Arc::new(CountingClock::default());
    let mut config = small();
    config.min_events_per_second = min_rate;
    let log = has_log.then(|| Arc::new(MemoryLog::new()) as Arc<dyn EventLog>);
    let mut parts = BusParts::new(Arc::clone(&clock) as Arc<dyn Clock>);
    (parts.log, parts.memory) = (log, memory.clone());
    let bus = Bus::with_parts(config, parts).unwrap();
    let (log, members, publishers) = (None, Vec::new(), Vec::new());
    let mut scene = Scene { bus, log, document: document("doc"), members, publishers, published: 0 };
    for speed in [1000, 0, 0] {
        scene.join(speed).await;
    }
    while scene.publish_now().await {}
    (scene, clock)
}

#[tokio::test(start_paused = true)]
async fn readers_that_never_read_slow_a_document_and_never_stop_it() {
    for has_log in [false, true] {
        let (mut scene, clock) = held_up(has_log, 100).await;
        let mut publishing: VecDeque<_> = scene.publish_at_once(1000).await.into();
        let mut per_second = Vec::new();
        for second in 0..3 {
            per_second.push(0);
            for _ in 0..4 {
                clock.pass(Duration::from_millis(250)).await;
                scene.members[0].read();
                while publishing.front().is_some_and(JoinHandle::is_finished) {
                    publishing.pop_front().unwrap().await.unwrap().unwrap();
                    per_second[second] += 1;
                }
            }
        }
        assert_eq!(per_second, [100; 3]);
        assert!(!scene.members[0].has_lagged);
        for waiting in publishing {
            waiting.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_below_the_least_rate_does_not_notice_readers_that_never_read() {
    for has_log in [false, true] {
        let (mut scene, clock) = held_up(has_log, 100).await;
        for _ in 0..KEPT {
            clock.clock.advance(Duration::from_millis(10));
            assert!(scene.publish_now().await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_authors_of_large_drafts_do_not_hold_up_another_author() {
    for has_log in [false, true] {
        let (mut scene, clock) = held_up(has_log, 100).await;
        let large = |author: usize| {
            let actor = Actor::User(UserId::new(format!("large-{author}")).unwrap());
            let payload = Payload::json(&"x".repeat(64 * 1024)).unwrap();
            let kind = relay_events::kind("x-note").unwrap();
            let draft = Draft::new(scene.document.clone(), kind, payload).actor(actor);
            let (bus, draft) = (scene.bus.clone(), relay_events::check(draft).unwrap());
            tokio::spawn(async move { bus.publish(draft).await })
        };
        let mut flood: Vec<_> = (0..40).map(large).collect();
        settle().await;
        for number in 0..20 {
            let (bus, draft) = (scene.bus.clone(), note(&scene.document, number));
            let ada = tokio::spawn(async move { bus.publish(draft).await });
            settle().await;
            for _ in 0..4 {
                clock.pass(Duration::from_millis(250)).await;
                scene.members[0].read();
                for (author, waiting) in flood.iter_mut().enumerate() {
                    if waiting.is_finished() {
                        *waiting = large(author);
                    }
                }
                settle().await;
            }
            assert!(ada.is_finished(), "draft {number} waits for more than a second");
            ada.await.unwrap().unwrap();
        }
        for waiting in flood {
            waiting.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_takes_nothing_of_the_least_rate() {
    for has_log in [false, true] {
        let (mut scene, clock) = held_up(has_log, 100).await;
        clock.pass(Duration::from_secs(10)).await;
        let id = EventId::new();
        for number in 0..200 {
            let ack = scene.bus.publish(note(&scene.document, 7).id(id)).await.unwrap();
            assert_eq!(ack.duplicate, number > 0);
        }
        assert!(scene.publish_now().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_draft_that_is_refused_for_memory_takes_nothing_of_the_least_rate() {
    let memory = MemoryBudget::default();
    let (mut scene, clock) = held_up_in(&memory, true, 100).await;
    clock.pass(Duration::from_secs(10)).await;
    let full = memory.total().charge(MemoryPurpose::Requests, memory.total().limit());
    for number in 0..200 {
        let refused = scene.bus.publish(note(&scene.document, number)).await;
        assert!(matches!(refused, Err(PublishError::Memory(_))), "{refused:?}");
    }
    drop(full);
    assert!(scene.publish_now().await);
}

#[tokio::test(start_paused = true)]
async fn one_of_the_drafts_that_wait_looks_at_the_clock_for_all() {
    for has_log in [false, true] {
        let (scene, clock) = held_up(has_log, 1).await;
        let publishing = scene.publish_at_once(400).await;
        let before = clock.reads.load(Ordering::Relaxed);
        clock.pass(Duration::from_millis(250)).await;
        clock.pass(Duration::from_millis(250)).await;
        let reads = clock.reads.load(Ordering::Relaxed) - before;
        assert!(reads < 20, "{reads}");
        for waiting in publishing {
            waiting.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_document_that_keeps_few_events_is_published_in_while_somebody_follows() {
    for (has_log, kept) in [(false, 1), (false, 2), (true, 1), (true, 2), (true, 3)] {
        let mut few = small();
        few.retention.max_events = kept;
        let bus = if has_log { over(MemoryLog::new(), few) } else { in_memory(few) };
        let document = document("doc");
        let start = StartPosition::After { epoch: None, seq: Seq::ZERO };
        let joined = bus.subscribe(&document, start, Filter::all(), LagPolicy::Refill).await;
        let (_, mut events) = joined.unwrap();
        assert!(events.next().now_or_never().is_none());
        for number in 0..10 {
            bus.publish(note(&document, number)).await.unwrap();
            assert_eq!(events.next().await.unwrap().unwrap().seq, Some(Seq::new(number + 1)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_never_reads_holds_up_no_publisher() {
    for has_log in [false, true] {
        let scene = Scene::new(has_log);
        let live =
            scene.bus.subscribe(&scene.document, StartPosition::Live, Filter::all(), LagPolicy::Refill);
        let (_, mut unread) = live.await.unwrap();
        for number in 0..2 * KEPT {
            scene.bus.publish(note(&scene.document, number)).await.unwrap();
        }
        assert_eq!(scene.bus.stats().drafts_waited, 0);
        // From its first read on it is one of the readers, and it is behind. Without a log it ends, and is none any more.
        _ = unread.next().now_or_never();
        assert_eq!(scene.bus.publish(note(&scene.document, 0)).await.is_err(), has_log);
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_last_reader_leaves_all_drafts_that_wait_for_it_are_taken() {
    for has_log in [false, true] {
        let mut scene = Scene::new(has_log);
        scene.join(1).await;
        let publishing = scene.publish_at_once(2 * KEPT).await;
        assert!(scene.bus.stats().drafts_waited > 200);
        scene.members.clear();
        for one in publishing {
            one.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_logged_draft_does_not_wait_for_readers_that_never_get_it() {
    let mut scene = Scene::new(true);
    scene.join(10).await;
    scene.add_publisher(500);
    scene.step().await;
    scene.members[0].speed = 0;
    for _ in 0..100 {
        scene.step().await;
    }
    assert!(scene.bus.stats().drafts_waited > 0);
    let started = SessionStarted { started_at: Timestamp::UNIX_EPOCH };
    let draft = |actor: Actor| server_draft(scene.document.clone(), &started).unwrap().actor(actor);
    let system = scene.bus.publish(draft(Actor::System));
    let before = scene.bus.publish(note(&scene.document, 0).actor(Actor::System));
    let after = scene.bus.publish(draft(Actor::System));
    let (mut system, mut before, mut after) = (Box::pin(system), Box::pin(before), Box::pin(after));
    assert!(system.as_mut().now_or_never().is_none(), "the log has not answered yet");
    assert!(before.as_mut().now_or_never().is_none());
    assert!(after.as_mut().now_or_never().is_none());
    let offset = system.await.unwrap().offset;
    settle().await;
    assert!(after.as_mut().now_or_never().is_none(), "it comes after an earlier draft of its actor");
    scene.members[0].speed = 1000;
    scene.members[0].read();
    let (before, after) = tokio::join!(before, after);
    let (before, after) = (before.unwrap().offset, after.unwrap().offset);
    assert!(offset < before && before < after, "{offset:?} {before:?} {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_gives_up_while_it_waits_leaves_no_event() {
    for has_log in [false, true] {
        let mut scene = Scene::new(has_log);
        scene.join(1000).await;
        loop {
            let mut publishing = Box::pin(scene.bus.publish(note(&scene.document, 1)));
            if publishing.as_mut().now_or_never().is_some() {
                continue;
            }
            settle().await;
            if publishing.as_mut().now_or_never().is_none() {
                // Dropped here.
                break;
            }
        }
        scene.members[0].read();
        settle().await;
        let before = scene.members[0].received;
        scene.bus.publish(note(&scene.document, 2)).await.unwrap();
        scene.members[0].read();
        assert_eq!(scene.members[0].received, before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_document_that_stops_answers_the_drafts_that_wait() {
    for has_log in [false, true] {
        let mut scene = Scene::new(has_log);
        scene.join(1).await;
        let publishing = scene.publish_at_once(2 * KEPT).await;
        assert!(scene.bus.shutdown(Duration::from_secs(1)).await.complete);
        let mut closed = 0;
        for one in publishing {
            match one.await.unwrap() {
                Ok(_) => {}
                Err(PublishError::Closed) => closed += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(closed > 0);
    }
}

#[test]
fn the_drafts_of_an_actor_keep_their_order_while_they_wait() {
    for has_log in [false, true] {
        run(async {
            let mut scene = Scene::new(has_log);
            scene.join(7).await;
            scene.add_publisher(50);
            for _ in 0..100 {
                scene.step().await;
            }
            let start = StartPosition::After { epoch: None, seq: Seq::new(scene.members[0].received) };
            let joined = scene.bus.subscribe(&scene.document, start, Filter::all(), LagPolicy::Refill).await;
            let (ack, mut events) = joined.unwrap();
            let mut expected = ack.position.get();
            while let Some(Some(Ok(event))) = events.next().now_or_never() {
                assert_eq!(number(&event), expected);
                expected += 1;
            }
            assert!(expected > ack.position.get());
        });
    }
}
