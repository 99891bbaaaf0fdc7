//! Recorded editing histories, read into one order.
//!
//! Both formats of the public editing-traces collection are read. A sequential history is in order already. In a
//! concurrent one the positions of a transaction count the text that its author saw; [`super::linear`] rewrites them so
//! that transactions can be applied one after another.

use std::borrow::Cow;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};

use super::linear::{self, Transaction};
use super::text::GapText;

/// A position, the number of deleted code points, and the inserted text, as in traces and on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TracePatch<'a>(
    pub(crate) usize,
    pub(crate) usize,
    #[serde(borrow)] pub(crate) Cow<'a, str>,
);

/// The payload of `document.edited`: patches that are applied one after another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edit<'a> {
    #[serde(borrow)]
    pub(crate) patches: Vec<TracePatch<'a>>,
}

/// A history to be played: the edits of an initially empty text, and the final text.
pub(crate) struct Trace {
    pub(crate) edits: Vec<Edit<'static>>,
    pub(crate) end: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recorded {
    #[serde(default)]
    kind: HistoryKind,
    #[serde(default)]
    start_content: String,
    end_content: String,
    txns: Vec<RecordedTransaction>,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum HistoryKind {
    #[default]
    Sequential,
    Concurrent,
}

#[derive(Deserialize)]
struct RecordedTransaction {
    #[serde(default)]
    parents: Vec<usize>,
    #[serde(default)]
    agent: usize,
    patches: Vec<(usize, usize, String)>,
}

impl Trace {
    /// Reads a file, JSON or gzipped JSON; with a limit, its first edits alone.
    ///
    /// # Errors
    /// When the file is missing or not a trace, or when its edits do not lead to the text that it names.
    pub(crate) fn read(file: &Path, limit: Option<usize>) -> anyhow::Result<Self> {
        let bytes = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let trace = Self::parse(&bytes, limit);
        trace.with_context(|| format!("{} is not a usable trace", file.display()))
    }

    fn parse(bytes: &[u8], limit: Option<usize>) -> anyhow::Result<Self> {
        let mut unzipped = Vec::new();
        let json = if bytes.starts_with(&[0x1f, 0x8b]) {
            GzDecoder::new(bytes).read_to_end(&mut unzipped)?;
            &unzipped
        } else {
            bytes
        };
        let recorded: Recorded = serde_json::from_slice(json)?;
        let mut edits = Vec::with_capacity(recorded.txns.len() + 1);
        if !recorded.start_content.is_empty() {
            edits.push(Edit { patches: vec![TracePatch(0, 0, recorded.start_content.into())] });
        }
        let transactions = recorded.txns.into_iter().map(|transaction| Transaction {
            parents: transaction.parents,
            agent: transaction.agent,
            patches: transaction
                .patches
                .into_iter()
                .map(|(at, gone, new)| TracePatch(at, gone, new.into()))
                .collect(),
        });
        if recorded.kind == HistoryKind::Concurrent {
            edits.extend(linear::linearise(transactions)?);
        } else {
            edits.extend(transactions.map(|Transaction { patches, .. }| Edit { patches }));
        }

        let mut text = GapText::default();
        let played = limit.unwrap_or(edits.len()).min(edits.len());
        for (index, edit) in edits.iter().enumerate() {
            if index == played {
                break;
            }
            for patch in &edit.patches {
                text.apply(patch).with_context(|| format!("transaction {index}"))?;
            }
        }
        if played == edits.len() && !text.is(&recorded.end_content) {
            bail!("its edits do not lead to its `endContent`");
        }
        if played == 0 {
            bail!("there is no edit to play");
        }
        edits.truncate(played);
        Ok(Self { edits, end: String::from(&text) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::Trace;

    const SEQUENTIAL: &str = r#"{"startContent": "", "endContent": "hé!", "txns": [
        {"time": "2020-01-01T00:00:00Z", "patches": [[0, 0, "h"]]},
        {"time": "2020-01-01T00:00:01Z", "patches": [[1, 0, "e!"], [1, 1, "é"]]}]}"#;

    #[test]
    fn a_sequential_trace_is_played_as_recorded() {
        let trace = Trace::parse(SEQUENTIAL.as_bytes(), None).unwrap();
        assert_eq!(trace.edits.len(), 2);
        assert_eq!(trace.end, "hé!");
        assert_eq!(serde_json::to_string(&trace.edits[1]).unwrap(), r#"{"patches":[[1,0,"e!"],[1,1,"é"]]}"#);
    }

    #[test]
    fn a_gzipped_trace_is_the_same_trace() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(SEQUENTIAL.as_bytes()).unwrap();
        let trace = Trace::parse(&encoder.finish().unwrap(), None).unwrap();
        assert_eq!(trace.end, "hé!");
    }

    #[test]
    fn the_first_edits_alone_lead_to_their_own_text() {
        let trace = Trace::parse(SEQUENTIAL.as_bytes(), Some(1)).unwrap();
        assert_eq!((trace.edits.len(), trace.end.as_str()), (1, "h"));
    }

    #[test]
    fn a_start_content_is_the_first_edit() {
        let json = r#"{"startContent": "ab", "endContent": "b", "txns": [{"patches": [[0, 1, ""]]}]}"#;
        let trace = Trace::parse(json.as_bytes(), None).unwrap();
        assert_eq!(trace.edits.len(), 2);
    }

    #[test]
    fn a_trace_that_does_not_lead_to_its_end_is_refused() {
        let wrong = SEQUENTIAL.replace("hé!", "other");
        assert!(Trace::parse(wrong.as_bytes(), None).is_err());
    }

    #[test]
    fn a_file_that_is_not_a_trace_is_refused() {
        for bytes in [&b"{}"[..], b"", b"\x1f\x8b\x08", br#"{"endContent": "", "txns": []}"#] {
            assert!(Trace::parse(bytes, None).is_err());
        }
    }

    #[test]
    fn a_concurrent_trace_is_brought_into_one_order() {
        // Both type into "ab": one at its beginning, the other at its end; a third transaction sees both.
        let json = r#"{"kind": "concurrent", "endContent": "xa-by", "numAgents": 2, "txns": [
            {"parents": [], "numChildren": 2, "agent": 0, "patches": [[0, 0, "ab"]]},
            {"parents": [0], "numChildren": 1, "agent": 0, "patches": [[0, 0, "x"]]},
            {"parents": [0], "numChildren": 1, "agent": 1, "patches": [[2, 0, "y"]]},
            {"parents": [1, 2], "numChildren": 0, "agent": 1, "patches": [[2, 0, "-"]]}]}"#;
        let trace = Trace::parse(json.as_bytes(), None).unwrap();
        assert_eq!(trace.end, "xa-by");
        assert_eq!(serde_json::to_string(&trace.edits[2]).unwrap(), r#"{"patches":[[3,0,"y"]]}"#);
    }
}
