//! A document's presence in the form that the `phoenix` client takes: `{user: {"metas": [meta, …]}}`. A meta is the
//! participant's state with a reference of the entry. Each value is encoded once, however many clients receive it.

use std::fmt::Write;

use bytes::Bytes;
use relay_core::{
    DocumentId, FormatId, PresenceChange, PresenceDiff, PresenceEntry, PresenceId, PresenceSnapshot, UserId,
};

use super::encode::{Frame, broadcast_of};

/// The names of the fields that this encoding adds to a participant's state. The implementation of
/// [`Presence`](relay_core::Presence) must refuse states that have them.
pub const RESERVED_STATE_FIELDS: &[&str] = &["phx_ref", "phx_ref_prev"];

/// The format of a snapshot's users as JSON.
struct UsersJson;
/// The format of a snapshot or a diff as a whole message.
struct PresenceMessage;

/// Encodes a change of a document's presence for its members, as `presence_state` or `presence_diff`. The bytes are cached
/// in the change and shared.
pub fn encode_presence(document: &DocumentId, change: &PresenceChange) -> Frame {
    let format = FormatId::of::<PresenceMessage>();
    let message = |name, payload: &[u8]| {
        broadcast_of(document, name, |out| {
            // With space for the closing bracket, so that the buffer does not grow to twice the size for it.
            out.reserve_exact(payload.len() + 1);
            out.extend_from_slice(payload);
        })
    };
    Frame::Text(match change {
        PresenceChange::Snapshot(snapshot) => snapshot
            .encodings
            .get_or_encode(format, || message("presence_state", users_json(&snapshot.entries).as_bytes())),
        PresenceChange::Diff(diff) => {
            diff.encodings.get_or_encode(format, || message("presence_diff", diff_json(diff).as_bytes()))
        }
    })
}

/// Encodes all participants of a document as JSON, which is the payload of `presence_state`. The bytes are cached in the
/// snapshot and shared.
pub fn encode_participants(snapshot: &PresenceSnapshot) -> Bytes {
    let format = FormatId::of::<UsersJson>();
    snapshot
        .encodings
        .get_or_encode(format, || users_json(&snapshot.entries).into_bytes().into_boxed_slice().into())
}

fn diff_json(diff: &PresenceDiff) -> String {
    format!(r#"{{"joins":{},"leaves":{}}}"#, users_json(&diff.joins), users_json(&diff.leaves))
}

/// Encodes the entries as one object. They are ordered by user.
fn users_json(entries: &[PresenceEntry]) -> String {
    let mut json = String::from("{");
    let mut previous: Option<&UserId> = None;
    for entry in entries {
        if previous == Some(&entry.user) {
            json.push(',');
        } else {
            if previous.is_some() {
                json.push_str("]},");
            }
            let name = serde_json::Value::from(entry.user.as_str());
            let _ = write!(json, r#"{name}:{{"metas":["#);
            previous = Some(&entry.user);
        }
        write_meta(&mut json, entry);
    }
    json.push_str(if previous.is_some() { "]}}" } else { "}" });
    json
}

fn write_meta(json: &mut String, entry: &PresenceEntry) {
    let reference = |id: PresenceId| format!("{:x}.{:x}", id.node.as_u64(), id.counter);
    let _ = write!(json, r#"{{"phx_ref":"{}""#, reference(entry.id));
    if let Some(previous) = entry.previous {
        let _ = write!(json, r#","phx_ref_prev":"{}""#, reference(previous));
    }
    let members = entry.state.members();
    if !members.is_empty() {
        json.push(',');
        json.push_str(members);
    }
    json.push('}');
}

#[cfg(test)]
mod tests {
    use relay_core::NodeId;

    use super::*;

    fn entry(user: &str, counter: u64, previous: Option<u64>, state: &str) -> PresenceEntry {
        let id = |counter| PresenceId { node: NodeId::from_u64(0xab), counter };
        let state = serde_json::from_str(state).unwrap();
        PresenceEntry::new(id(counter), previous.map(id), UserId::new(user).unwrap(), state)
    }

    #[test]
    fn entries_are_grouped_by_user_and_their_states_are_spliced_in() {
        let snapshot = PresenceSnapshot::new(vec![
            entry("bob", 3, None, " { } "),
            entry("a\"da", 16, Some(2), r#"{"name":"}{"}"#),
            entry("a\"da", 1, None, r#"{"deep":{"er":{}}}"#),
        ]);
        let json = encode_participants(&snapshot);
        let expected = concat!(
            r#"{"a\"da":{"metas":[{"phx_ref":"ab.1","deep":{"er":{}}},"#,
            r#"{"phx_ref":"ab.10","phx_ref_prev":"ab.2","name":"}{"}]},"bob":{"metas":[{"phx_ref":"ab.3"}]}}"#,
        );
        assert_eq!(json, expected);
        assert_eq!(encode_participants(&PresenceSnapshot::default()), "{}");
        serde_json::from_slice::<serde_json::Value>(&json).unwrap();
    }

    #[test]
    fn encoded_rosters_hold_no_spare_memory() {
        let state = format!(r#"{{"note":"{}"}}"#, "n".repeat(1000));
        let entries: Vec<_> = (0..100).map(|number| entry("ada", number, None, &state)).collect();
        let document = DocumentId::new("notes").unwrap();
        let snapshot = PresenceSnapshot::new(entries);
        let participants = encode_participants(&snapshot);
        let (Frame::Text(message) | Frame::Binary(message)) =
            encode_presence(&document, &PresenceChange::Snapshot(snapshot.into()));
        for bytes in [participants, message] {
            let length = bytes.len();
            // The snapshot is gone, and only the last handle tells the capacity.
            assert!(bytes.try_into_mut().unwrap().capacity() <= length + 16);
        }
    }
}
