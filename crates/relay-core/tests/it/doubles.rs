//! The implementations that this crate has itself, held to the suites.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use relay_core::testing::{
    AppendFault, DAMAGED, FnClock, ManualClock, ManualOwnership, MemoryLog, clock_suite, damaged_log_suite,
    exclusive_ownership_suite, fill_to_be_damaged, hold_suite, log_suite, ownership_loss_suite,
    ownership_suite,
};
use relay_core::{
    Clock, DocumentId, LogError, NodeId, NotOwner, Ownership, OwnershipError, Seq, SoleOwner, SystemClock,
    Tenure, Timestamp,
};

#[tokio::test]
async fn the_log_in_memory_passes_the_suite() {
    let log = MemoryLog::new();
    let refuse_next = |batch| {
        log.fail_next_append(AppendFault::Error(LogError::Overloaded { waited: Duration::ZERO }));
        batch
    };
    log_suite(&log, refuse_next).await;
}

#[tokio::test]
async fn the_log_in_memory_passes_the_suite_of_holds() {
    let log = MemoryLog::new();
    hold_suite(&log, async || log.apply_retention(10)).await;
}

#[tokio::test]
async fn the_log_in_memory_passes_the_suite_of_damage() {
    let log = MemoryLog::new();
    let document = fill_to_be_damaged(&log).await;
    for seq in DAMAGED {
        log.damage(&document, Seq::new(seq));
    }
    damaged_log_suite(&log).await;
}

#[test]
fn the_clocks_pass_the_suite() {
    clock_suite(&SystemClock::new());
    let started = Instant::now();
    clock_suite(&FnClock::new(move || started.elapsed()));
    let clock = ManualClock::new();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..100_000).for_each(|_| clock.advance(Duration::from_micros(1))));
        clock_suite(&clock);
    });
}

#[test]
fn a_clock_that_is_advanced_beyond_its_end_stays_there() {
    let clock = ManualClock::new();
    clock.advance(Duration::MAX);
    let end = clock.now();
    assert_eq!(end.wall, Timestamp::MAX);
    clock.advance(Duration::MAX);
    assert_eq!(clock.now(), end);
}

#[tokio::test]
async fn a_process_that_is_alone_passes_the_suite_of_owners() {
    ownership_suite(&SoleOwner).await;
}

#[tokio::test]
async fn the_ownership_that_a_test_directs_passes_the_suites() {
    let ownership = ManualOwnership::default();
    ownership_suite(&ownership).await;
    let lose = |document: &DocumentId| {
        ownership.take_away(NotOwner::new(document.clone(), None).into());
        ownership.grant();
    };
    ownership_loss_suite(&ownership, lose).await;
    assert_eq!(ownership.undropped(), 0);
}

#[test]
fn an_acquisition_that_is_dropped_while_it_waits_holds_nothing() {
    let ownership = ManualOwnership::default();
    ownership.hold_back();
    let document = DocumentId::new("doc").unwrap();
    let mut acquiring = ownership.acquire(&document);
    assert!(acquiring.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(acquiring);
    ownership.release();
    assert_eq!(ownership.undropped(), 0);
}

/// One of several servers that agree through a table of the owners and their numbers of tenures.
#[derive(Debug, Clone)]
struct Server {
    id: NodeId,
    owners: Arc<Mutex<HashMap<DocumentId, (NodeId, usize)>>>,
}

#[async_trait]
impl Ownership for Server {
    async fn acquire(&self, document: &DocumentId) -> Result<Box<dyn Tenure>, OwnershipError> {
        // As if another machine answered.
        tokio::task::yield_now().await;
        let mut owners = self.owners.lock();
        let (owner, tenures) = owners.entry(document.clone()).or_insert((self.id, 0));
        if *owner != self.id {
            return Err(NotOwner::new(document.clone(), Some(*owner)).into());
        }
        *tenures += 1;
        Ok(Box::new(ServerTenure { server: self.clone(), document: document.clone() }))
    }
}

#[derive(Debug)]
struct ServerTenure {
    server: Server,
    document: DocumentId,
}

impl Tenure for ServerTenure {
    fn is_held(&self) -> bool {
        self.server.owners.lock().get(&self.document).is_some_and(|(owner, _)| *owner == self.server.id)
    }
}

impl Drop for ServerTenure {
    fn drop(&mut self) {
        let mut owners = self.server.owners.lock();
        if let Some((_, tenures)) = owners.get_mut(&self.document) {
            *tenures -= 1;
            if *tenures == 0 {
                owners.remove(&self.document);
            }
        }
    }
}

#[tokio::test]
async fn two_servers_that_agree_pass_the_suites() {
    let one = Server { id: NodeId::random(), owners: Arc::default() };
    let other = Server { id: NodeId::random(), ..one.clone() };
    ownership_suite(&one).await;
    exclusive_ownership_suite(&one, &other).await;
    assert!(one.owners.lock().is_empty(), "every tenure was given back");
}
