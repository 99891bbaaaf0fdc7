//! [`read_json`]: JSON that comes from outside, with errors that name the path of the mistake.

use serde::Deserialize;

/// Reads one JSON value. The error names the path of the mistake.
///
/// A value with a mistake is read twice, since keeping track of the path costs time that correct input need not spend.
pub(crate) fn read_json<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| {
        let mut again = serde_json::Deserializer::from_slice(json);
        shortened(match serde_path_to_error::deserialize::<_, T>(&mut again) {
            Err(located) if located.path().iter().next().is_some() => {
                format!("`{}`: {}", located.path(), located.inner())
            }
            _ => error.to_string(),
        })
    })
}

/// Returns the message, without its middle when it is long. Such errors quote the refused value, which may be megabytes.
pub(crate) fn shortened(message: String) -> String {
    const SIDE: usize = 160;
    let ends = (message.char_indices().nth(SIDE), message.char_indices().nth_back(SIDE - 1));
    match ends {
        (Some((head, _)), Some((tail, _))) if head < tail => {
            format!("{} … {}", &message[..head], &message[tail..])
        }
        _ => message,
    }
}
