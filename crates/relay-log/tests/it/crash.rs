//! A process that is killed at any moment keeps every event that it acknowledged.
//!
//! The test starts its own binary as a child, which appends and prints each acknowledgement, and kills it. The
//! environment variable `RELAY_CRASH_ROUNDS` sets the number of rounds; the default is 10.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use relay_core::{EventLog, LogError, Offset, Retention, Seq, SystemClock};
use relay_log::{EmbeddedLog, LogConfig, LogDurability};

use crate::common::{EVERYTHING, append, document, next_event, open, text, try_open};

const CHILD: &str = "RELAY_LOG_CRASH_CHILD";
const DOCUMENTS: usize = 4;

/// The child: four writers append without end and print each acknowledgement.
#[test]
fn child() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let mut config = LogConfig::new(directory);
        config.durability = LogDurability::Synced;
        config.retention = Retention { max_events: 1_000_000, ..Retention::default() };
        let (log, _) = EmbeddedLog::open(config, Arc::new(SystemClock::new())).unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for n in 0..DOCUMENTS {
            let log = log.clone();
            writers.spawn(async move {
                let name = format!("d{n}");
                loop {
                    let (seq, offset) = append(&log, &name, &format!("{name} {}", rand_text())).await;
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "acknowledged {n} {seq} {offset}").unwrap();
                    out.flush().unwrap();
                }
            });
        }
        writers.join_next().await;
    });
}

/// Returns a text of random length, so that writes end at any offset of a page.
fn rand_text() -> String {
    let noise = relay_core::Epoch::random().as_u64();
    "x".repeat(usize::try_from(noise % 3000).unwrap())
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_acknowledged() {
    let rounds: u64 = std::env::var("RELAY_CRASH_ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<(usize, u64), u64> = HashMap::new();
    let mut epoch = None;
    let mut torn = 0;
    for round in 0..rounds {
        // The moment counts acknowledgements, not time: 0 kills the child while it opens the log.
        let moment = relay_core::Epoch::random().as_u64() % 200;
        run_and_kill(directory.path(), moment, &mut acknowledged);

        let (log, report) =
            try_open(directory.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        torn += u64::from(report.torn_tail.is_some());
        assert!(!report.new_epoch);
        let now = log.head(&document("d0")).await.unwrap().epoch;
        // A log whose creation was interrupted has acknowledged nothing, so its epoch may change.
        assert!(acknowledged.is_empty() || epoch.is_none_or(|before| before == now), "round {round}");
        epoch = (!acknowledged.is_empty()).then_some(now);
        let mut found = HashMap::new();
        for n in 0..DOCUMENTS {
            let name = format!("d{n}");
            let events = log.read_document(&document(&name), Seq::ZERO, EVERYTHING).await.unwrap();
            for (expected, event) in (1..).zip(&events) {
                assert_eq!(event.seq, Some(Seq::new(expected)), "round {round}: no gap in {name}");
                assert!(text(event).starts_with(&name));
                found.insert((n, expected), event.offset.unwrap().get());
            }
        }
        for (place, offset) in &acknowledged {
            assert_eq!(found.get(place), Some(offset), "round {round}: {place:?} was acknowledged");
        }
        // Readers have seen the events that are found now, so those must stay too.
        acknowledged = found;
        let count = log.read(Offset::ZERO, EVERYTHING).await.unwrap().len();
        assert_eq!(count, acknowledged.len());
        log.close().await.unwrap();
    }
    println!("{rounds} rounds, {} events, {torn} torn writes", acknowledged.len());
}

/// Runs the child until it has acknowledged `moment` events, kills it, and collects its acknowledgements.
fn run_and_kill(directory: &Path, moment: u64, acknowledged: &mut HashMap<(usize, u64), u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = 0;
    if moment == 0 {
        child.kill().unwrap();
    }
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8(line.unwrap()).unwrap();
        let fields: Vec<u64> = match line.split_once("acknowledged ") {
            Some((_, rest)) => rest.split(' ').map_while(|field| field.parse().ok()).collect(),
            None => continue,
        };
        // A line that the kill cut short is no acknowledgement.
        if let [n, seq, offset] = fields[..] {
            acknowledged.insert((usize::try_from(n).unwrap(), seq), offset);
        }
        seen += 1;
        if seen == moment {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
}

/// The child with a full disk: appends until the log fails, then tries every other method.
#[test]
fn child_with_a_full_disk() {
    let Ok(directory) = std::env::var("RELAY_LOG_FULL_DISK_CHILD") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let log = open(Path::new(&directory));
        let id = document("d");
        let mut kept = log.head(&id).await.unwrap().last;
        let failure = loop {
            let event = next_event(&log, &id, &"x".repeat(10_000)).await;
            match log.append(&id, &[event]).await {
                Ok(_) => kept = kept.next(),
                Err(error) => break error,
            }
        };
        println!("acknowledged {kept}");
        assert!(matches!(failure, LogError::Failed { .. }), "{failure}");
        assert!(matches!(log.append(&id, &[]).await, Err(LogError::Failed { .. })));
        assert!(matches!(log.head(&id).await, Err(LogError::Failed { .. })));
        assert!(matches!(log.trim(&id, Seq::FIRST).await, Err(LogError::Failed { .. })));
        assert!(matches!(log.close().await, Err(LogError::Failed { .. })));
        println!("failed as it should");
    });
}

#[tokio::test]
async fn a_log_whose_disk_is_full_fails_until_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    // After the second opening the journal is as long as its content, so a limit on file sizes acts as a full disk.
    for n in 0..2 {
        let log = open(directory.path());
        append(&log, "d", &format!("before {n}")).await;
        log.close().await.unwrap();
    }
    let output = Command::new("bash")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 200; exec \"$0\" --exact crash::child_with_a_full_disk --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("RELAY_LOG_FULL_DISK_CHILD", directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("failed as it should"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let kept =
        said.split_once("acknowledged ").unwrap().1.split('\n').next().unwrap().parse::<u64>().unwrap();
    assert!(kept > 2, "some appends succeeded");

    let (log, _) = try_open(directory.path()).unwrap();
    let head = log.head(&document("d")).await.unwrap();
    assert_eq!(head.last, Seq::new(kept), "what was acknowledged is there, what failed is not");
    append(&log, "d", "after").await;
    log.close().await.unwrap();
}
