//! Helpers that the tests of the log share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use relay_core::testing::ManualClock;
use relay_core::{
    Clock, DeliveryClass, DocumentId, Draft, Epoch, Event, EventLog, Kind, Offset, Payload, ReadLimit, Seq,
    SystemClock, Timestamp,
};
use relay_log::{EmbeddedLog, LogConfig, OpenError, RecoveryReport};

pub(crate) const EVERYTHING: ReadLimit = ReadLimit { events: usize::MAX, bytes: usize::MAX };

pub(crate) fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap()
}

/// Returns an event that follows the document's head.
pub(crate) async fn next_event(log: &dyn EventLog, document: &DocumentId, text: &str) -> Event {
    let head = log.head(document).await.unwrap();
    event(document, head.epoch, head.last.next(), text, start())
}

pub(crate) fn event(document: &DocumentId, epoch: Epoch, seq: Seq, text: &str, time: Timestamp) -> Event {
    let kind = Kind::new("x-test", DeliveryClass::Sequenced).unwrap();
    let payload = Payload::json(&text).unwrap();
    Draft::new(document.clone(), kind, payload).into_event(epoch, Some(seq), time)
}

/// Returns a logged event of `document`.
pub(crate) fn logged(document: &DocumentId, epoch: Epoch, text: &str, time: Timestamp) -> Event {
    let kind = Kind::new("x-test-logged", DeliveryClass::Logged).unwrap();
    let payload = Payload::json(&text).unwrap();
    Draft::new(document.clone(), kind, payload).into_event(epoch, None, time)
}

/// Returns the wall time of a new manual clock.
fn start() -> Timestamp {
    ManualClock::new().wall()
}

/// Appends one event with `text` and returns its seq and offset.
pub(crate) async fn append(log: &dyn EventLog, name: &str, text: &str) -> (Seq, Offset) {
    let document = document(name);
    let event = next_event(log, &document, text).await;
    let offset = log.append(&document, std::slice::from_ref(&event)).await.unwrap();
    (event.seq.unwrap(), offset[0])
}

pub(crate) async fn texts(log: &dyn EventLog, name: &str) -> Vec<String> {
    let document = document(name);
    let first = log.head(&document).await.unwrap().first;
    let after = Seq::new(first.get() - 1);
    log.read_document(&document, after, EVERYTHING).await.unwrap().iter().map(text).collect()
}

pub(crate) fn text(event: &Event) -> String {
    let Payload::Json(json) = &event.payload else { panic!("a test event is JSON") };
    serde_json::from_str(json.as_str()).unwrap()
}

pub(crate) fn try_open(directory: &Path) -> Result<(EmbeddedLog, RecoveryReport), OpenError> {
    EmbeddedLog::open(LogConfig::new(directory), Arc::new(SystemClock::new()))
}

pub(crate) fn open(directory: &Path) -> EmbeddedLog {
    try_open(directory).unwrap().0
}

/// Returns the journal that the engine writes to.
pub(crate) fn active_journal(directory: &Path) -> PathBuf {
    let number = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let entries = fs::read_dir(directory.join("engine")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "jnl")).max_by_key(number).unwrap()
}

/// Cuts off the zeros that the engine allocates in advance, so that copies are small.
pub(crate) fn shrink(journal: &Path) {
    let bytes = fs::read(journal).unwrap();
    let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    fs::OpenOptions::new().write(true).open(journal).unwrap().set_len(used as u64).unwrap();
}

pub(crate) fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_into(from, to.path());
    to
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_into(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Returns every file below a directory with its content, to show that nothing changed.
pub(crate) fn content(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(content(&path));
        } else {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}
