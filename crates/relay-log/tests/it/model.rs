//! After any sequence of operations, the log on the disk equals the log in memory.

use std::path::Path;

use proptest::prelude::*;
use relay_core::testing::MemoryLog;
use relay_core::{DocumentId, Event, EventLog, Head, LogError, Offset, ReadLimit, Seq, Timestamp};
use relay_log::EmbeddedLog;

use crate::common::{EVERYTHING, document, event, logged, open, text};

#[derive(Debug, Clone)]
enum Step {
    /// `logged` has a bit for each event of the batch that is logged.
    Append {
        document: u8,
        events: u8,
        skip: u8,
        logged: u8,
    },
    Trim {
        document: u8,
        through: u8,
    },
    ReadDocument {
        document: u8,
        after: u8,
        events: usize,
    },
    Read {
        after: u8,
        events: usize,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let document = 0..4u8;
    // One append in ten leaves a gap and is refused.
    let skip = prop_oneof![9 => Just(0u8), 1 => 1..3u8];
    let step = prop_oneof![
        8 => (document.clone(), 0..6u8, skip, any::<u8>())
            .prop_map(|(document, events, skip, logged)| Step::Append { document, events, skip, logged }),
        2 => (document.clone(), 0..30u8).prop_map(|(document, through)| Step::Trim { document, through }),
        4 => (document, 0..30u8, 1..9usize).prop_map(|(document, after, events)| Step::ReadDocument { document, after, events }),
        2 => (0..80u8, 1..9usize).prop_map(|(after, events)| Step::Read { after, events }),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The part of an event that must be the same in both logs. Epochs differ between any two logs.
type Compared = (DocumentId, Option<Seq>, Option<Offset>, String);

fn compared(read: Result<Vec<Event>, LogError>) -> Result<Vec<Compared>, String> {
    read.map_err(|error| error.to_string())
        .map(|events| events.iter().map(|e| (e.document.clone(), e.seq, e.offset, text(e))).collect())
}

fn positions(head: Head) -> (Seq, Seq) {
    (head.first, head.last)
}

fn id(document_number: u8) -> DocumentId {
    document(&format!("d{document_number}"))
}

async fn append(
    log: &dyn EventLog,
    number: u8,
    events: u8,
    skip: u8,
    logged_bits: u8,
) -> Result<Vec<Offset>, bool> {
    let id = id(number);
    let head = log.head(&id).await.unwrap();
    let mut seq = Seq::new(head.last.get() + u64::from(skip));
    // Logged events of any earlier time would be too old to be kept.
    let batch: Vec<Event> = (0..events)
        .map(|n| {
            if logged_bits >> n & 1 == 1 {
                return logged(&id, head.epoch, &format!("{n} after {seq} of {id}"), Timestamp::MAX);
            }
            seq = seq.next();
            event(&id, head.epoch, seq, &format!("{seq} of {id}"), Timestamp::UNIX_EPOCH)
        })
        .collect();
    log.append(&id, &batch).await.map_err(|error| matches!(error, LogError::Conflict { .. }))
}

async fn run(directory: &Path, steps: Vec<Step>) {
    let model = MemoryLog::new();
    let mut log: EmbeddedLog = open(directory);
    let epoch = log.head(&id(0)).await.unwrap().epoch;
    for step in steps {
        match step {
            Step::Append { document, events, skip, logged } => {
                let (expected, got) = (
                    append(&model, document, events, skip, logged).await,
                    append(&log, document, events, skip, logged).await,
                );
                assert_eq!(got, expected);
            }
            Step::Trim { document, through } => {
                let through = Seq::new(through.into());
                let expected = model.trim(&id(document), through).await.unwrap();
                assert_eq!(positions(log.trim(&id(document), through).await.unwrap()), positions(expected));
            }
            Step::ReadDocument { document, after, events } => {
                let (after, limit) = (Seq::new(after.into()), ReadLimit { events, bytes: usize::MAX });
                let expected = compared(model.read_document(&id(document), after, limit).await);
                assert_eq!(compared(log.read_document(&id(document), after, limit).await), expected);
            }
            Step::Read { after, events } => {
                let (after, limit) = (Offset::new(after.into()), ReadLimit { events, bytes: usize::MAX });
                assert_eq!(compared(log.read(after, limit).await), compared(model.read(after, limit).await));
            }
            Step::Reopen => {
                log.close().await.unwrap();
                log = open(directory);
            }
        }
    }
    for number in 0..4 {
        let head = log.head(&id(number)).await.unwrap();
        assert_eq!(head.epoch, epoch);
        assert_eq!(positions(head), positions(model.head(&id(number)).await.unwrap()));
    }
    assert_eq!(
        compared(log.read(Offset::ZERO, EVERYTHING).await),
        compared(model.read(Offset::ZERO, EVERYTHING).await)
    );
    log.close().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_log_on_the_disk_is_the_log_in_memory(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        runtime.block_on(run(directory.path(), steps));
    }
}
