//! Serialisation of types that always serialise.
//!
//! An encoder that ignored a failure would store or send an empty event. The types that the encoders write cannot fail:
//! texts, numbers, and maps with text keys, written into memory. A failure is a bug in them, and ends the task loudly.

use std::fmt::Display;

use serde::Serialize;

/// Appends the JSON of `value` to `out`.
pub(crate) fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    ensure_written(serde_json::to_writer(out, value));
}

/// Returns the value of a serialisation that cannot fail.
pub(crate) fn ensure_written<T>(result: Result<T, impl Display>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("texts, numbers and maps with text keys always serialise: {error}"),
    }
}
