//! Pages of the log for the readers that follow it by offset.

use std::sync::Arc;

use relay_core::{Event, EventLog, LogError, Offset, ReadLimit};

/// Events of the log in order, each with its offset.
pub(crate) type LogPage = Vec<(Offset, Arc<Event>)>;

/// Reads the events after `after`.
///
/// # Errors
/// [`LogError::Corrupt`] if the log returns an event without its offset; otherwise as [`EventLog::read`].
pub(crate) async fn read_page(
    log: &dyn EventLog,
    after: Offset,
    limit: ReadLimit,
) -> Result<LogPage, LogError> {
    let page = log.read(after, limit).await?;
    page.into_iter()
        .map(|event| match event.offset {
            Some(offset) => Ok((offset, Arc::new(event))),
            None => Err(missing_offset(&event)),
        })
        .collect()
}

fn missing_offset(event: &Event) -> LogError {
    let seq = event.seq.map_or_else(|| "none".to_owned(), |seq| seq.to_string());
    let detail = format!("an event of document `{}`, seq {seq}, has no offset", event.document);
    LogError::Corrupt { detail }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

    use relay_core::testing::MemoryLog;
    use relay_core::{DocumentId, Draft, Payload, Seq, Timestamp};

    use super::*;

    #[tokio::test]
    async fn a_page_has_every_event_with_its_offset_or_is_an_error_that_names_the_event() {
        let log = MemoryLog::new();
        let document = DocumentId::new("notes").unwrap();
        let epoch = log.head(&document).await.unwrap().epoch;
        let event = |seq| {
            let payload = Payload::json(&seq).unwrap();
            let draft = Draft::new(document.clone(), relay_events::kind("x-note").unwrap(), payload);
            draft.into_event(epoch, Some(Seq::new(seq)), Timestamp::UNIX_EPOCH)
        };
        log.append(&document, &[event(1), event(2), event(3)]).await.unwrap();
        log.omit_offset_once(Offset::new(2));

        let error = read_page(&log, Offset::ZERO, ReadLimit::default()).await.unwrap_err();
        let message = "the log is corrupt: an event of document `notes`, seq 2, has no offset";
        assert_eq!(error.to_string(), message);

        let page = read_page(&log, Offset::ZERO, ReadLimit::default()).await.unwrap();
        let offsets: Vec<_> = page.iter().map(|(offset, _)| offset.get()).collect();
        assert_eq!(offsets, [1, 2, 3]);
    }
}
