//! Reading server-sent events: bytes in, events out.

use anyhow::bail;

/// The most bytes of one event. No Relay server sends a longer one.
const MAX_EVENT_BYTES: usize = 64 * 1024 * 1024;

/// One event of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SseEvent {
    /// The stream's position after this event; the one before it where the event carries none.
    pub(crate) last_id: Option<String>,
    pub(crate) name: String,
    pub(crate) data: String,
}

/// Cuts a stream of bytes, in whatever pieces it comes, into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    message: SseEvent,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes and returns the events that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<SseEvent>> {
        let mut messages = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() + self.message.data.len() >= MAX_EVENT_BYTES {
                    bail!(
                        "the server sent an event of more than {MAX_EVENT_BYTES} bytes; is it a Relay server?"
                    );
                }
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            messages.extend(self.end_of_line(&line)?);
        }
        Ok(messages)
    }

    fn end_of_line(&mut self, line: &[u8]) -> anyhow::Result<Option<SseEvent>> {
        let Ok(line) = std::str::from_utf8(line) else { bail!("the server sent bytes that are not UTF-8") };
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            let message = self.message.clone();
            let whole = std::mem::take(&mut self.has_data);
            self.message = SseEvent { last_id: message.last_id.clone(), ..SseEvent::default() };
            return Ok(whole.then_some(message));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.message.last_id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.message.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            // Comments, and fields that Relay does not use.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let stream = b": hello\n\nid: e:1\nevent: x-note\ndata: {\"a\":1}\n\nevent: x-ephemeral-b\ndata: 2\ndata: 3\n\n";
        let expected = [
            SseEvent { last_id: Some("e:1".into()), name: "x-note".into(), data: "{\"a\":1}".into() },
            SseEvent { last_id: Some("e:1".into()), name: "x-ephemeral-b".into(), data: "2\n3".into() },
        ];
        for size in 1..stream.len() {
            let mut parser = Parser::default();
            let messages: Vec<_> =
                stream.chunks(size).flat_map(|piece| parser.feed(piece).unwrap()).collect();
            assert_eq!(messages, expected, "in pieces of {size}");
        }
    }
}
