//! The queues of a route beside a plain model of them.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use relay_core::{Epoch, Seq};

use super::*;
use crate::test_support::note;

/// The documents; an offset's remainder is its document.
const DOCUMENTS: u64 = 3;

#[derive(Debug, Clone)]
enum Step {
    Insert(u64),
    /// Up to `most` events before `end`.
    Take {
        most: usize,
        end: u64,
    },
    /// The target turns out to be busy.
    TakeAndPutBack,
    /// An attempt ends, and the events that `fails` tells of are tried again.
    End {
        attempt: usize,
        fails: Vec<bool>,
        delay: u64,
    },
    Rotate,
    Wait(u64),
    TakeIdle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fails = proptest::collection::vec(any::<bool>(), 4);
    let step = prop_oneof![
        8 => (0..20_u64).prop_map(Step::Insert),
        4 => (1..4_usize, 0..25_u64).prop_map(|(most, end)| Step::Take { most, end }),
        1 => Just(Step::TakeAndPutBack),
        4 => (any::<usize>(), fails, 0..3_u64).prop_map(|(attempt, fails, delay)| Step::End { attempt, fails, delay }),
        1 => Just(Step::Rotate),
        2 => (0..3_u64).prop_map(Step::Wait),
        1 => Just(Step::TakeIdle),
    ];
    proptest::collection::vec(step, 1..80)
}

/// One document's events, and the numbers of their failures.
#[derive(Debug, Default)]
struct Document {
    in_flight: BTreeMap<u64, u32>,
    waiting: BTreeMap<u64, u32>,
    /// The moment until which the document is delayed, and the first of the events that failed.
    delayed: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Model {
    documents: BTreeMap<u64, Document>,
    /// The documents whose events may be taken, in the order in which they became ready.
    ready: VecDeque<u64>,
    now: u64,
}

impl Model {
    fn wake(&mut self) {
        let due = self.documents.iter().filter_map(|(name, document)| Some((document.delayed?, *name)));
        let mut due: Vec<_> = due.filter(|((at, _), _)| *at <= self.now).collect();
        due.sort_unstable();
        for (_, name) in due {
            self.documents.get_mut(&name).unwrap().delayed = None;
            self.ready.push_back(name);
        }
    }

    fn insert(&mut self, offset: u64) -> bool {
        let document = self.documents.entry(offset % DOCUMENTS).or_default();
        let is_new = document.in_flight.is_empty() && document.waiting.is_empty();
        if document.in_flight.contains_key(&offset) || document.waiting.contains_key(&offset) {
            return false;
        }
        document.waiting.insert(offset, 0);
        if is_new {
            self.ready.push_back(offset % DOCUMENTS);
        }
        true
    }

    /// The document that is taken from, and its offsets.
    fn take(&mut self, most: usize, end: u64) -> Option<(u64, Vec<u64>)> {
        let name = self.ready.pop_front()?;
        let document = self.documents.get_mut(&name).unwrap();
        let untried =
            document.waiting.iter().take(most).take_while(|(offset, tried)| **tried == 0 && **offset < end);
        let count = untried.count().max(1);
        for _ in 0..count {
            let (offset, tried) = document.waiting.pop_first().unwrap();
            document.in_flight.insert(offset, tried);
        }
        Some((name, document.in_flight.keys().copied().collect()))
    }

    fn put_back(&mut self, name: u64) {
        let document = self.documents.get_mut(&name).unwrap();
        document.waiting.append(&mut document.in_flight);
        self.ready.push_front(name);
    }

    /// Returns the offsets of the events that are done.
    fn end(&mut self, name: u64, retried: &[u64], delay: u64) -> Vec<u64> {
        let document = self.documents.get_mut(&name).unwrap();
        let (again, done): (Vec<_>, Vec<_>) = std::mem::take(&mut document.in_flight)
            .into_iter()
            .partition(|(offset, _)| retried.contains(offset));
        document.waiting.extend(again.iter().map(|(offset, tried)| (*offset, tried + 1)));
        if let Some((first, _)) = again.first() {
            document.delayed = Some((self.now + delay, *first));
        } else if !document.waiting.is_empty() {
            self.ready.push_back(name);
        }
        done.into_iter().map(|(offset, _)| offset).collect()
    }

    fn take_idle(&mut self) -> Vec<u64> {
        let idle = self.documents.values_mut().filter(|document| document.in_flight.is_empty());
        let taken = idle.flat_map(|document| {
            document.delayed = None;
            std::mem::take(&mut document.waiting).into_keys()
        });
        let mut taken: Vec<_> = taken.collect();
        taken.sort_unstable();
        self.ready.clear();
        taken
    }

    fn len(&self) -> usize {
        self.documents.values().map(|document| document.in_flight.len() + document.waiting.len()).sum()
    }
}

fn key(document: u64) -> PartitionKey {
    PartitionKey::Document(note(&format!("d{document}"), 1).document)
}

fn queued(offset: u64, tried: u32) -> Arc<QueuedEvent> {
    let event = note(&format!("d{}", offset % DOCUMENTS), 1).into_event(
        Epoch::from_u64(1),
        Some(Seq::FIRST),
        Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(offset)),
    );
    let mut queued = QueuedEvent::new(&event, 1);
    queued.tried = tried;
    Arc::new(queued)
}

fn insert(queues: &mut PartitionQueues, offset: u64) -> bool {
    let entry = QueueEntry { offset: Offset::new(offset), queued: queued(offset, 0), event: None };
    queues.insert(key(offset % DOCUMENTS), entry)
}

fn offsets(entries: &[QueueEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.offset.get()).collect()
}

fn at(moment: u64) -> Monotonic {
    Monotonic::from_elapsed(Duration::from_secs(moment))
}

#[derive(Default)]
struct Run {
    queues: PartitionQueues,
    model: Model,
    /// The attempts under way, by document.
    attempts: Vec<(u64, Dequeued)>,
}

impl Run {
    fn take(&mut self, step: Step) {
        let Self { queues, model, attempts } = self;
        match step {
            Step::Insert(offset) => assert_eq!(insert(queues, offset), model.insert(offset)),
            Step::Take { most, end } => {
                let expected = model.take(most, end);
                let taken = queues.take(most, Offset::new(end));
                let known = taken.as_ref().map(|taken| (taken.partition.clone(), offsets(&taken.entries)));
                assert_eq!(known, expected.as_ref().map(|(name, offsets)| (key(*name), offsets.clone())));
                attempts.extend(expected.into_iter().map(|(name, _)| name).zip(taken));
            }
            Step::TakeAndPutBack => {
                if let Some((name, _)) = model.take(1, u64::MAX) {
                    model.put_back(name);
                    let dequeued = queues.take(1, Offset::new(u64::MAX)).unwrap();
                    queues.put_back(dequeued);
                }
            }
            Step::End { attempt, fails, delay } => {
                if attempts.is_empty() {
                    return;
                }
                let (name, dequeued) = attempts.swap_remove(attempt % attempts.len());
                let entries = dequeued.entries.iter().zip(fails).filter(|(_, fails)| *fails);
                let retries: Vec<_> = entries
                    .map(|(entry, _)| (entry.offset, queued(entry.offset.get(), entry.queued.tried + 1)))
                    .collect();
                let again: Vec<_> = retries.iter().map(|(offset, _)| offset.get()).collect();
                let done = queues.end(&dequeued.partition, retries, at(model.now + delay));
                assert_eq!(offsets(&done), model.end(name, &again, delay));
            }
            Step::Rotate => {
                queues.refuse();
                queues.begin_round();
                if !model.ready.is_empty() {
                    model.ready.rotate_left(1);
                }
            }
            Step::Wait(time) => {
                model.now += time;
                model.wake();
                queues.wake(at(model.now));
            }
            Step::TakeIdle => {
                let mut taken = offsets(&queues.take_idle());
                taken.sort_unstable();
                assert_eq!(taken, model.take_idle());
            }
        }
    }

    fn check(&self) {
        let Self { queues, model, .. } = self;
        assert_eq!((queues.len(), queues.unseen()), (model.len(), model.ready.len()));
        let first = model
            .ready
            .front()
            .map(|name| (key(*name), model.documents[name].waiting.keys().next().copied()));
        let peeked = queues.peek().map(|(key, entry)| (key.clone(), Some(entry.offset.get())));
        assert_eq!(peeked, first);
        let next_wake = model.documents.values().filter_map(|document| document.delayed).min();
        assert_eq!(queues.next_wake(), next_wake.map(|(moment, _)| at(moment)));
        let mut first_times = Vec::new();
        for (name, document) in &model.documents {
            let first = document.in_flight.keys().next().or(document.waiting.keys().next()).copied();
            assert_eq!(queues.first_offset(&key(*name)), first.map(Offset::new));
            first_times.extend(first);
        }
        let oldest = first_times.into_iter().min().map(|offset| queued(offset, 0).time);
        assert_eq!(queues.oldest(), oldest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn the_queues_do_what_the_model_says(steps in steps()) {
        let mut run = Run::default();
        for step in steps {
            run.take(step);
            run.check();
        }
    }
}
