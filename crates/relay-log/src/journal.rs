//! The engine's journal files, read without the engine.
//!
//! On opening, the engine replays a journal up to the first bytes that it cannot decode, and silently cuts off the rest
//! even in the middle of the file. So this crate reads the journals first, and knows of damage before anything is
//! changed. The form is that of fjall 3.1:
//!
//! ```text
//! batch = start item* end
//! start = 1, count of items u32, sequence number u64
//! item  = 2, value type u8, compression u8 = 0, keyspace u64, key length u16, value length u32, stored length u32, key, value
//!       | 4, keyspace u64                                                                     (a cleared keyspace)
//! end   = 3, xxh3-64 of the items u64, `FJL` 3
//! ```
//! Numbers are little-endian. A new file is 64 MiB of zeros, which the batches overwrite from the start.
//!
//! This module does no I/O: bytes in, findings out.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const END_MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];

/// No log has had this many batches, so a higher sequence number is damage. The engine's checksums do not cover it.
const MAX_SEQUENCE: u64 = 1 << 48;

/// The findings about a journal's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JournalScan {
    /// The end of the intact batches at the beginning of the file.
    pub(crate) intact_end: usize,
    /// The end of the bytes that are in use: behind the last byte that is not zero, and at least `intact_end`.
    pub(crate) used_end: usize,
    /// The intact batches that lie after `intact_end`, behind bytes that are no batch or out of order.
    pub(crate) later_batches: Vec<Range<usize>>,
    /// The sequence number of the last batch before `intact_end`, or the given one if there is none.
    pub(crate) last_sequence: u64,
}

impl JournalScan {
    /// Returns true when the file holds intact batches alone.
    pub(crate) fn is_clean(&self) -> bool {
        self.used_end == self.intact_end
    }
}

/// Reads a journal's bytes. `last_sequence` is the number of the last batch in the previous journal; 0 if there is none.
pub(crate) fn scan(bytes: &[u8], mut last_sequence: u64) -> JournalScan {
    let mut intact_end = 0;
    // The very first batch of a log has number 0.
    while let Some(batch) = batch_at(bytes, intact_end)
        .filter(|b| b.sequence > last_sequence || (last_sequence == 0 && intact_end == 0))
    {
        intact_end = batch.end;
        last_sequence = batch.sequence;
    }
    let used_end = intact_end + used_bytes(&bytes[intact_end..]);
    let mut later_batches = Vec::new();
    let mut position = intact_end;
    while position < used_end {
        match batch_at(bytes, position) {
            Some(batch) => {
                later_batches.push(position..batch.end);
                position = batch.end;
            }
            None => position += 1,
        }
    }
    JournalScan { intact_end, used_end, later_batches, last_sequence }
}

/// Counts the bytes without the zeros at the end.
fn used_bytes(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut used = bytes.len();
    for chunk in bytes.rchunks(ZEROS.len()) {
        if chunk != &ZEROS[..chunk.len()] {
            return used - chunk.iter().rev().take_while(|byte| **byte == 0).count();
        }
        used -= chunk.len();
    }
    0
}

struct JournalBatch {
    end: usize,
    sequence: u64,
}

/// Returns the intact batch that begins at `start`, if there is one.
fn batch_at(bytes: &[u8], start: usize) -> Option<JournalBatch> {
    let mut reader = ByteReader { bytes, position: start };
    if reader.byte()? != START {
        return None;
    }
    let count = reader.u32()?;
    let sequence = reader.u64()?;
    // The engine never writes an empty batch. Damaged bytes look like one more often than like any other batch.
    if count == 0 || sequence > MAX_SEQUENCE {
        return None;
    }
    let items = reader.position;
    for _ in 0..count {
        reader.item()?;
    }
    let items = &bytes[items..reader.position];
    if reader.byte()? != END || reader.u64()? != xxh3_64(items) || reader.array::<4>()? != END_MAGIC {
        return None;
    }
    Some(JournalBatch { end: reader.position, sequence })
}

struct ByteReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl ByteReader<'_> {
    fn item(&mut self) -> Option<()> {
        match self.byte()? {
            ITEM => {
                let (value_type, compression) = (self.byte()?, self.byte()?);
                // 0 to 2 are puts and removals; 4 is a value in another file, which this log does not use.
                if value_type > 2 || compression != 0 {
                    return None;
                }
                self.skip(8)?;
                let key = u16::from_le_bytes(self.array()?);
                let (value, stored) = (self.u32()?, self.u32()?);
                if value != stored {
                    return None;
                }
                self.skip(usize::from(key))?;
                self.skip(stored as usize)
            }
            CLEAR => self.skip(8),
            _ => None,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = self.bytes.get(self.position..)?.first_chunk()?;
        self.position += N;
        Some(*array)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        let position = self.position.checked_add(count)?;
        self.position = (position <= self.bytes.len()).then_some(position)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sequence: u64, value: &[u8]) -> Vec<u8> {
        let length = u32::try_from(value.len()).unwrap().to_le_bytes();
        let mut items = vec![ITEM, 0, 0];
        items.extend_from_slice(&7u64.to_le_bytes());
        items.extend_from_slice(&1u16.to_le_bytes());
        items.extend_from_slice(&[length, length].concat());
        items.push(b'k');
        items.extend_from_slice(value);
        let mut bytes = vec![START, 1, 0, 0, 0];
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&items);
        bytes.push(END);
        bytes.extend_from_slice(&xxh3_64(&items).to_le_bytes());
        bytes.extend_from_slice(&END_MAGIC);
        bytes
    }

    #[test]
    fn whole_batches_and_zeros_are_clean() {
        let bytes = [batch(0, b"one"), batch(1, b"two"), vec![0; 5000]].concat();
        let scan = scan(&bytes, 0);
        assert!(scan.is_clean());
        assert_eq!((scan.intact_end, scan.last_sequence), (bytes.len() - 5000, 1));
    }

    #[test]
    fn a_batch_cut_anywhere_is_a_torn_tail() {
        let (one, two) = (batch(1, b"one"), batch(2, b"two"));
        for cut in 1..two.len() {
            let scan = scan(&[&one, &two[..cut], &[0; 50]].concat(), 0);
            assert_eq!((scan.intact_end, scan.later_batches.len()), (one.len(), 0), "cut at {cut}");
            assert!(!scan.is_clean());
        }
    }

    #[test]
    fn a_batch_after_a_damaged_one_is_found() {
        let (one, two, three) = (batch(1, b"one"), batch(2, b"two"), batch(3, b"three"));
        for bit in 0..two.len() * 8 {
            let mut damaged = two.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let bytes = [&one[..], &damaged, &three].concat();
            let scan = scan(&bytes, 0);
            assert!(!scan.is_clean(), "bit {bit}");
            assert_eq!(scan.later_batches.last().unwrap().end, bytes.len(), "bit {bit}");
        }
    }
}
