//! The stored form of one event: a header with its own magic and checksum, then the event's binary form.
//!
//! The engine has checksums too. The record's own serve the rescue of a damaged engine: a record can be found in any
//! bytes, and its checksum proves that it is intact.
//!
//! ```text
//! 0   magic `RLr1`
//! 4   length of the body, u32
//! 8   offset, u64
//! 16  cumulative bytes, u64: of all records of the document, or of all logged events, up to and including this one
//! 24  time of the event, i64, microseconds since 1970
//! 32  CRC-32 of bytes 4 to 32 and the body
//! 36  body: the event in the versioned binary form of relay-events
//! ```
//! All numbers are little-endian. The size of a range of a document's events, or of logged events, is the
//! difference of two cumulative sizes.

use relay_core::{Event, Offset, Timestamp};
use relay_events::binary::{self, BinaryError};

const MAGIC: [u8; 4] = *b"RLr1";
/// Bytes before the body.
pub(crate) const HEADER_BYTES: usize = 36;

/// The reason why bytes are not a record, or why a record cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{0} bytes are too few for a record")]
    Short(usize),
    #[error("it does not begin with a record's magic")]
    Magic,
    #[error("its checksum does not match its content")]
    Checksum,
    #[error("its content cannot be decoded: {0}")]
    Event(#[from] BinaryError),
    #[error("a body of {0} bytes is longer than a record can state")]
    TooLong(usize),
}

/// The content of one record. A decoded one had the right checksum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) offset: Offset,
    pub(crate) cumulative_bytes: u64,
    pub(crate) time: Timestamp,
    pub(crate) body: &'a [u8],
}

impl<'a> Record<'a> {
    /// Returns the size of a record with a body of `body_bytes`.
    pub(crate) fn size(body_bytes: usize) -> u64 {
        (HEADER_BYTES + body_bytes) as u64
    }

    /// Reads the record at the beginning of `bytes` and ignores what follows it.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let short = || RecordError::Short(bytes.len());
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or_else(short)?;
        if header[..4] != MAGIC {
            return Err(RecordError::Magic);
        }
        let body_bytes = u32_at(header, 4) as usize;
        let body = bytes[HEADER_BYTES..].get(..body_bytes).ok_or_else(short)?;
        if checksum(header, body) != u32_at(header, 32) {
            return Err(RecordError::Checksum);
        }
        Ok(Self {
            offset: Offset::new(u64_at(header, 8)),
            cumulative_bytes: u64_at(header, 16),
            time: Timestamp::from_micros(u64_at(header, 24).cast_signed()),
            body,
        })
    }

    /// Returns the record's size in bytes.
    pub(crate) fn len(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// Returns the record's bytes.
    ///
    /// # Errors
    /// [`RecordError::TooLong`]. [`LogConfig::max_event_bytes`](crate::LogConfig::max_event_bytes) keeps the writer far
    /// below that.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let body_bytes = u32::try_from(self.body.len()).map_err(|_| RecordError::TooLong(self.body.len()))?;
        let mut bytes = Vec::with_capacity(self.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&body_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.offset.get().to_le_bytes());
        bytes.extend_from_slice(&self.cumulative_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.time.as_micros().to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[4..32]);
        crc.update(self.body);
        bytes.extend_from_slice(&crc.finalize().to_le_bytes());
        bytes.extend_from_slice(self.body);
        Ok(bytes)
    }

    /// Decodes the event in the body and sets its offset.
    pub(crate) fn event(&self) -> Result<Event, RecordError> {
        let mut event = binary::decode(self.body)?;
        event.offset = Some(self.offset);
        Ok(event)
    }
}

/// Finds the intact records in any bytes, with their positions. Everything else is skipped.
pub(crate) fn find_all(bytes: &[u8]) -> impl Iterator<Item = (usize, Record<'_>)> {
    let mut position = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(position..)?;
            let start = position + rest.windows(MAGIC.len()).position(|window| window == MAGIC)?;
            if let Ok(record) = Record::decode(&bytes[start..]) {
                position = start + record.len();
                return Some((start, record));
            }
            position = start + 1;
        }
    })
}

fn checksum(header: &[u8; HEADER_BYTES], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[4..32]);
    crc.update(body);
    crc.finalize()
}

fn u32_at(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &[u8]) -> Vec<u8> {
        let time = Timestamp::from_micros(5);
        Record { offset: Offset::new(7), cumulative_bytes: 99, time, body }.encode().unwrap()
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = record(b"some body");
        assert!(Record::decode(&bytes).is_ok());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn whole_records_are_found_among_rubble() {
        let (a, b) = (record(b"a"), record(b"bb"));
        let rubble = [b"RLr1 not one".as_slice(), &a, &a[..20], &b, b"RL"].concat();
        let found: Vec<_> = find_all(&rubble).map(|(at, record)| (at, record.body)).collect();
        assert_eq!(found, [(12, b"a".as_slice()), (12 + a.len() + 20, b"bb")]);
    }
}
